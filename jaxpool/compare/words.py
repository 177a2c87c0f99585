"""The results in words and tables, before they are set as text, Markdown or HTML."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxpool.compare.results import Results, accuracies, ranked
from jaxpool.compare.timing import ROUNDS
from jaxpool.compare.verdict import (
    CONFIDENCE,
    Verdict,
    conclusions,
    learning,
    lessons,
    reference,
    verdicts,
)

__all__ = [
    "Block",
    "blocks",
    "joint_block",
    "joint_ranks",
    "joint_titles",
    "narrow",
    "number",
    "readable",
    "subtitle",
    "title",
]

_RANGE = "Range: the lowest and the highest seed."
_NOTES = f"""\
Accuracy: on all test images, the mean over seeds.
{_RANGE}
vs: the difference of means ± half of its {CONFIDENCE:.0%} confidence interval, by \
Welch, for each method by itself; * if told apart.
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
_JOINT = """\
Mean rank: of a method's mean accuracy among the methods that every data set has, 1 is \
the best, equal ones share theirs; what differs by less than the spread over seeds is \
ranked too.
In brackets: the difference from {} ± half of its confidence interval, * if told \
apart, as in the table of each data set."""
_MISSING = "–"


class Block(NamedTuple):
    """A part of a report.

    Attributes:
      title: its heading, or nothing.
      header: the names of a table's columns, the first of which is of names.
      rows: the table's cells; without any there is no table.
      lines: sentences, below the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[str]


def readable(name: str) -> str:
    """Returns a name in one line of text: that of a file may hold any bytes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in name
    )


def title(results: Results) -> str:
    """Returns the heading of a report on one data set."""
    return f"Pooling on {readable(results['settings']['data'])}, {_model(results)}"


def joint_titles(parts: Mapping[str, Results]) -> tuple[str, str]:
    """Returns heading and second line of a report on several data sets."""
    *most, last = map(readable, parts)
    names = f"{', '.join(most)} and {last}" if most else last
    some = next(iter(parts.values()))
    return f"Pooling on {names}, {_model(some)}", _training(some)


def _model(results: Results) -> str:
    environment = results["environment"]
    device, count = environment["device"], environment["devices"]
    devices = device if count == 1 else f"{count} × {device}"
    return f"{results['settings']['model']} model, {devices}"


def _training(results: Results) -> str:
    settings = results["settings"]
    return (
        f"{_count(settings['epochs'], 'epoch')}, batch {settings['batch']}, "
        f"learning rate {settings['lr']:g}, jax {results['environment']['jax']}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def subtitle(results: Results) -> str:
    """Returns the second line of a report on one data set."""
    data = results["data"]
    size = "×".join(map(str, data["image"]))
    seeds = max(len(entry["runs"]) for entry in results["methods"].values())
    return (
        f"{data['train']:,} training and {data['test']:,} test images of {size}, "
        f"{_count(seeds, 'seed')}, {_training(results)}"
    )


def blocks(results: Results) -> list[Block]:
    """Returns all that is said about one data set; the first block has the table."""
    costs = ("infer ms", "train ms", "infer MB", "train MB", "params", "learned")
    header = ["method", "accuracy %", "range %", f"vs {reference(results)}", *costs]
    found = [Block("", header, _rows(results), _NOTES.splitlines())]
    if sentences := conclusions(results):
        found.append(Block("Differences and the spread over seeds", (), (), sentences))
    if learned := learning(results):
        header = ["method", "learned", "moved", "first loss", "last loss"]
        rows = []
        for name, means in learned:
            count = results["methods"][name].get("costs", {}).get("learned")
            rows.append([name, number(count), *map(number, means.values())])
        lines = [*lessons(results), *_LEARNED.splitlines()]
        found.append(Block("What pooling layers learned", header, rows, lines))
    return found


def narrow(block: Block) -> Block:
    """Returns the table of a data set without ranges, for a terminal."""
    shown = [i for i, name in enumerate(block.header) if name != "range %"]
    return block._replace(
        header=[block.header[i] for i in shown],
        rows=[[row[i] for i in shown] for row in block.rows],
        lines=[line for line in block.lines if line != _RANGE],
    )


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
                number(costs.get("inference_ms")),
                number(costs.get("train_step_ms")),
                number(costs.get("inference_bytes"), 1e6),
                number(costs.get("train_bytes"), 1e6),
                number(costs.get("parameters")),
                number(costs.get("learned")),
            ]
        )
    return rows


def joint_ranks(parts: Mapping[str, Results]) -> list[tuple[str, float | None]]:
    """Returns the methods by their mean rank; None, and last, if some data lack it."""
    means = [
        {name: statistics.mean(accuracies(entry)) for name, entry in ranked(results)}
        for results in parts.values()
    ]
    names = _unique(name for found in means for name in found)
    everywhere = [name for name in names if all(name in found for found in means)]
    ranks = [stats.rankdata([-found[n] for n in everywhere]) for found in means]
    mean = dict(zip(everywhere, np.mean(ranks, axis=0).tolist(), strict=True))
    ordered = sorted(everywhere, key=mean.__getitem__)
    return [(n, mean.get(n)) for n in _unique([*ordered, *names])]


def _unique(names: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(names)]


def joint_block(parts: Mapping[str, Results]) -> Block:
    """Returns the table of all data sets."""
    found = {data: verdicts(results) for data, results in parts.items()}
    rows = []
    for name, rank in joint_ranks(parts):
        row = [name, _MISSING if rank is None else f"{rank:.1f}"]
        for data, results in parts.items():
            scores = accuracies(results["methods"].get(name, {"runs": []}))
            cell = f"{statistics.mean(scores):.1f}" if scores else _MISSING
            if name in found[data]:
                cell += f" ({_difference(found[data][name])})"
            row.append(cell)
        rows.append(row)
    header = ["method", "mean rank", *(f"{readable(data)} %" for data in parts)]
    base = ", ".join(_unique(reference(results) for results in parts.values()))
    return Block("All data sets", header, rows, _JOINT.format(base).splitlines())


def number(value: float | None, unit: float = 1) -> str:
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
    margin = "" if verdict.margin is None else f" ± {verdict.margin:.1f}"
    return f"{verdict.difference:+.1f}{'*' if verdict.told_apart else ''}{margin}"
