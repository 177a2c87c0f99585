"""The results as pictures: panels side by side that share one row for each method."""

import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxpool.compare.results import Results, accuracies, ranked
from jaxpool.compare.words import joint_ranks, number, readable, subtitle, title

__all__ = ["joint_picture", "joint_vectors", "picture", "vectors"]

_BAR, _DOT, _SEED, _TEXT, _MUTED = "#b8c7d9", "#c4472f", "#e3a898", "#222222", "#777777"
_GRID = "#e6e6e6"
_VARIABLES = {
    _BAR: "--bar",
    _DOT: "--dot",
    _SEED: "--seed",
    _TEXT: "--text",
    _MUTED: "--muted",
    _GRID: "--line",
}
"""What a page calls the colours, which are others where it is dark."""
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 9.5, "color": _TEXT}
_LABEL: dict[str, Any] = {"va": "center", "fontsize": 9, "color": _TEXT}
_FAR = 10
"""How many points below the best an accuracy leaves the axis of the picture."""

Panel = Callable[[Axes], None]


def picture(results: Results) -> Figure:
    """Draws everything about one data set."""
    names, panels = _panels(results)
    heading = title(results), subtitle(results)
    return _figure(names, panels, [1.7, 1, 1, 1, 1], 12, heading)


def joint_picture(parts: Mapping[str, Results], heading: tuple[str, str]) -> Figure:
    """Draws the accuracies in several data sets, beside each other."""
    names, panels = _joint_panels(parts)
    return _figure(names, panels, [1] * len(panels), 2 + 4 * len(panels), heading)


def vectors(results: Results) -> list[str]:
    """Returns the panels of one data set as SVG, a few at a time."""
    names, panels = _panels(results)
    return [_svg(names, group) for group in (panels[:1], panels[1:3], panels[3:])]


def joint_vectors(parts: Mapping[str, Results]) -> list[str]:
    """Returns the panels of several data sets as SVG."""
    names, panels = _joint_panels(parts)
    return [_svg(names, [panel]) for panel in panels]


def _svg(names: Sequence[str], panels: Sequence[Panel]) -> str:
    """Returns panels as SVG that takes colours and font from the page around it."""
    figure = _figure(names, panels, [1] * len(panels), _margin(names) + 3)
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text, and ids do not change from one report to the next.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "jaxpool"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a file's name
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # The drawing is as wide as the page has room for.
    return re.sub(r'<svg (.*?)width="[^"]*"', r"<svg \1", text, count=1).replace(
        'height="', 'data-height="', 1
    )


def _panels(results: Results) -> tuple[list[str], list[Panel]]:
    """Returns the rows' names, and what draws each panel."""
    methods = ranked(results)
    scores = [accuracies(entry) for _, entry in methods]
    accuracy = "accuracy, % (mean, and each seed)"
    panels: list[Panel] = [partial(_draw_accuracy, title=accuracy, scores=scores)]
    for heading, key, unit in (
        ("inference, ms", "inference_ms", 1),
        ("train step, ms", "train_step_ms", 1),
        ("train memory, MB", "train_bytes", 1e6),
        ("parameters", "parameters", 1),
    ):
        values = [entry.get("costs", {}).get(key) for _, entry in methods]
        panels.append(partial(_draw_bars, title=heading, values=values, unit=unit))
    return [name for name, _ in methods], panels


def _joint_panels(parts: Mapping[str, Results]) -> tuple[list[str], list[Panel]]:
    names = [name for name, _ in joint_ranks(parts)]
    panels: list[Panel] = []
    for data, results in parts.items():
        found = results["methods"]
        scores = [accuracies(found[n]) if n in found else [] for n in names]
        heading = f"{readable(data)}: accuracy, %"
        panels.append(partial(_draw_accuracy, title=heading, scores=scores))
    return names, panels


def _margin(names: Sequence[str]) -> float:
    """Returns the inches that the names of the rows take."""
    return 0.24 + 0.09 * max(map(len, names))


def _figure(
    names: Sequence[str],
    panels: Sequence[Panel],
    weights: Sequence[float],
    width: float,
    heading: tuple[str, str] | None = None,
) -> Figure:
    """Draws panels side by side that share one row for each of `names`."""
    top = 0.95 if heading else 0.35
    height = top + 0.4 + 0.34 * len(names)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        1, len(panels), sharey=True, width_ratios=weights, squeeze=False
    )[0]
    figure.subplots_adjust(
        left=_margin(names) / width,
        right=1 - 0.18 / width,
        bottom=0.3 / height,
        top=1 - top / height,
        wspace=0.12,
    )
    if heading:
        text = {"x": 0.18 / width, "va": "top", "color": _TEXT, "parse_math": False}
        large, small = heading
        figure.text(y=1 - 0.14 / height, s=large, size=14, weight="bold", **text)
        figure.text(y=1 - 0.44 / height, s=small, size=9.5, **text)
    for axis in axes:
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, colors=_MUTED, labelsize=8)
    first = axes[0]
    first.set_yticks(range(len(names)), names)
    first.tick_params(axis="y", colors=_TEXT, labelsize=10)
    first.set_ylim(len(names) - 0.4, -0.6)
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis)
    return figure


def _draw_accuracy(panel: Axes, title: str, scores: Sequence[Sequence[float]]) -> None:
    """Draws each method's mean and seeds, if it has any."""
    means = [statistics.mean(seeds) if seeds else -math.inf for seeds in scores]
    best = max(means)
    near = [
        seeds for seeds, mean in zip(scores, means, strict=True) if mean > best - _FAR
    ]
    low, high = min(map(min, near)), max(map(max, near))
    margin = max(high - low, 1) * 0.08
    left, right = low - 2 * margin, high + margin
    panel.set_xlim(left, right + 5 * margin)  # with room for the numbers
    panel.set_xticks([tick for tick in panel.get_xticks() if left <= tick <= right])
    panel.set_title(title, parse_math=False, **_TITLE)
    panel.grid(axis="x", color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    for row, (seeds, mean) in enumerate(zip(scores, means, strict=True)):
        if not seeds:
            continue
        if mean < left:
            panel.plot(left + margin / 2, row, "<", color=_DOT, markersize=6)
            panel.text(left + margin, row, "off the scale", **_LABEL)
        else:
            panel.plot([min(seeds), max(seeds)], [row, row], color=_SEED, linewidth=2)
            panel.plot(seeds, [row] * len(seeds), "o", color=_SEED, markersize=4)
            panel.plot(mean, row, "o", color=_DOT, markersize=7)
        panel.text(right + 4 * margin, row, f"{mean:.1f}", **_LABEL, ha="right")


def _draw_bars(
    panel: Axes, title: str, values: Sequence[float | None], unit: float
) -> None:
    """Draws one bar for each method, with its number behind it."""
    panel.set_title(title, **_TITLE)
    panel.set_xticks([])
    largest = max((value for value in values if value is not None), default=0) or 1
    panel.set_xlim(0, 1.35 * largest)
    for row, value in enumerate(values):
        panel.barh(row, value or 0, height=0.62, color=_BAR)
        label = number(value, unit)
        panel.text((value or 0) + 0.03 * largest, row, label, **_LABEL)
