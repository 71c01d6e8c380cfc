"""How a session is written down for another process, and taken over from one."""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from host.backend_channel import BackendChannel
from host.control.vm_control import VmControl
from host.events.metrics import VmMetrics
from host.memory.guest_memory import GuestMemory
from host.migration.device_state import parse_state
from host.migration.migration import Migration
from host.migration.travelling_state import build_state, restore_state
from host.ring.queue_files import QueueFiles
from host.supervision.journal import HeldFiles, Journal, compact, prepare, settle, standing_of
from host.supervision.session_journal import SessionJournal
from host.vhost_user.session import Session
from protocol.vhost_user_codec import BadMessage, Channel, Message, MessageReader
from protocol.vhost_user_payloads import LogDescription


class SessionParts:
    """The parts of a session that count for another process."""

    def __init__(
        self,
        session: Session,
        control: VmControl,
        metrics: VmMetrics,
        memory: GuestMemory,
        queues: Sequence[QueueFiles],
        migration: Migration,
    ) -> None:
        self._session = session
        self._control = control
        self._metrics = metrics
        self._memory = memory
        self._queues = queues
        self._migration = migration

    def write_down(self, journal: SessionJournal, channel: BackendChannel | None) -> tuple[bytes, set[int]]:
        """Return the session as it is now, and the numbers of the files that it needs. ``journal`` knows the numbers,
        ``channel`` is the back-end's own."""
        session = self._session
        running = [vring.index for vring in session.vrings if vring.running]
        written = Journal(
            entries=tuple(compact(session, self._held_files(journal, channel))),
            standing=standing_of(session),
            state=build_state(session.balloon, self._control, self._metrics).build().decode(),
            stated_bytes=self._control.size.ram.stated,
            records=journal.records_of(running),
            beside={"control": self._control.write_down(), "metrics": self._metrics.write_down()},
        )
        return written.build(), written.files

    def _held_files(self, journal: SessionJournal, channel: BackendChannel | None) -> HeldFiles:
        number, queues, migration = journal.number_of, self._queues, self._migration
        told, inflight, log_call = migration.log_told, migration.inflight, migration.log_call_fd
        return HeldFiles(
            regions=tuple(number(file.fd) for file in self._memory.files),
            kicks={index: number(files.kick.fd) for index, files in enumerate(queues) if files.kick is not None},
            calls={index: number(files.call.fd) for index, files in enumerate(queues) if files.call is not None},
            errs={index: number(files.err.fd) for index, files in enumerate(queues) if files.err is not None},
            channel=None if channel is None else number(channel.fd),
            log=None if told is None else (LogDescription(told.size, told.offset), journal.number_of_log(told)),
            log_call=None if log_call is None else number(log_call),
            inflight=None if inflight is None else (inflight.told, number(inflight.fd)),
        )

    async def take_over(
        self, journal: Journal, files: Mapping[int, int], perform: Callable[[Message | BadMessage], Awaitable[None]]
    ) -> None:
        """Lead this new session to where ``journal`` says, with the ``files`` of its numbers. ``perform`` carries out
        one message."""
        prepare(self._session, journal.standing)
        if journal.state:
            restore_state(parse_state(journal.state.encode()), self._session.balloon, self._control, self._metrics)
        if journal.beside:  # before a ring runs: discards may be inhibited
            self._control.resume(journal.beside["control"])
            self._metrics.resume(journal.beside["metrics"])
        self._control.state_memory(journal.stated_bytes)
        for message in _messages_of(journal, files):
            await perform(message)
        settle(self._session, journal.standing)


def _messages_of(journal: Journal, files: Mapping[int, int]) -> Iterator[Message | BadMessage]:
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    for entry in journal.entries:
        reader.feed(entry.data, [files[number] for number in entry.files])
        message = reader.next_message()
        assert message is not None
        yield message
