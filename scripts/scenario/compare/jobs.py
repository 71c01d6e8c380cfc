"""Plays many virtual runs: on this machine's processors, or on a Dask cluster."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Final, NamedTuple

from host.policy.live.policy_process import policy_for_run
from protocol.errors import BalloonError, UsageError
from scripts.scenario.scenario import Scenario
from scripts.scenario.score import Score, score_of
from scripts.scenario.virtual.fleet import Fleet

CONNECT_SECONDS: Final = 5.0
"""In which a Dask scheduler has to answer, and to have a worker."""


class Job(NamedTuple):
    """One run: the number of its variant, and its seed."""

    variant: int
    seed: int


def play(scenario: Scenario, seed: int) -> Score:
    """Play ``scenario`` in virtual time and return its score."""
    policy = policy_for_run(scenario.policy.name, scenario.policy.parameters)
    return score_of(Fleet(scenario, policy, policy_name=scenario.policy.name, seed=seed, ledger=None).run())


def play_all(
    scenarios: Sequence[Scenario],
    seeds: Sequence[int],
    *,
    processes: int | None = None,
    cluster: str | None = None,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> list[list[Score]]:
    """Return the scores of each scenario, in the order of ``seeds``.

    ``processes`` is how many runs go on at once, as many as there are processors if it is None. ``cluster`` is the
    address of a Dask scheduler that plays them instead. ``on_done`` is called after each with the number that is done.

    Raises:
        BalloonError: the cluster cannot be used, or a process was killed.
    """
    jobs = [Job(variant, seed) for variant in range(len(scenarios)) for seed in seeds]
    scores: dict[Job, Score] = {}
    for job, score in play_jobs(scenarios, jobs, processes=processes, cluster=cluster):
        scores[job] = score
        on_done(len(scores), len(jobs))
    return [[scores[Job(variant, seed)] for seed in seeds] for variant in range(len(scenarios))]


def play_jobs(
    scenarios: Sequence[Scenario], jobs: Sequence[Job], *, processes: int | None = None, cluster: str | None = None
) -> Iterator[tuple[Job, Score]]:
    """Play ``jobs``, begun in their order, and give each when it is done. When the iterator is closed, those that have
    not begun are left out.

    Raises:
        BalloonError: the cluster cannot be used.
    """
    return _on_cluster(scenarios, jobs, cluster) if cluster else _here(scenarios, jobs, processes)


def _here(scenarios: Sequence[Scenario], jobs: Sequence[Job], processes: int | None) -> Iterator[tuple[Job, Score]]:
    processes = min(processes or os.cpu_count() or 1, len(jobs))
    if processes <= 1:
        for job in jobs:
            yield job, play(scenarios[job.variant], job.seed)
        return
    with ProcessPoolExecutor(processes) as pool:
        futures = {pool.submit(play, scenarios[job.variant], job.seed): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            why = "killed, perhaps for memory (--jobs 1 takes least), or a policy has ended it"
            raise BalloonError(f"a process that played runs has ended: {why}") from error
        finally:
            pool.shutdown(cancel_futures=True)


async def _greet(address: str) -> None:
    # A client waits for the greeting without end: what accepts the connection and sends nothing is found out here.
    import distributed

    options = distributed.Security().get_connection_args("client")
    async with asyncio.timeout(CONNECT_SECONDS):
        comm = await distributed.comm.connect(address, timeout=CONNECT_SECONDS, **options)
    comm.abort()


def _on_cluster(scenarios: Sequence[Scenario], jobs: Sequence[Job], address: str) -> Iterator[tuple[Job, Score]]:
    try:
        import distributed
    except ImportError:
        raise UsageError("--cluster needs Dask (extra `cluster`): pip install 'distributed>=2026.1'") from None
    where = f"--cluster {address}"
    try:
        asyncio.run(_greet(address))
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except TimeoutError as error:
        raise BalloonError(f"{where}: no Dask scheduler answers there within {CONNECT_SECONDS:g} s") from error
    except (OSError, ValueError, MemoryError) as error:
        # The first bytes of another kind of server are read as the size of a message.
        raise BalloonError(f"{where}: no Dask scheduler answers there ({error})") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise BalloonError(f"{where}: that scheduler has no workers") from error
        futures = {client.submit(play, scenarios[job.variant], job.seed, pure=False): job for job in jobs}
        for future in distributed.as_completed(list(futures)):
            try:
                score = future.result()
            except (ImportError, OSError, CancelledError, distributed.KilledWorker) as error:
                raise BalloonError(f"{where}: a run failed there ({type(error).__name__}: {error})") from error
            yield futures[future], score
