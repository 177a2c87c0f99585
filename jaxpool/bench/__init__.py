"""Times pooling side by side with other frameworks: `jaxpool bench`, or `bench(...)`.

Needs the packages of the extra `jaxpool[bench]`; those of `jaxpool[peers]` take part
where they are installed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from jaxpool.bench import models, pools
from jaxpool.bench import ops as every_op
from jaxpool.bench.contestants import PEERS, Contestant, contestants
from jaxpool.bench.problem import Problem, itemsize, memory
from jaxpool.bench.report import line, print_tables, write_report
from jaxpool.bench.results import FILE, Results, Row, begin, save
from jaxpool.bench.saved import go_on
from jaxpool.bench.settings import Settings
from jaxpool.compare.files import reserve
from jaxpool.compare.run import progress_bar
from jaxpool.compare.settings import UserError

__all__ = ["UserError", "bench", "print_tables"]


def bench(
    *,
    quick: bool = False,
    ops: Sequence[str] = ("all",),
    dtype: Sequence[str] = ("f32",),
    suite: Sequence[str] = ("models",),
    peers: Sequence[str] = tuple(PEERS),
    layout: str = "channels_last",
    rounds: int = 9,
    model: str | None = None,
    out: str | Path = "jaxpool-bench",
    resume: bool = False,
) -> Results:
    """Times jaxpool and its peers on the same problems, in turns.

    A peer whose results differ from jaxpool's is not timed. Every finished case is
    saved at once; Ctrl-C ends the run early. Progress goes to standard error.

    Args:
      quick: keep a third of the cases, with small batches.
      ops: max, avg or all; in the suite ops what `jaxpool compare` takes as methods.
      dtype: f32, bf16, f16.
      suite: models (windows of real networks), windows, batch, channels,
        adaptive; or ops, which times every op beside `avg_pool`, and no peers.
      peers: whom to compare with.
      layout: channels_last or channels_first, for those who know both.
      rounds: rounds of timing of each case; slow cases make do with fewer.
      model: small, resnet18, unet or all: time training steps of networks in place
        of pools.
      out: the folder for bench.json, bench.md and bench.png; what an earlier run left
        there is replaced.
      resume: go on from `out` instead, keeping the cases that are finished there.
        Everything else must be as it was.

    Returns:
      What bench.json holds, see `jaxpool.bench.results.Results`.

    Raises:
      UserError: (a ValueError) for an argument that breaks a rule, or an `out` that
        cannot be resumed, cannot be written to, or is in use by another process.
      OSError: for a disk that is full, or fails otherwise, later on. What was finished
        before is kept.

    Example:
      Every maximum of the family `extremum` beside `avg_pool`, in one quick round:

      >>> from jaxpool.bench import bench
      >>> results = bench(quick=True, suite=["ops"], ops=["max"], rounds=1, out="times")
      >>> [row["direction"] for row in results["rows"]]
      ['forward', 'gradient']
      >>> sorted(results["rows"][0]["times"])
      ['avg_pool', 'jaxpool']
    """
    settings = Settings(
        tuple(suite),
        tuple(ops),
        tuple(dtype),
        tuple(peers),
        layout,
        rounds,
        quick,
        model,
    )
    known = contestants(() if settings.of_ops else settings.peers)
    present = {name: who for name, who in known.items() if who.installed()}
    results = begin(asdict(settings), [name for name in known if name not in present])
    path = Path(out) / FILE
    jobs = _jobs(settings, present)
    with reserve("bench", path), progress_bar() as progress:
        if resume and path.exists():
            results = go_on(path, results)
        finished = {row["job"] for row in results["rows"]}
        bar = progress.add_task("", total=len(jobs), completed=len(finished))
        try:
            for number, (name, job) in enumerate(jobs):
                if number in finished:
                    continue
                progress.update(bar, description=name)
                rows = job()
                save(path, results, rows, number)
                progress.advance(bar)
                for row in results["rows"][-len(rows) :]:
                    progress.console.print(line(row))
        except KeyboardInterrupt:
            results["interrupted"] = True
        if results["rows"]:
            save(path, results)
            write_report(path.parent, results)
    return results


def _jobs(
    settings: Settings, present: dict[str, Contestant]
) -> list[tuple[str, Callable[[], list[Row]]]]:
    """Returns what is to be timed: a name, and a call that returns its rows."""
    if settings.model is not None:
        return [
            (network.name, partial(models.measure, network, settings.rounds))
            for network in models.networks(settings.model)
        ]
    if settings.of_ops:
        shape = every_op.QUICK if settings.quick else every_op.SHAPE
        return [
            (
                f"{trial.name} {trial.window}, {dtype}",
                partial(every_op.measure, trial, shape, dtype, settings.rounds),
            )
            for dtype in dict.fromkeys(settings.dtype)
            for trial in settings.trials()
        ]
    limit = memory()

    def pool(suite, case, dtype) -> list[Row]:
        problem = Problem(case.scaled(limit, itemsize(dtype)), dtype, settings.layout)
        return pools.measure(suite, problem, present, settings.rounds)

    return [
        (f"{case.name}, {case.op}, {dtype}", partial(pool, suite, case, dtype))
        for dtype in dict.fromkeys(settings.dtype)
        for suite, case in settings.cases()
    ]
