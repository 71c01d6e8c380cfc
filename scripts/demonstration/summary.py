"""The summary of the demonstration, as text and for JSON. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from host.netlink import ProcessCost
from host.terminal_view.styled_line import Line, Style
from protocol.units import format_size
from scripts.demonstration.view import WIDTH, mib, text_line
from scripts.scenario.real.real_machine import WAIT4

NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """How one round went. Sizes are bytes, times seconds; what did not happen is ``None``.

    ``a_*`` is the machine that fills and frees, ``b_*`` the one that grows afterwards. ``stopped_by`` says who stopped
    B when it ran out of memory.
    """

    reporting: bool
    real: bool
    memory_bytes: int
    budget_bytes: int
    budget_source: str
    host_peak_bytes: int
    wanted_bytes: int
    a_peak_bytes: int
    a_after_bytes: int
    a_returned_seconds: float | None
    a_reports: int
    a_discarded_bytes: int
    b_peak_bytes: int
    b_verified_pages: int | None
    b_corrupted_pages: int | None
    stopped_by: str | None
    a_cost: ProcessCost | None
    b_cost: ProcessCost | None

    @property
    def b_completed(self) -> bool:
        """Whether B got all it wanted and found it intact."""
        return self.stopped_by is None and bool(self.b_verified_pages) and self.b_corrupted_pages == 0

    @property
    def problem(self) -> str | None:
        """Return what was not as expected, in a few words, or ``None``."""
        if self.reporting and not self.b_completed:
            if self.b_corrupted_pages:
                return f"with reporting VM B found {self.b_corrupted_pages} corrupted pages"
            return "with reporting VM B ran out of memory nevertheless"
        if not self.reporting and self.stopped_by is None:
            return "without reporting VM B should have run out of memory, and did not"
        return None


def report_dict(results: Sequence[RoundResult]) -> dict[str, Any]:
    """Return the results for ``--json``."""
    return {
        "ok": all(result.problem is None for result in results),
        "problems": [result.problem for result in results if result.problem is not None],
        "rounds": [{**asdict(result), "b_completed": result.b_completed} for result in results],
    }


def _sentence_with(result: RoundResult) -> str:
    size, budget = format_size(result.wanted_bytes), format_size(result.budget_bytes)
    back = result.a_peak_bytes - result.a_after_bytes
    text = f"WITH free page reporting, VM A used {size} and freed them; "
    if result.a_returned_seconds is None:
        text += f"{format_size(back)} came back to the host. "
    else:
        text += f"{format_size(back)} were back with the host {result.a_returned_seconds:.1f} s later. "
    if result.b_completed:
        text += f"VM B then got its {size} within the same {budget}, and every page it wrote was intact."
    else:
        text += f"VM B did not get its {size} intact: {result.problem}."
    return text


def _sentence_without(result: RoundResult) -> str:
    size = format_size(result.wanted_bytes)
    text = (
        f"WITHOUT it, VM A freed the same {size}, but the host never learned of it and went on carrying"
        f" {format_size(result.a_after_bytes)} for a machine that was idle. "
    )
    if result.stopped_by is not None:
        return text + f"VM B ran out of memory at {format_size(result.b_peak_bytes)} and was killed."
    return text + "Still VM B did not run out of memory, which it should have."


def _wrap(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _row(label: str, values: Sequence[str], width: int) -> str:
    column = 18 if width >= WIDTH else 15
    return f"  {label:<{27 if width < WIDTH else 38}}" + "".join(f"{value:>{column}}" for value in values)


def _outcome(result: RoundResult) -> str:
    if result.stopped_by is not None:
        return "out of memory"
    if result.b_corrupted_pages:
        return f"{result.b_corrupted_pages} pages lost"
    return "done, intact"


def _returned(result: RoundResult) -> str:
    return "never" if result.a_returned_seconds is None else f"{result.a_returned_seconds:.1f} s"


def _delay(cost: ProcessCost) -> str:
    if cost.direct_reclaim_seconds is None:
        return NOT_MEASURED
    return f"{cost.direct_reclaim_seconds * 1000:.0f} ms ({cost.direct_reclaim_count}x)"


def _cost_lines(results: Sequence[RoundResult], width: int) -> list[Line]:
    costs = [
        (f"VM {name}, {'with' if result.reporting else 'without'} reporting", cost)
        for result in results
        for name, cost in (("A", result.a_cost), ("B", result.b_cost))
        if cost is not None
    ]
    if not costs:
        return []
    wide = width >= WIDTH

    def row(label: str, peak: str, minor: str, major: str, delay: str) -> Line:
        if wide:
            return text_line(f"  {label:<24}{peak:>15}{minor:>14}{major:>7}{delay:>17}")
        return text_line(f"  {label:<23}{peak:>9}{minor:>10}{delay:>15}")

    heading = ("peak resident", "minor faults", "major", "direct reclaim")
    lines = [
        *_titled("What each VM process cost the host, by the kernel's own books", width),
        row("", *heading) if wide else row("", "resident", "faults", "", "reclaim"),
    ]
    for label, cost in costs:
        peak = NOT_MEASURED if cost.peak_resident_bytes is None else f"{mib(cost.peak_resident_bytes)} MiB"
        lines.append(row(label, peak, str(cost.minor_faults), str(cost.major_faults), _delay(cost)))
    sources = {cost.source for _, cost in costs}
    sources -= {source.removesuffix(WAIT4) for source in sources if source.endswith(WAIT4)}
    note = f"Source: {'; '.join(sorted(sources))}. Peak resident includes the program itself."
    if any(cost.direct_reclaim_seconds is None and cost.source.startswith("taskstats") for _, cost in costs):
        note += " Direct reclaim is measured only while the sysctl kernel.task_delayacct is 1; here it is 0."
    return [*lines, text_line(""), *_noted(note, width), text_line("")]


def _titled(text: str, width: int) -> list[Line]:
    return [*(text_line(line, Style.TITLE) for line in _wrap(text, width)), text_line("")]


def _noted(text: str, width: int) -> list[Line]:
    return [text_line(f"  {line}", Style.FAINT) for line in _wrap(text, width - 2)]


def _comparison(results: Sequence[RoundResult], width: int) -> list[Line]:
    first = results[0]
    rows = [
        ("memory VM A gave back", [f"{mib(r.a_peak_bytes - r.a_after_bytes)} MiB" for r in results]),
        ("time until it was back", [_returned(r) for r in results]),
        ("still carried for idle VM A", [f"{mib(r.a_after_bytes)} MiB" for r in results]),
        ("reports from VM A", [str(r.a_reports) for r in results]),
        (
            f"VM B got of {mib(first.wanted_bytes)} MiB",
            [mib(min(r.b_peak_bytes, r.wanted_bytes)) for r in results],
        ),
        ("VM B", [_outcome(r) for r in results]),
        (f"host peak of {mib(first.budget_bytes)} MiB", [mib(r.host_peak_bytes) for r in results]),
    ]
    lines = [text_line(_row("", ["with reporting" if r.reporting else "without" for r in results], width), Style.TITLE)]
    lines += [text_line(_row(label, values, width)) for label, values in rows]
    stopped = {result.stopped_by for result in results if result.stopped_by is not None}
    note = f"Limit kept by: {first.budget_source}"
    note += f"; VM B was stopped by {' and '.join(sorted(stopped))}." if stopped else "."
    return [*lines, text_line(""), *_noted(note, width), text_line("")]


def _verdict(results: Sequence[RoundResult]) -> str:
    problems = [result.problem for result in results if result.problem is not None]
    if problems:
        return f"Not as expected: {'; '.join(problems)}."
    first = results[0]
    return (
        f"With free page reporting {format_size(first.budget_bytes)} were enough for both VMs, because VM A's memory"
        " came back; without it VM B was killed."
    )


def summary_lines(results: Sequence[RoundResult], width: int = WIDTH) -> list[Line]:
    """Return the closing summary in lines of at most ``width`` columns, from 59 up: what each process cost, a small
    table, what happened, and at last the one sentence that is to stay on the screen."""
    first = results[0]
    kind = "a real Linux kernel and an emulated one" if first.real else "both emulated"
    lines = _titled("What happened", width)
    lines += _plain(
        f"Two virtual machines of {format_size(first.memory_bytes)} ({kind}) shared a host that had"
        f" {format_size(first.budget_bytes)} for both. Each needs {format_size(first.wanted_bytes)} once,"
        " one after the other.",
        width,
    )
    lines += [*_cost_lines(results, width), *_comparison(results, width)]
    for result in results:
        lines += _plain(_sentence_with(result) if result.reporting else _sentence_without(result), width)
    good = all(result.problem is None for result in results)
    lines += [text_line(line, Style.TITLE if good else Style.WARNING) for line in _wrap(_verdict(results), width)]
    return lines


def _plain(text: str, width: int) -> list[Line]:
    return [*map(text_line, _wrap(text, width)), text_line("")]
