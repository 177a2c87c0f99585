"""Compares pooling methods on real images: `jaxpool compare`, or `compare(...)`.

Needs the packages of the extra `jaxpool[compare]`.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxpool.compare import checkpoints, logs
from jaxpool.compare.checkpoints import restore
from jaxpool.compare.config import read_config
from jaxpool.compare.data import Dataset, load, resizable
from jaxpool.compare.files import folder_name, reserve
from jaxpool.compare.methods import Method, choose, left_out
from jaxpool.compare.processes import is_first, of_first, together
from jaxpool.compare.report import (
    print_joint_table,
    print_table,
    write_joint,
    write_report,
)
from jaxpool.compare.results import (
    FILE,
    Finished,
    Results,
    begin,
    finished,
    is_index,
    ranked,
    read,
    write_index,
)
from jaxpool.compare.run import Keep, Part, Run, progress_bar
from jaxpool.compare.settings import MODELS, Settings, UserError, check, check_count
from jaxpool.compare.training import can_go_side_by_side
from jaxpool.compare.words import readable

__all__ = [
    "DEFAULT_METHODS",
    "UserError",
    "compare",
    "print_results",
    "read_config",
    "restore",
]

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
    data: str | Sequence[str] = "mnist5k",
    methods: Sequence[str] = DEFAULT_METHODS,
    baseline: str | None = None,
    model: str = "small",
    epochs: int = 4,
    batch: int = 16,
    seeds: int = 3,
    lr: float = 5e-3,
    size: int | None = None,
    parallel_seeds: int | str = "auto",
    out: str | Path = "jaxpool-results",
    log: str | Path | None = None,
    checkpoint: bool = False,
    resume: bool = False,
) -> Results:
    """Trains one small CNN with each pooling method and measures what it gives.

    Every finished seed is saved at once, so that an interrupted run can be resumed.
    Progress goes to standard error.

    On several hosts, call `jax.distributed.initialize` first, and this in every process
    with the same arguments: a step is one batch over all devices, and the first process
    alone reads and writes `out`.

    Args:
      data: `mnist5k`, `digits`, `hf:NAME`, the path of an .npz file or of a folder of
        images, see `jaxpool.compare.data.load`; or several of them.
      methods: names of methods or of families of ops (`family:NAME` where a method
        has a family's name), or `all`.
      baseline: the method that the others are compared with; `max` by default, or the
        first one where that is not compared.
      model: `small`, `medium` or `large`.
      epochs: passes over the training images.
      batch: images in one step, a multiple of the number of devices.
      seeds: how many times to train each method.
      lr: Adam's learning rate at the start; it falls to zero along a cosine.
      size: height and width that the images of folders and of Hugging Face are brought
        to, None if they have one already.
      parallel_seeds: how many seeds of a method to train side by side, by `jax.vmap`;
        `auto` is 1 on CPUs, and elsewhere as many as the device has memory for. A
        seed's result then differs by what rounding does to it. Seeds that are trained
        side by side are finished, and saved, together.
      out: the folder for results.json, results.md, results.html and results.png; of
        several data sets each has a folder of its own in there.
      log: a folder for curves of loss and accuracy, by epoch, see
        `jaxpool.compare.logs.curves`.
      checkpoint: whether to save each seed's network in `out`, for `restore`.
      resume: go on from `out`, keeping what is finished there. Methods, seeds, and data
        sets where there are several, may be added, and what only the report, `log` and
        `checkpoint` ask for may be different; everything else must be as it was.

    Returns:
      What results.json holds, see `jaxpool.compare.results.Results`; for several data
      sets a mapping `datasets` from the name of each to that.

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
    folder = Path(out)
    joint = not isinstance(data, str)
    names = [data] if isinstance(data, str) else list(dict.fromkeys(data))

    def request() -> tuple[list[Settings], list[Method], Keep]:
        check_count("seeds", seeds)
        check(bool(names), "data", "must name at least one data set", data)
        sizes = [size if resizable(name) else None for name in names]
        rule = "must go with a folder of images or hf:NAME: others are not resized"
        check(size in (None, *sizes), "size", rule, size)
        wanted = [
            Settings(name, model, epochs, batch, lr, own)
            for name, own in zip(names, sizes, strict=True)
        ]
        return wanted, choose(methods), _keep(parallel_seeds, log, checkpoint)

    def earlier() -> Finished:
        rule = "must hold no results yet (pass --resume to go on, or another --out)"
        path = folder / FILE
        check(resume or not path.exists(), "out", rule, str(out))
        if path.exists():
            rule = f"must not hold results of {'one data set' if joint else 'several'}"
            check(is_index(path) == joint, "out", f"{rule} (take another)", str(out))
        if not joint:
            return {names[0]: ["", read(path) if path.exists() else None]}
        found = finished(folder) if path.exists() else {}
        for name in names:
            taken = [place for place, _ in found.values()]
            found.setdefault(name, [folder_name(name, taken), None])
        return found

    def prepare() -> list[Part]:
        if keep.log and is_first():
            logs.begin(keep.log)
        parts = []
        for settings in wanted:
            name = settings.data
            subfolder, results = previous[name]
            place = folder / subfolder
            if joint:
                held.enter_context(reserve("compare", place / FILE))
            dataset = load(name, settings.size)
            _check_fits(settings, dataset)
            results = begin(settings, dataset, results)
            results["report"] = {"baseline": _baseline(baseline, results, chosen)}
            own = keep.log and keep.log / (subfolder or folder_name(name))
            kept = replace(keep, log=own)
            parts.append(Part(settings, dataset, results, place / FILE, kept))
        return parts

    wanted, chosen, keep = together(request)
    with contextlib.ExitStack() as held:
        together(lambda: held.enter_context(reserve("compare", folder / FILE)))
        previous = of_first(earlier)
        parts = together(prepare)
        facts = [fact for part in parts for fact in part.facts()]
        methods_asked = [method.name for method in chosen]
        kinds = [keep.beside, keep.log is not None, keep.checkpoint, baseline]
        _check_alike([*facts, methods_asked, seeds, *kinds])
        if joint:
            places = {name: subfolder for name, (subfolder, _) in previous.items()}
            together(lambda: write_index(folder, places) if is_first() else None)
        progress = held.enter_context(progress_bar())
        if "all" in methods:
            for reason, those in left_out().items():
                line = f"Left out: {', '.join(those)} ({reason})"
                progress.console.print(line, markup=False)
        for part in parts:
            if joint:
                progress.console.print(f"{readable(part.settings.data)}:", markup=False)
            run = Run(part, progress)
            for method in progress.track(chosen, description="all methods"):
                run.train(method, seeds)
            run.measure()
            run.save()
            previous[part.settings.data][1] = part.results
        found = {name: results for name, (_, results) in previous.items() if results}
        together(lambda: _report(folder, parts, found if joint else None))
    return {"datasets": found} if joint else parts[0].results


def print_results(out: str | Path) -> None:
    """Prints the tables of what is finished in the folder `out`, if anything is.

    Example:
      >>> from jaxpool.compare import print_results
      >>> print_results("jaxpool-results")  # nothing, where nothing is finished
    """
    if not is_first() or not (Path(out) / FILE).exists():
        return
    found = {
        name: results
        for name, (_, results) in finished(Path(out)).items()
        if results and ranked(results)
    }
    for i, results in enumerate(found.values(), 1):
        print_table(results, notes=i == len(found))  # they are always the same
    if len(found) > 1:
        print_joint_table(found)


def _report(
    folder: Path, parts: Sequence[Part], found: Mapping[str, Results] | None
) -> None:
    """Writes the reports of what was compared, and one of all there is."""
    if not is_first():
        return
    for part in parts:
        write_report(part.path.parent, part.results)
    if found is not None:
        write_joint(folder, found)


def _keep(parallel_seeds: int | str, log: str | Path | None, checkpoint: bool) -> Keep:
    """Returns how seeds are to be trained and what is to be kept of them."""
    if isinstance(parallel_seeds, str):
        rule = "must be auto or an int"
        check(parallel_seeds == "auto", "parallel_seeds", rule, parallel_seeds)
        beside = None
    else:
        check_count("parallel_seeds", parallel_seeds)
        rule = f"must be 1 with jax {jax.__version__}, which cannot vmap this training"
        possible = parallel_seeds == 1 or can_go_side_by_side()
        check(possible, "parallel_seeds", rule, parallel_seeds)
        beside = parallel_seeds
    if checkpoint:
        checkpoints.check_installed()
    return Keep(beside, None if log is None else Path(log), checkpoint)


def _baseline(wanted: str | None, results: Results, chosen: Iterable[Method]) -> str:
    """Returns what the methods, earlier and new ones, are compared with."""
    names = [*dict.fromkeys([*results["methods"], *(m.name for m in chosen)])]
    rule = f"must be a method that is compared ({', '.join(names)})"
    check(wanted is None or wanted in names, "baseline", rule, wanted)
    return wanted or ("max" if "max" in names else names[0])


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
