"""The results for people: a table in the terminal, in Markdown, and a picture."""

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpool.compare.files import replace
from jaxpool.compare.results import Results, accuracies, ranked
from jaxpool.compare.timing import ROUNDS
from jaxpool.compare.verdict import (
    Verdict,
    conclusions,
    learning,
    lessons,
    reference,
    verdicts,
)

__all__ = ["print_table", "summary", "write_report"]

_NOTES = f"""\
Accuracy: on all test images, the mean over seeds; range: the lowest and highest seed; \
vs: the difference of means, * if told apart.
ms: milliseconds for inference on one batch (infer) and for one training step, the \
median of {ROUNDS} rounds that each run every method once.
MB: 10^6 bytes that one device needs for one batch (arguments, results and temporary \
values), as XLA planned it.
Params: trained values, those of the dense head included; learned: the pooling layers' \
share of them."""
_LEARNED = """\
Moved: the root mean square, over the pooling layers' parameters, of how far each is \
from where it started.
Loss: on training batches, the mean over the first and the last tenth of all steps."""

_MISSING = "–"
_BAR, _DOT, _SEED, _TEXT, _MUTED = "#b8c7d9", "#c4472f", "#e3a898", "#222222", "#777777"
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 9.5, "color": _TEXT}
_LABEL: dict[str, Any] = {"va": "center", "fontsize": 9, "color": _TEXT}
_FAR = 10
"""How many points below the best an accuracy leaves the axis of the picture."""


def print_table(results: Results) -> None:
    """Prints the results as a table on standard output."""
    style: dict[str, Any] = {"padding": 0, "pad_edge": False, "show_edge": False}
    # Text: in the name of a file, brackets and dollars mean themselves.
    table = Table(box=SIMPLE_HEAD, title=Text(_title(results)), **style)
    for name in _header(results):
        table.add_column(
            name.replace(" ", "\n"),  # narrow enough for 80 columns
            justify="left" if name == "method" else "right",
            overflow="fold",
        )
    for row in _rows(results):
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    sentences = conclusions(results) + lessons(results)
    console.print(*sentences, sep="\n", markup=False)
    console.print(_NOTES, style="dim")


def write_report(folder: Path, results: Results) -> None:
    """Writes results.md and results.png into `folder`."""
    text = _markdown(results)
    replace(folder / "results.md", lambda path: path.write_text(text, "utf-8"))
    figure = _figure(results)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a file's name
        replace(folder / "results.png", lambda path: figure.savefig(path, dpi=160))


def summary(name: str, entry: dict[str, Any]) -> str:
    """Returns one line on a method whose seeds are finished."""
    scores = accuracies(entry)
    spread = f"{min(scores):.1f}–{max(scores):.1f}"
    mean = statistics.mean(scores)
    return f"{name}: {mean:.1f} % accuracy ({spread} over {len(scores)} seeds)"


def _title(results: Results) -> str:
    settings, environment = results["settings"], results["environment"]
    device, count = environment["device"], environment["devices"]
    devices = device if count == 1 else f"{count} × {device}"
    # The name of a file may hold bytes that are no text.
    data = settings["data"].encode("utf-8", "backslashreplace").decode("utf-8")
    return f"Pooling on {data}, {settings['model']} model, {devices}"


def _subtitle(results: Results) -> str:
    settings, data = results["settings"], results["data"]
    size = "×".join(map(str, data["image"]))
    seeds = max(len(entry["runs"]) for entry in results["methods"].values())
    return (
        f"{data['train']:,} training and {data['test']:,} test images of {size}, "
        f"{seeds} seeds, {settings['epochs']} epochs, batch {settings['batch']}, "
        f"jax {results['environment']['jax']}"
    )


def _header(results: Results) -> list[str]:
    costs = ("infer ms", "train ms", "infer MB", "train MB", "params", "learned")
    return ["method", "accuracy %", "range %", f"vs {reference(results)}", *costs]


def _rows(results: Results) -> list[list[str]]:
    """Returns the table's cells, best method first."""
    rows, found = [], verdicts(results)
    for name, entry in ranked(results):
        scores, costs = accuracies(entry), entry.get("costs", {})
        rows.append(
            [
                name,
                f"{statistics.mean(scores):.1f}",
                f"{min(scores):.1f}–{max(scores):.1f}",
                _difference(found.get(name)),
                _number(costs.get("inference_ms")),
                _number(costs.get("train_step_ms")),
                _number(costs.get("inference_bytes"), 1e6),
                _number(costs.get("train_bytes"), 1e6),
                _number(costs.get("parameters")),
                _number(costs.get("learned")),
            ]
        )
    return rows


def _number(value: float | None, unit: float = 1) -> str:
    """Returns a count whole, and any other number with three significant digits."""
    if value is None:
        return _MISSING
    if isinstance(value, int) and unit == 1:
        return f"{value:,}"
    value /= unit
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _difference(verdict: Verdict | None) -> str:
    if verdict is None:
        return _MISSING
    return f"{verdict.difference:+.1f}{'*' if verdict.told_apart else ''}"


def _markdown(results: Results) -> str:
    parts = [
        f"# {_title(results)}",
        f"{_subtitle(results)}.",
        _table(_header(results), _rows(results)),
        _list(_NOTES.splitlines()),
    ]
    if sentences := conclusions(results):
        parts += ["## Differences and the spread over seeds", _list(sentences)]
    if learned := learning(results):
        header = ["method", "learned", "moved", "first loss", "last loss"]
        rows = []
        for name, means in learned:
            count = results["methods"][name].get("costs", {}).get("learned")
            rows.append([name, _number(count), *map(_number, means.values())])
        notes = [*lessons(results), *_LEARNED.splitlines()]
        title = "## What pooling layers learned"
        parts += [title, _table(header, rows), _list(notes)]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _figure(results: Results) -> Figure:
    """Draws panels side by side that share one row for each method."""
    methods = ranked(results)
    height = 1.35 + 0.34 * len(methods)
    figure = Figure(figsize=(12, height))
    panels = figure.subplots(1, 5, sharey=True, width_ratios=[1.7, 1, 1, 1, 1])
    figure.subplots_adjust(
        left=0.02 + 0.0075 * max(len(name) for name, _ in methods),
        right=0.985,
        bottom=0.3 / height,
        top=1 - 0.95 / height,
        wspace=0.12,
    )
    text = {"x": 0.015, "va": "top", "color": _TEXT, "parse_math": False}
    figure.text(y=1 - 0.14 / height, s=_title(results), size=14, weight="bold", **text)
    figure.text(y=1 - 0.44 / height, s=_subtitle(results), size=9.5, **text)

    for panel in panels:
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0, colors=_MUTED, labelsize=8)
    first = panels[0]
    first.set_yticks(range(len(methods)), [name for name, _ in methods])
    first.tick_params(axis="y", colors=_TEXT, labelsize=10)
    first.set_ylim(len(methods) - 0.4, -0.6)

    _draw_accuracy(first, [accuracies(entry) for _, entry in methods])
    for panel, title, key, unit in zip(
        panels[1:],
        ("inference, ms", "train step, ms", "training memory, MB", "parameters"),
        ("inference_ms", "train_step_ms", "train_bytes", "parameters"),
        (1, 1, 1e6, 1),
        strict=True,
    ):
        values = [entry.get("costs", {}).get(key) for _, entry in methods]
        _draw_bars(panel, title, values, unit)
    return figure


def _draw_accuracy(panel: Axes, scores: Sequence[Sequence[float]]) -> None:
    """Draws each method's mean and seeds; the means are sorted, best first."""
    means = [statistics.mean(seeds) for seeds in scores]
    near = [
        seeds
        for seeds, mean in zip(scores, means, strict=True)
        if mean > means[0] - _FAR
    ]
    low, high = min(map(min, near)), max(map(max, near))
    margin = max(high - low, 1) * 0.08
    left, right = low - 2 * margin, high + margin
    panel.set_xlim(left, right + 5 * margin)  # with room for the numbers
    panel.set_xticks([tick for tick in panel.get_xticks() if left <= tick <= right])
    panel.set_title("accuracy, % (mean, and each seed)", **_TITLE)
    panel.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    for row, (seeds, mean) in enumerate(zip(scores, means, strict=True)):
        if mean < left:
            panel.plot(left + margin / 2, row, "<", color=_DOT, markersize=6)
            panel.text(left + margin, row, "off the scale", **_LABEL, alpha=0.7)
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
        label = _number(value, unit)
        panel.text((value or 0) + 0.03 * largest, row, label, **_LABEL)
