"""The view of a run: which page is shown, which machine is selected, what the keys do."""

from collections.abc import Callable, Sequence
from typing import Final

from host.terminal_view.bars import Symbols
from host.terminal_view.keys import Key, help_lines, key_line
from host.terminal_view.styled_line import Line, Span, Style, clipped, fitting, line
from scripts.scenario.scenario import Scenario
from scripts.scenario.view.list_page import list_page
from scripts.scenario.view.overview import Pace, overview
from scripts.scenario.view.picture import Picture
from scripts.scenario.view.run_clock import RunClock
from scripts.scenario.view.watcher import Watcher

_QUIT: Final = Key(shown="q", label="quit", meaning="end the run and keep its results (also Ctrl-C)")
_HELP: Final = Key(shown="?", label="help", meaning="this page, and back")
_PAUSE: Final = Key(shown="Space", label="pause", meaning="stop virtual time, or let it go on")
_FREEZE: Final = Key(shown="Space", label="freeze", meaning="keep this picture; the machines go on")
_STEP: Final = Key(shown=".", label="step", meaning="one step of virtual time (also n)")
_SPEED: Final = Key(shown="+-", label="speed", meaning="virtual time faster, slower")
_LISTS: Final = Key(shown="Enter", label="lists", meaning="free lists of the machine, and back (also Esc)")
_SCROLL: Final = Key(shown="PgUp PgDn", label="scroll", meaning="ten machines up, down; scroll the free lists")

_PAGE: Final = 10
"""Machines from one page to the next."""


class LiveView:
    """The view of the run that ``watcher`` watches. Made and used in the thread of the terminal.

    ``give_up`` is asked when a run that was to end does not: it returns whether the run is left as it is.
    """

    def __init__(
        self,
        scenario: Scenario,
        watcher: Watcher,
        clock: RunClock,
        symbols: Symbols,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._give_up = give_up
        self._vms = scenario.vms
        self._watcher = watcher
        self._clock = clock
        self._symbols = symbols
        self._selected: int | None = None
        self._shows_lists = self._shows_help = False
        self._offset = 0
        self._frozen: Picture | None = None

    @property
    def ended(self) -> bool:
        """Whether the run is over, or was given up."""
        return self._clock.is_ended or (self._clock.is_overdue and self._give_up())

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys, those that matter most first."""
        select = Key(shown=self._symbols.up_down, label="select", meaning="select a machine, or all, above the first")
        pace = (_FREEZE,) if self._clock.speed is None else (_PAUSE, _STEP, _SPEED)
        return (_QUIT, _HELP, *pace[:2], _LISTS, select, *pace[2:], _SCROLL)

    # --- What is shown ---

    def lines(self, width: int, height: int) -> Sequence[Line]:
        """Return the view as it is now."""
        footer = key_line(self.keys, width)
        body = self._body(width, max(1, height - 1))
        blank = line()
        lines = [*body, *[blank] * (height - 1 - len(body)), footer]
        return [Line(clipped(entry.spans, width)) for entry in lines[-height:] if height > 0]

    def _body(self, width: int, height: int) -> list[Line]:
        if self._shows_help:
            return fitting(help_lines("Keys", self.keys, self._legend(), width), height)
        picture = self._frozen or self._watcher.picture
        if picture is None:
            return [line("The run begins ...")]
        pace = Pace(
            speed=self._clock.speed,
            is_paused=self._clock.is_paused or self._frozen is not None,
            is_leaving=self._clock.is_leaving or self._is_at_its_end(picture),
        )
        if self._shows_lists and self._selected is not None:
            return list_page(picture, pace, self._symbols, self._selected, self._offset, width, height)
        return overview(picture, pace, self._symbols, self._selected, width, height)

    def _is_at_its_end(self, picture: Picture) -> bool:
        # It takes a moment to end the processes of a real run.
        return self._clock.speed is None and picture.sample.t >= picture.scenario.duration

    def _legend(self) -> list[list[Span]]:
        symbols = self._symbols
        return [
            [Span(symbols.in_use, Style.IN_USE), Span(" allocated: programs and page cache of the guest")],
            [Span(symbols.free, Style.FREE), Span(" free in the guest, not reported")],
            [Span(symbols.reported, Style.REPORTED), Span(" free and reported to the host")],
            [Span(symbols.balloon, Style.BALLOON), Span(" in the balloon")],
            [Span(symbols.resident, Style.RESIDENT), Span(" resident: what the host holds for the machine")],
            [Span("free, yet backed: free in the guest, not back with the host, by cause")],
        ]

    # --- Keys ---

    def press(self, key: str) -> None:
        """Take a key."""
        match key:
            case "q":
                self._clock.leave()
            case "?":
                self._shows_help = not self._shows_help
            case " " | "space":
                self._pause()
            case "." | "n":
                self._clock.step()
            case "+" | "=" | "-":
                self._clock.change_speed(faster=key != "-")
            case "up" | "k" | "down" | "j":
                self._select(-1 if key in ("up", "k") else 1)
            case "enter":
                self._toggle_lists()
            case "escape":
                self._leave_page()
            case "pageup" | "pagedown":
                self._page(-1 if key == "pageup" else 1)
        self._watcher.wanted = self._name_of_selected() if self._shows_lists else None

    def _pause(self) -> None:
        if self._clock.speed is None:
            self._frozen = self._watcher.picture if self._frozen is None else None
        else:
            self._clock.toggle_pause()

    def _select(self, step: int) -> None:
        # All together come before the first machine; the page of lists needs one.
        number = (-1 if self._selected is None else self._selected) + step
        number = max(0 if self._shows_lists else -1, min(number, len(self._vms) - 1))
        self._selected = None if number < 0 else number
        self._offset = 0

    def _page(self, direction: int) -> None:
        if self._shows_lists:
            self._offset = max(0, self._offset + 5 * direction)
        else:
            self._select(_PAGE * direction)

    def _toggle_lists(self) -> None:
        self._shows_help = False
        if not self._shows_lists and self._selected is None:
            self._select(1)
        self._shows_lists = not self._shows_lists and self._selected is not None
        self._offset = 0

    def _leave_page(self) -> None:
        if self._shows_help:
            self._shows_help = False
        else:
            self._shows_lists = False

    def _name_of_selected(self) -> str | None:
        return None if self._selected is None else self._vms[self._selected].name
