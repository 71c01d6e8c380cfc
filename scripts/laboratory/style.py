"""How series look, in all pictures: told apart by colour, and without colour by marker, line style or hatch.

The colours are those of Okabe and Ito, which people with any of the usual colour blindnesses can tell apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from scripts.laboratory.experiment import Row, least, most


@dataclass(frozen=True, slots=True)
class Look:
    """Colour and marker, line style (as matplotlib takes them) and hatch of one series."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]
    hatch: str

    def of_line(self, **changes: Any) -> dict[str, Any]:
        """Return the arguments of a line. The marker is hollow, so that one below another is seen."""
        style = {"color": self.colour, "marker": self.marker, "linestyle": self.line, "fillstyle": "none"}
        return {**style, "linewidth": 1.6, "markersize": 7, **changes}

    def of_bars(self, **changes: Any) -> dict[str, Any]:
        """Return the arguments of bars. They are paler than lines, so that their spread is seen before them."""
        return {"facecolor": (self.colour, 0.7), "hatch": self.hatch, "edgecolor": "black", "linewidth": 0.6, **changes}


LOOKS: Final = (
    Look("#0072B2", "o", "-", ""),
    Look("#E69F00", "s", "--", "///"),
    Look("#009E73", "^", "-.", "..."),
    Look("#D55E00", "D", ":", "xxx"),
    Look("#CC79A7", "v", (0, (8, 2)), "\\\\\\"),
    Look("#000000", "x", (0, (4, 1, 1, 1, 1, 1)), "++"),
)
"""No two share a colour, marker, line style or hatch. Series without a name take them in this order."""

REPORTER_LOOKS: Final = {"boundary": LOOKS[0], "rotation": LOOKS[1], "scan": LOOKS[3]}
SOURCE_LOOKS: Final = {"simulated": LOOKS[0], "published": LOOKS[4]}

ERRORS: Final[dict[str, Any]] = {"ecolor": "black", "elinewidth": 1.2, "capsize": 4}
"""How bars show their spread."""


def error_bars(rows: Sequence[Row], column: str) -> list[list[float]]:
    """Return how far the least and the most lie below and above the value, as matplotlib takes error bars."""
    return [
        [row[column] - row[least(column)] for row in rows],
        [row[most(column)] - row[column] for row in rows],
    ]


def caption(figure: Any, text: str) -> None:
    """Write below the picture what its numbers are: measured or simulated, how often."""
    figure.supxlabel(text, fontsize=8, color="0.25")
