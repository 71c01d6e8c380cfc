"""The picture of a comparison: what memory cost the host against what programs waited for it, one mark a variant.

Bars show the standard deviation over the seeds. Marks differ in shape and fill as well as in colour, each is numbered,
and the key beside the picture names it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from protocol.errors import BalloonError, UsageError
from scripts.laboratory.pictures import FORMATS, NO_PICTURES, can_draw, save_drawing
from scripts.laboratory.style import ERRORS, LOOKS, caption
from scripts.scenario.compare.spread import deviation, measure
from scripts.scenario.score import Score

_NAMED: Final = 24
"""Of more variants than this, as in a sweep, the picture has numbers alone; the table has their names."""
_CLOSE: Final = 0.03
"""Of the picture's width and height: marks that are closer have one label."""


def check_picture(path: Path) -> None:
    """Raise :class:`UsageError` now, not after a long run, for a file that cannot be drawn."""
    if path.suffix.removeprefix(".") not in FORMATS:
        raise UsageError(f"--picture {path}: the name ends in {', '.join(f'.{name}' for name in FORMATS)}")
    if not can_draw():
        raise UsageError(f"--picture: {NO_PICTURES}")


def save_comparison(path: Path, title: str, scores: Mapping[str, Sequence[Score]]) -> None:
    """Draw the variants, named by ``scores``, into ``path``.

    Raises:
        BalloonError: the file cannot be written.
    """
    try:
        save_drawing(path, "compare", lambda figure: draw(figure, title, scores))
    except OSError as error:
        raise BalloonError(f"--picture {path}: {error.strerror or error}") from error


def draw(figure: Any, title: str, scores: Mapping[str, Sequence[Score]]) -> None:
    """Fill a matplotlib Figure."""
    axes = figure.add_subplot()
    marks = []
    for number, row in enumerate(scores.values()):
        stall, memory = (_spread(row, measured) for measured in ("stall_seconds", "host_gib_minutes"))
        look = LOOKS[number % len(LOOKS)]
        style = look.of_line(linestyle="none", fillstyle="full" if number // len(LOOKS) % 2 else "none")
        axes.errorbar(stall[0], memory[0], xerr=stall[1], yerr=memory[1], **ERRORS | {"ecolor": look.colour}, **style)
        marks += axes.plot(stall[0], memory[0], **style)
    for place, numbers in _places(scores):
        axes.annotate(" ".join(map(str, numbers)), place, (7, 6), textcoords="offset points", fontsize=9)
    axes.set_xlabel("stall time, s (programs waited for memory)")
    axes.set_ylabel("host memory, GiB·minutes")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    if len(scores) <= _NAMED:
        figure.legend(marks, _key(scores), loc="outside right upper", frameon=False, fontsize=9)
    seeds = len(next(iter(scores.values())))
    caption(figure, f"Virtual time, {seeds} seeds: mean and standard deviation. Down and to the left is better.")


def _key(scores: Mapping[str, Sequence[Score]]) -> list[str]:
    # Memory that was saved by killing programs is told from memory that was saved.
    key = []
    for number, (name, row) in enumerate(scores.items(), 1):
        killed = _spread(row, "oom_events")[0]
        key.append(f"{number}  {name}" + (f" ({killed:.2g} OOM)" if killed else ""))
    return key


def _spread(row: Sequence[Score], name: str) -> tuple[float, float]:
    values = [measure(score, name) for score in row]
    return sum(values) / len(values), deviation(values)


def _places(scores: Mapping[str, Sequence[Score]]) -> list[tuple[tuple[float, float], list[int]]]:
    # Where marks are, and the numbers of all that fall there.
    places = [(_spread(row, "stall_seconds")[0], _spread(row, "host_gib_minutes")[0]) for row in scores.values()]
    widths = [max(values) - min(values) for values in zip(*places, strict=True)]
    found: list[tuple[tuple[float, float], list[int]]] = []
    for number, place in enumerate(places, 1):
        for other, numbers in found:
            if all(abs(a - b) <= _CLOSE * width for a, b, width in zip(place, other, widths, strict=True)):
                numbers.append(number)
                break
        else:
            found.append((place, [number]))
    return found
