"""The results for people: tables in the terminal, in Markdown, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxpool.bench.contestants import OURS, PEERS, YARDSTICK
from jaxpool.bench.models import STRIDE
from jaxpool.bench.ops import BOUNDS, MEAN, Bound, temporaries
from jaxpool.bench.results import Results
from jaxpool.compare.files import replace

__all__ = ["line", "print_tables", "write_report"]

_STYLES = {
    OURS: ("#c4472f", "o"),
    "flax": ("#4878a8", "o"),
    "equinox": ("#7b5ea7", "s"),
    "keras": ("#3c9b74", "^"),
    "torch": ("#d99021", "D"),
    YARDSTICK: ("#999999", "|"),
}
"""Color and marker of each contestant that is not the base, in the tables' order."""

_DISPENSABLE = ("family", "ns/out", "kept", "temp", "shape", "cases", "dtype")
"""What a narrow terminal does without, by the first word of the column, in order."""

_MISSING = "–"
_TEXT, _MUTED, _LINE = "#222222", "#777777", "#dddddd"

_POOL_NOTES: str = f"""\
Ratios are times in units of jaxpool's: 3.1x took 3.1 times as long. A ~ says that the \
middle halves of both samples of times overlap: the run does not tell them apart.
forward: the result. gradient: the result and the input's gradient, together.
{YARDSTICK}: adds 1 to every element of the input, which memory bandwidth limits.
ns/out: jaxpool's nanoseconds for each element of the result. ± is half the distance \
between the quartiles.
temp: temporary values of the compiled pass as XLA planned them. kept: what a gradient \
saves from the forward for the backward pass, where those are separate. MiB."""
_MODEL_NOTES: str = f"""\
Ratios are times of one training step in units of that with {STRIDE}, where a strided \
slice stands for each pool: 1.2x spends a sixth of its time on pooling.
A ~ says that the middle halves of both samples of times overlap: the run does not \
tell them apart. ± is half the distance between the quartiles.
temp: temporary values of the compiled step as XLA planned them, MiB."""
_OP_NOTES: str = f"""\
Ratios are times in units of {MEAN}'s with the same window, strides and padding: 3.1x \
took 3.1 times as long. Ops that take no such window stand beside {MEAN} of 2/2/0, and \
those that give no map beside global_{MEAN} (window: all). A ~ says that the middle \
halves of both samples of times overlap: the run does not tell them apart.
forward: the result. gradient: the result and the input's gradient, together. ± is \
half the distance between the quartiles.
(evaluation): an op that samples, with deterministic=True; without it as in training.
temp: temporary values of the compiled pass as XLA planned them, in units of the \
input."""

_NOTES = {OURS: _POOL_NOTES, STRIDE: _MODEL_NOTES, MEAN: _OP_NOTES}
_TITLES = {OURS: "Pooling", STRIDE: "Training steps", MEAN: f"Every op beside {MEAN}"}

Cells = list[list[str]]


def line(row: Mapping[str, Any]) -> str:
    """Returns one line on a finished row."""
    base = row["base"]
    ratios = [f"{name} {_ratio(row, name)}" for name in row["ratios"]]
    time = _digits(row["times"][base]["median_ms"])
    head = f"{row['case']}, {row['op']} {row['window']} {row['dtype']}"
    return f"{head} {row['direction']}: {base} {time} ms, {', '.join(ratios)}"


def print_tables(results: Results) -> None:
    """Prints the results as tables on standard output.

    Example:
      >>> from jaxpool.bench import bench, print_tables
      >>> results = bench(quick=True, suite=["ops"], ops=["min"], rounds=1, out="times")
      >>> print_tables(results)  # doctest: +ELLIPSIS
      ops, f32, ...
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file has room, and no reader to fold it for
    for title, cells in _tables(results):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.title, table.title_justify = title, "left"
        header, *lines = _narrowed(cells, console.width)
        left = _left(header)
        for name in header:
            table.add_column(
                _stacked(name),
                justify="left" if name in left else "right",
                overflow="fold",
            )
        for texts in lines:
            table.add_row(*texts)
        console.print(table)
    for note in [*_left_out(results), *_notes(results)]:
        console.print(note, style="dim")


def _stacked(name: str) -> str:
    """Returns a column's name with its words below one another."""
    return name if name == YARDSTICK else name.replace(" ", "\n")


def _narrowed(cells: Cells, width: int) -> Cells:
    """Leaves out columns, as few as need be, of a table that is wider than `width`.

    bench.md has them all.
    """
    columns = [list(column) for column in zip(*cells, strict=True)]
    for kind in _DISPENSABLE:
        widths = [
            max(map(len, [*_stacked(name).splitlines(), *texts]))
            for name, *texts in columns
        ]
        if sum(widths) + 2 * len(widths) <= width:
            break
        columns = [c for c in columns if c[0].split()[0] != kind]
    return [list(line) for line in zip(*columns, strict=True)]


def write_report(folder: Path, results: Results) -> None:
    """Writes bench.md and bench.png into `folder`."""
    text = _markdown(results)
    replace(folder / "bench.md", lambda path: path.write_text(text, "utf-8"))
    figure = _figure(results)
    replace(folder / "bench.png", lambda path: figure.savefig(path, dpi=160))


def _base(results: Results) -> str:
    """Returns whose time the ratios are in units of, the same in all rows."""
    return results["rows"][0]["base"] if results["rows"] else OURS


def _notes(results: Results) -> list[str]:
    base = _base(results)
    lines = _NOTES[base].splitlines()
    if base == MEAN:
        kinds = dict.fromkeys(row["dtype"] for row in results["rows"])
        lines += [_kept(b, dtype, results) for dtype in kinds for b in BOUNDS]
    return lines


def _kept(bound: Bound, dtype: str, results: Results) -> str:
    """Returns a line on who keeps a bound, and who does not, the worst first."""
    amounts = bound.amounts(row for row in results["rows"] if row["dtype"] == dtype)
    # A few bytes more than an array are none more.
    over = [(amount, row) for amount, row in amounts if round(amount, 2) > bound.limit]
    over.sort(key=lambda pair: -pair[0])
    names = [f"{r['op']} {r['window']} ({_digits(amount)}x)" for amount, r in over]
    whose = f"{', '.join(bound.families) or 'all'}, {dtype} {bound.direction}"
    rule = f"{bound.what} at most {bound.limit:g}x in {whose}"
    kept = f"{len(amounts) - len(over)} of {len(amounts)}"
    return f"Bound: {rule}: kept by {kept}; not by {', '.join(names) or 'none'}."


def _title(results: Results) -> str:
    return f"{_TITLES[_base(results)]} on {results['environment']['device']}"


def _subtitle(results: Results) -> str:
    environment = results["environment"]
    names = ["jax", *(name for name in _shown(results) if name in PEERS)]
    versions = [f"{name} {environment[name]}" for name in names if name in environment]
    cpus = f"{environment['cpus']} CPUs"
    settings = results["settings"]
    pools = _base(results) != STRIDE
    layout = [settings["layout"].replace("_", " ")] if pools else []
    state = ["interrupted"] if results["interrupted"] else []
    return ", ".join([*versions, cpus, *layout, *state])


def _shown(results: Results) -> list[str]:
    """Returns the contestants that some row has a ratio of, in a fixed order."""
    present = {name for row in results["rows"] for name in row["ratios"]}
    return [name for name in _STYLES if name in present]


def _tables(results: Results) -> list[tuple[str, Cells]]:
    """Returns titles and cells, headers first."""
    tables = []
    suites: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        suites.setdefault((row["suite"], row["dtype"]), []).append(row)
    for (suite, dtype), rows in suites.items():
        if rows[0]["base"] == MEAN:
            shape = _shape(rows[0])
            tables.append((f"{suite}, {dtype}, {shape}", _op_cells(rows)))
            continue
        tables.append((f"{suite}, {dtype}", _case_cells(rows, _shown(results))))
    if results["summary"]:
        tables.append(("all cases", _summary_cells(results["summary"])))
    return tables


def _case_cells(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Cells:
    base = rows[0]["base"]
    pools = base == OURS
    memory = [OURS, "flax"] if pools else [base, OURS, "flax"]
    header = ["case", "op", "shape", "window", "pass", f"{base} ms"]
    header += ["ns/out"] * pools + list(names)
    header += [f"temp {name}" for name in memory]
    header += [f"kept {name}" for name in memory] * pools
    lines = [header]
    for row in rows:
        cells = [
            row["case"],
            row["op"],
            _shape(row),
            row["window"],
            row["direction"],
            _milliseconds(row),
        ]
        if pools:
            time = row["times"][base]["median_ms"]
            cells.append(_digits(1e6 * time / row["outputs"]))
        cells += [_ratio(row, name) for name in names]
        keys = ["temp_bytes", "residual_bytes"] if pools else ["temp_bytes"]
        for key in keys:
            cells += [_mebi(row["costs"].get(name, {}).get(key)) for name in memory]
        lines.append(cells)
    return lines


def _op_cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    header = ["op", "family", "window", "pass", f"{MEAN} ms", "ratio", "temp inputs"]
    lines = [header]
    for row in rows:
        temp = temporaries(row)
        texts = [row["op"], row["case"], row["window"], row["direction"]]
        temp = _MISSING if temp is None else f"{temp:.2f}"
        lines.append([*texts, _milliseconds(row), _ratio(row, OURS), temp])
    return lines


def _shape(row: Mapping[str, Any]) -> str:
    return "×".join(map(str, row["shape"]))


def _milliseconds(row: Mapping[str, Any]) -> str:
    """Returns the base's time, and half the distance between its quartiles."""
    time = row["times"][row["base"]]
    width = (time["q3_ms"] - time["q1_ms"]) / 2
    return f"{_digits(time['median_ms'])} ±{100 * width / time['median_ms']:.0f}%"


def _summary_cells(summary: Sequence[Mapping[str, Any]]) -> Cells:
    header = ["op", "dtype", "pass", "peer", "geometric mean", "worst", "worst case"]
    lines = [[*header, "cases"]]
    for entry in summary:
        lines.append(
            [
                entry["op"],
                entry["dtype"],
                entry["direction"],
                entry["peer"],
                _times(entry["geometric_mean"]),
                _times(entry["worst"]),
                entry["worst_case"],
                str(entry["cases"]),
            ]
        )
    return lines


def _left(header: Sequence[str]) -> set[str]:
    """Returns the columns of text."""
    texts = {
        "family",
        "case",
        "op",
        "shape",
        "window",
        "pass",
        "dtype",
        "peer",
        "worst case",
    }
    return texts & set(header)


def _left_out(results: Results) -> list[str]:
    """Returns a line for each reason why a peer was not timed."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in results["rows"]:
        for name, reason in row["notes"].items():
            case = f"{row['case']} {row['op']} {row['window']}"
            reasons.setdefault((name, reason), []).append(case)
    missing = results["not_installed"]
    lines = [f"Not installed: {', '.join(missing)}."] if missing else []
    for (name, reason), cases in reasons.items():
        lines.append(f"{name} {reason}: {', '.join(dict.fromkeys(cases))}.")
    return lines


def _ratio(row: Mapping[str, Any], name: str) -> str:
    if name not in row["ratios"]:
        disagrees = row["notes"].get(name, "").startswith("disagrees")
        return "disagrees" if disagrees else _MISSING
    one, other = row["times"][name], row["times"][row["base"]]
    close = one["q1_ms"] <= other["q3_ms"] and other["q1_ms"] <= one["q3_ms"]
    return f"{'~' if close else ''}{_times(row['ratios'][name])}"


def _times(ratio: float) -> str:
    limits = (9.95, 1.995, 0.0995)
    digits = sum(ratio < limit for limit in limits)
    return f"{ratio:.{digits}f}x"


def _digits(value: float) -> str:
    """Returns a number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _mebi(count: float | None) -> str:
    """Returns bytes in MiB."""
    if count is None:
        return _MISSING
    value = count / 2**20
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:.2f}" if 0 < value < 1 else _digits(value) if value else "0"


def _markdown(results: Results) -> str:
    parts = [f"# {_title(results)}", f"{_subtitle(results)}."]
    for title, (header, *lines) in _tables(results):
        left = _left(header)
        rule = ["---" if name in left else "---:" for name in header]
        rows = [header, rule, *lines]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
        parts += [f"## {title}", table]
    notes = [*_left_out(results), *_notes(results)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n"


def _figure(results: Results) -> Figure:
    """Draws a panel for each pass and dtype; they share a line for each case."""
    rows, names = results["rows"], _shown(results)
    labels = list(dict.fromkeys(map(_label, rows)))
    panels = list(dict.fromkeys((row["dtype"], row["direction"]) for row in rows))
    height = 1.5 + 0.27 * len(labels)
    text_width = 0.078 * max(map(len, labels)) + 0.2
    width = text_width + 4.2 * len(panels)
    figure = Figure(figsize=(max(width, 7.5), height))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=text_width / figure.get_figwidth(),
        right=1 - 0.25 / figure.get_figwidth(),
        bottom=0.35 / height,
        top=1 - 1.15 / height,
        wspace=0.06,
    )
    base = rows[0]["base"]
    inch = 1 / figure.get_figwidth()
    text = {"x": 0.15 * inch, "va": "top", "color": _TEXT}
    figure.text(y=1 - 0.14 / height, s=_title(results), size=14, weight="bold", **text)
    figure.text(y=1 - 0.44 / height, s=_subtitle(results), size=9, **text)
    handles = [_dot(name, label=name) for name in names]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.05 * inch, 1 - 0.6 / height),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handletextpad=0.2,
        columnspacing=1.2,
    )
    for panel, key in zip(axes, panels, strict=True):
        chosen = [row for row in rows if (row["dtype"], row["direction"]) == key]
        title = f"{key[1]}, {key[0]}: time in units of {base}'s (right is slower)"
        panel.set_title(title, loc="left", fontsize=9.5, color=_TEXT)
        _draw(panel, chosen, labels)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].tick_params(axis="y", colors=_TEXT, labelsize=8.5)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    return figure


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['case']}  {row['op']} {row['window']}"


def _dot(name: str, xs: Sequence[float] = (), ys: Sequence[float] = (), **others):
    color, marker = _STYLES[name]
    return Line2D(
        xs, ys, color=color, marker=marker, linestyle="", markersize=5.5, **others
    )


def _draw(
    panel: Axes, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> None:
    """Draws each ratio as a dot on its case's line; right of 1 is slower."""
    ratios = [ratio for row in rows for ratio in row["ratios"].values()]
    low, high = min([*ratios, 0.8]) / 1.15, max([*ratios, 1.25]) * 1.15
    panel.set_xscale("log")
    panel.set_xlim(low, high)
    ticks = [m * 10**e for e in range(-3, 5) for m in (1, 2, 5)]
    if high / low > 100:
        ticks = [10**e for e in range(-3, 5)]
    elif high / low < 3:
        ticks += [0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.4, 1.6, 1.8]
    ticks = [tick for tick in ticks if low <= tick <= high]
    panel.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, colors=_MUTED, labelsize=8)
    panel.grid(color=_LINE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.axvline(1, color=_TEXT, linewidth=1.2)
    for row in rows:
        y = labels.index(_label(row))
        for name, ratio in row["ratios"].items():
            panel.add_line(_dot(name, [ratio], [y]))
