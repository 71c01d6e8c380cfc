"""A moment of a run as the view shows it: plain values, handed from the run's thread to that of the view."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from guest.mm.views.free_lists import FreeListView
from host.terminal_view.styled_line import Style
from protocol.units import GIB, MIB, TIB
from scripts.scenario.run_record import Sample, VmSample, VmState
from scripts.scenario.scenario import Scenario

STATE_WORDS: Final = {
    VmState.WAITING: "waiting",
    VmState.RUNNING: "running",
    VmState.FINISHED: "finished",
    VmState.FAILED: "failed",
    VmState.OOM_KILLED: "OOM-killed",
}
STATE_STYLES: Final = {
    VmState.WAITING: Style.FAINT,
    VmState.RUNNING: Style.PLAIN,
    VmState.FINISHED: Style.GOOD,
    VmState.FAILED: Style.BAD,
    VmState.OOM_KILLED: Style.BAD,
}
DIED: Final = "died"
_UNKNOWN: Final = VmSample(state=VmState.WAITING)


@dataclass(frozen=True, slots=True)
class Note:
    """One line of what has happened, at ``t`` seconds of the run."""

    t: float
    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The score so far."""

    peak_bytes: int = 0
    gib_minutes: float = 0.0
    refaulted_bytes: int = 0
    stall_seconds: float = 0.0
    oom_events: int = 0
    swapped_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The run at ``sample.t``. ``phases`` has the last phase that a machine has told.

    ``lists`` are the free lists of the machine ``lists_of``, None where they cannot be seen.
    """

    scenario: Scenario
    policy: str
    sample: Sample
    figures: Figures = Figures()
    phases: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    decision: Note | None = None
    lists_of: str | None = None
    lists: Sequence[FreeListView] | None = None

    def sample_of(self, vm: str) -> VmSample:
        """Return a machine as it is now. One that lives no more holds nothing, whatever it told last."""
        sample = self.sample.vms.get(vm, _UNKNOWN)
        if sample.state.has_ended and sample.resident_bytes == 0:
            return VmSample(state=sample.state)
        return sample

    def state_of(self, vm: str) -> tuple[str, Style]:
        """Return how far a machine is, in a word, and the style of the word."""
        sample = self.sample_of(vm)
        state = sample.state
        word = STATE_WORDS[state]
        if state is VmState.RUNNING:
            word = self.phases.get(vm, word)
        elif state is VmState.FAILED and sample.resident_bytes == 0:
            word = DIED
        return word, STATE_STYLES[state]


def short_size(size: float) -> str:
    """Return bytes in at most five columns, such as ``812M`` or ``1.25G``. Below a MiB it is ``0M`` only for 0."""
    if 0 < size < MIB:
        return "<1M"
    if size < 1000 * MIB:
        return f"{size / MIB:.0f}M"
    for unit, letter in ((GIB, "G"), (TIB, "T")):
        value = size / unit
        if value < 9.995:
            return f"{value:.2f}{letter}"
        if value < 99.95:
            return f"{value:.1f}{letter}"
        if value < 1000:
            return f"{value:.0f}{letter}"
    return f"{size / TIB:.0f}T"


def short_time(seconds: float) -> str:
    """Return a time of a run: ``12.25 s``, or ``1:02:03`` from a minute on."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
