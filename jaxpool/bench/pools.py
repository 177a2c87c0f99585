"""Times the pools of one problem, after it has seen that they agree."""

from collections.abc import Mapping

import numpy as np

from jaxpool.bench.contestants import OURS, Contestant, Entry, Unable
from jaxpool.bench.problem import DTYPES, Problem
from jaxpool.bench.results import Row
from jaxpool.bench.timing import interleave, spread

__all__ = ["PASSES", "measure"]

PASSES = ("forward", "gradient")


def measure(
    suite: str, problem: Problem, contestants: Mapping[str, Contestant], rounds: int
) -> list[Row]:
    """Returns a row for each pass of a problem.

    Args:
      suite: the suite's name, for the rows.
      problem: what to compute.
      contestants: who takes part, jaxpool among them.
      rounds: rounds of timing, at most.
    """
    entries, notes = _enter(problem, contestants)
    case = problem.case
    rows = []
    for which in PASSES:
        calls = {name: getattr(entry, which) for name, entry in entries.items()}
        times = {n: spread(t) for n, t in interleave(calls, rounds).items()}
        costs = {n: dict(entry.costs.get(which, {})) for n, entry in entries.items()}
        rows.append(
            Row(
                suite=suite,
                case=case.name,
                op=case.op,
                window=case.label,
                direction=which,
                dtype=problem.dtype,
                layout=problem.layout,
                shape=case.shape,
                input_bytes=problem.x.nbytes,
                outputs=problem.outputs,
                base=OURS,
                times=times,
                notes=notes,
                costs=costs,
            )
        )
    return rows


def _enter(
    problem: Problem, contestants: Mapping[str, Contestant]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Returns who can be timed, and why the others cannot."""
    entries, notes = {OURS: contestants[OURS].prepare(problem)}, {}
    expected = _results(entries[OURS])
    for name, contestant in contestants.items():
        if name == OURS:
            continue
        try:
            entry = contestant.prepare(problem)
            apart = _apart(_results(entry), expected, DTYPES[problem.dtype])
        except Unable as reason:
            notes[name] = str(reason)
        except Exception as error:  # whatever a framework raises is its own affair
            lines = str(error).strip().splitlines() or [""]
            notes[name] = f"failed: {type(error).__name__}: {lines[0]}"
        else:
            if apart is None:
                entries[name] = entry
            else:
                notes[name] = f"disagrees ({apart})"
    return entries, notes


def _results(entry: Entry) -> list[np.ndarray]:
    """Returns result and gradient, and the result that comes with the gradient."""
    if entry.to_numpy is None:
        return []
    return [entry.to_numpy(a) for a in (entry.forward(), *entry.gradient())]


def _apart(
    results: list[np.ndarray], expected: list[np.ndarray], tolerance: float
) -> str | None:
    """Returns how results differ from what is expected, None if they agree."""
    for got, want in zip(results, expected, strict=False):  # the yardstick has none
        if got.shape != want.shape:
            return f"shape {got.shape}, not {want.shape}"
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        error = float(np.abs(got - want).max(initial=0)) / scale
        if not error <= tolerance:  # so that NaN disagrees too
            return f"max error {error:.2g}"
    return None
