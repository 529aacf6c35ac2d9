"""Matplotlib figures as small inline SVG that takes its colours and its type from the page.

Figures are drawn in stand-in colours that become CSS variables, so the same figure suits a light page, a dark one and
paper. The text stays text. Equal input gives equal bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
MODALITY_COLOURS = 6
MARKERS = ("s", "^", "D", "v", "P", "X")
FUSED_MARKER = "o"
SERIES = "series-"

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"}


def modality_colour(index: int) -> str:
    """Returns the stand-in for a modality's colour; the page has `MODALITY_COLOURS` of them."""
    return f"#0a0a0{index % MODALITY_COLOURS}"


def phase_colour(index: int) -> str:
    """Returns the stand-in for a phase's colour."""
    return f"#0b0b0{index}"


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Gives a figure (inches) with one plain axes; everything drawn in it must happen inside the context."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "raybal",
        "font.size": 9.5,
        # Names of modalities are the user's: a dollar sign in one is no formula.
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 9.5,
        "axes.edgecolor": GRID,
        "axes.linewidth": 1.0,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "path.simplify": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0.56 / width, 0.5 / height, 1 - 0.66 / width, 1 - 0.6 / height))
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(length=0, pad=5)
        yield figure, axes


def to_svg(figure: Figure, label: str) -> str:
    """Returns a figure as an `<svg>` element.

    Args:
        figure: drawn in the stand-in colours. Artists with an id "series-NAME" keep it as `data-series="NAME"`.
        label: what it shows, for people who do not see it.
    """
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    # Matplotlib's style block speaks to the whole page, and its metadata names addresses in the net.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r"<[^>]*>", lambda tag: _lean(tag.group(), used), text)
    text = re.sub(r">\s+<", "><", re.sub(r"<defs>\s*</defs>", "", text)).strip()
    return text.replace("<svg", f'<svg class="plot" role="img" aria-label="{html.escape(label)}"', 1)


def _lean(tag: str, used: set[str]) -> str:
    """Strips one tag of what the page gives or nobody reads, and sets in the variables."""
    if tag.startswith("<svg"):
        return re.sub(r' (xmlns(:\w+)?|width|height|version)="[^"]*"', "", tag)
    tag = re.sub(rf' id="{SERIES}([^"]*)"', r' data-series="\1"', tag)
    tag = re.sub(r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", tag)
    tag = tag.replace("xlink:href", "href")
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    tag = re.sub(r"(\d\.\d{2})\d+", r"\1", tag)
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found.group()), tag)
    return re.sub(r"\s+", " ", tag)


def _variable(colour: str) -> str:
    if colour in _VARIABLES:
        return f"var(--{_VARIABLES[colour]})"
    if colour.startswith("#0a0a0"):
        return f"var(--modality-{colour[-1]})"
    if colour.startswith("#0b0b0"):
        return f"var(--phase-{colour[-1]})"
    return colour
