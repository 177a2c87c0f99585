"""What differs by more than chance, and what learned: said in sentences."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxpool.compare.results import Results, accuracies, ranked

__all__ = [
    "CONFIDENCE",
    "Verdict",
    "conclusions",
    "learning",
    "lessons",
    "reference",
    "verdicts",
]

_LEVEL = 0.05
CONFIDENCE = 0.95
"""Of the interval of each difference."""


class Verdict(NamedTuple):
    """How a method's accuracy compares with the reference.

    Attributes:
      difference: of the means over seeds, in percentage points.
      told_apart: whether that is more than the spread over seeds explains.
      apart: whether all seeds lie on one side of all of the reference's, several each,
        as they may by chance.
      margin: half of the difference's confidence interval, in percentage points; None
        where one seed, or seeds that are all equal, show no spread.
    """

    difference: float
    told_apart: bool
    apart: bool
    margin: float | None


def reference(results: Results) -> str:
    """Returns what the others are compared with.

    That is the baseline that was asked for, `max` by default, or else the first method
    that has a finished seed.
    """
    names = [name for name, entry in results["methods"].items() if entry["runs"]]
    wanted = results.get("report", {}).get("baseline", "max")
    return wanted if wanted in names else names[0]


def verdicts(results: Results) -> dict[str, Verdict]:
    """Compares each method that has a finished seed with the reference.

    By Welch's t-test over seeds, which does not assume equal spreads, at a false
    discovery rate (Benjamini and Hochberg) of 5 %: among many methods, tests one by
    one would find some difference by chance alone. The intervals are Welch's too, each
    for itself.

    Seeds are not taken in pairs, though runs of one seed start from the same
    convolutions and see images in the same order: where their accuracies go together,
    intervals of unpaired seeds are wider than need be, never narrower; pairs of few
    seeds leave half of the degrees of freedom; and methods need not have the same
    seeds.
    """
    name, entries = reference(results), dict(ranked(results))
    scores = {n: accuracies(entry) for n, entry in entries.items()}
    base = scores.pop(name)
    tests = {n: _welch(own, base) for n, own in scores.items()}
    ps = [p for p, _ in tests.values()]
    found = stats.false_discovery_control(ps) if ps else ()
    mean = statistics.mean(base)
    return {
        n: Verdict(
            statistics.mean(scores[n]) - mean,
            bool(p <= _LEVEL),
            _apart(scores[n], base),
            margin,
        )
        for (n, (_, margin)), p in zip(tests.items(), found, strict=True)
    }


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    return min(len(a), len(b)) > 1 and (max(a) < min(b) or min(a) > max(b))


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float | None]:
    """Returns the p-value of a difference between means, and half of its interval.

    They are 1 and None where none can be had.
    """
    if min(len(a), len(b)) < 2:
        return 1.0, None
    parts = [(statistics.mean(s), statistics.stdev(s), len(s)) for s in (a, b)]
    p = stats.ttest_ind_from_stats(*parts[0], *parts[1], equal_var=False).pvalue
    variances = [stdev**2 / n for _, stdev, n in parts]
    total = sum(variances)
    if not total:
        return 1.0 if np.isnan(p) else float(p), None  # NaN: both are equal
    freedom = 1 / sum(
        (v / total) ** 2 / (n - 1)
        for v, (_, _, n) in zip(variances, parts, strict=True)
    )
    return float(p), float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * total**0.5)


def conclusions(results: Results) -> list[str]:
    """Returns sentences on which methods are told apart from the reference."""
    name, found = reference(results), verdicts(results)
    seeds = min(len(entry["runs"]) for _, entry in ranked(results))
    if not found:
        return []
    titles = (
        f"Better than {name}",
        f"Worse than {name}",
        f"Not told apart, but every seed above all of {name}'s",
        f"Not told apart, but every seed below all of {name}'s",
        f"Not told apart from {name}",
    )

    def title(verdict: Verdict) -> str:
        if not (verdict.told_apart or verdict.apart):
            return titles[-1]
        return titles[2 * (not verdict.told_apart) + (verdict.difference < 0)]

    groups = {t: [n for n, v in found.items() if title(v) == t] for t in titles}
    lines = [f"{t}: {', '.join(those)}." for t, those in groups.items() if those]
    if seeds < 2:
        lines.append("One seed shows no spread: two or more can tell methods apart.")
    elif not any(v.told_apart or v.apart for v in found.values()):
        lines.append(f"No difference from {name} is larger than the spread over seeds.")
    lines.append(
        "Told apart: by Welch's t-test over seeds at a false discovery rate of "
        f"{_LEVEL:.0%} over all methods; the test images are always the same. With "
        f"{seeds} seeds only differences of several times the spread show: not told "
        "apart does not mean equal."
    )
    return lines


def learning(results: Results) -> list[tuple[str, dict[str, float]]]:
    """Returns means over seeds of each method whose pooling learns, in table order."""
    keys = ("moved", "first_loss", "loss")
    return [
        (
            name,
            {key: statistics.mean(run[key] for run in entry["runs"]) for key in keys},
        )
        for name, entry in results["methods"].items()
        if entry["runs"] and all(run.get("moved") is not None for run in entry["runs"])
    ]


def lessons(results: Results) -> list[str]:
    """Returns sentences on whether every pooling layer that can learn did."""
    runs = {n: results["methods"][n]["runs"] for n, _ in learning(results)}
    if not runs:
        return []
    bad = {
        "whose training loss did not fall": [
            n for n, all_ in runs.items() if not all(_fell(run) for run in all_)
        ],
        "whose pooling layers' parameters did not move": [
            n for n, all_ in runs.items() if not all(run["moved"] > 0 for run in all_)
        ],
    }
    lines = [
        f"Methods {what}: {', '.join(those)}." for what, those in bad.items() if those
    ]
    if not lines:
        lines.append(
            f"Methods whose pooling layers learn: {len(runs)}. With every seed their "
            "parameters moved and the training loss fell."
        )
    return lines


def _fell(run: dict[str, Any]) -> bool:
    return run["loss"] < run["first_loss"]
