"""Compares pooling methods on real images: `jaxpool compare`, or `compare(...)`.

Needs the packages of the extra `jaxpool[compare]`.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxpool.compare.data import Dataset, load
from jaxpool.compare.files import reserve
from jaxpool.compare.methods import Method, choose, left_out
from jaxpool.compare.processes import is_first, of_first, together
from jaxpool.compare.report import print_table, write_report
from jaxpool.compare.results import FILE, Results, begin, ranked, read
from jaxpool.compare.run import Run, progress_bar
from jaxpool.compare.settings import MODELS, Settings, UserError, check, check_count

__all__ = ["DEFAULT_METHODS", "UserError", "compare", "print_results"]

DEFAULT_METHODS = (
    "max",
    "avg",
    "lp",
    "mixed",
    "mixed_learned",
    "stochastic",
    "adaptive_avg",
    "global_avg",
    "stride",
    "none",
)


def compare(
    *,
    data: str = "mnist5k",
    methods: Sequence[str] = DEFAULT_METHODS,
    model: str = "small",
    epochs: int = 4,
    batch: int = 16,
    seeds: int = 3,
    lr: float = 5e-3,
    out: str | Path = "jaxpool-results",
    resume: bool = False,
) -> Results:
    """Trains one small CNN with each pooling method and measures what it gives.

    Every finished seed is saved at once, so that an interrupted run can be resumed.
    Progress goes to standard error.

    On several hosts, call `jax.distributed.initialize` first, and this in every process
    with the same arguments: a step is one batch over all devices, and the first process
    alone reads and writes `out`.

    Args:
      data: `mnist5k`, `digits`, `hf:NAME` or the path of an .npz file.
      methods: names of methods or of families of ops (`family:NAME` where a method
        has a family's name), or `all`.
      model: `small`, `medium` or `large`.
      epochs: passes over the training images.
      batch: images in one step, a multiple of the number of devices.
      seeds: how many times to train each method.
      lr: Adam's learning rate at the start; it falls to zero along a cosine.
      out: the folder for results.json, results.md and results.png.
      resume: go on from `out`, keeping what is finished there. Methods and seeds may
        be added, everything else must be as it was.

    Returns:
      What results.json holds, see `jaxpool.compare.results.Results`.

    Raises:
      UserError: (a ValueError) for an argument that breaks a rule, or an `out` that
        holds results which are not to be resumed or cannot be, cannot be written to,
        or is in use by another process; in every process, if it is one in any of them.
      OSError: for a disk that is full, or fails otherwise, later on. What was finished
        before is kept.

    Example:
      One epoch on 8 x 8 digits, in seconds:

      >>> from jaxpool.compare import compare
      >>> results = compare(
      ...     data="digits", methods=("max", "stride"), epochs=1, seeds=1, out="digits"
      ... )
      >>> sorted(results["methods"])
      ['max', 'stride']
      >>> results["methods"]["max"]["runs"][0]["accuracy"] > 0.5
      True
    """
    path = Path(out) / FILE

    def request() -> tuple[Settings, list[Method]]:
        check_count("seeds", seeds)
        return Settings(data, model, epochs, batch, lr), choose(methods)

    def earlier() -> Results | None:
        rule = "must hold no results yet (pass --resume to go on, or another --out)"
        check(resume or not path.exists(), "out", rule, str(out))
        return read(path) if path.exists() else None

    def prepare() -> tuple[Dataset, Results]:
        dataset = load(data)
        _check_fits(settings, dataset)
        return dataset, begin(settings, dataset, previous)

    settings, chosen = together(request)
    with contextlib.ExitStack() as held:
        together(lambda: held.enter_context(reserve("compare", path)))
        previous = of_first(earlier)
        dataset, results = together(prepare)
        names = [method.name for method in chosen]
        _check_alike([asdict(settings), dataset.summary(), names, seeds])
        progress = held.enter_context(progress_bar())
        if "all" in methods:
            for reason, names in left_out().items():
                line = f"Left out: {', '.join(names)} ({reason})"
                progress.console.print(line, markup=False)
        run = Run(settings, dataset, results, path, progress)
        for method in progress.track(chosen, description="all methods"):
            run.train(method, seeds)
        run.measure()
        together(lambda: write_report(path.parent, results) if is_first() else None)
    return results


def print_results(out: str | Path) -> None:
    """Prints the table of what is finished in the folder `out`, if anything is.

    Example:
      >>> from jaxpool.compare import print_results
      >>> print_results("jaxpool-results")  # nothing, where nothing is finished
    """
    path = Path(out) / FILE
    if is_first() and path.exists() and ranked(results := read(path)):
        print_table(results)


def _check_alike(request: list[Any]) -> None:
    """Raises `UserError` in every process where one was asked for something else."""
    first = of_first(lambda: request)
    rule = "must be started alike: the same arguments and images in every process"
    together(lambda: check(request == first, "distributed", rule, request))


def _check_fits(settings: Settings, dataset: Dataset) -> None:
    """Raises `UserError` where the images cannot be trained on as asked."""
    count = len(dataset.x_train)
    rule = f"must be at most the number of training images, {count}"
    check(settings.batch <= count, "batch", rule, settings.batch)
    smallest = 2 ** len(MODELS[settings.model])
    rule = f"{settings.model} needs images of at least {smallest}x{smallest} pixels"
    height, width, _ = dataset.image_shape
    check(min(height, width) >= smallest, "model", rule, f"{height}x{width}")
