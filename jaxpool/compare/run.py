"""A comparison under way: trains, measures, and saves what is finished."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
)

from jaxpool.compare import checkpoints
from jaxpool.compare.data import Dataset
from jaxpool.compare.logs import curves
from jaxpool.compare.methods import Method, all_methods
from jaxpool.compare.processes import is_first, of_first, together
from jaxpool.compare.report import summary
from jaxpool.compare.results import Results, write
from jaxpool.compare.settings import Settings
from jaxpool.compare.timing import ROUNDS, measure, memory
from jaxpool.compare.training import (
    Program,
    State,
    can_go_side_by_side,
    compile_program,
    steps_per_epoch,
    train,
)

__all__ = ["Keep", "Part", "Run", "progress_bar"]


def progress_bar() -> Progress:
    """Returns a bar on standard error, which shows in the first process's terminal."""
    quiet = not is_first()
    console = Console(stderr=True, soft_wrap=True, highlight=False, quiet=quiet)
    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


@dataclass(frozen=True)
class Keep:
    """How seeds are trained and what is kept of them, besides their results.

    Attributes:
      beside: how many seeds of a method are trained side by side, None for as many as
        are likely to be faster so, and fit.
      log: the folder of their curves, or None.
      checkpoint: whether to save what they trained.
    """

    beside: int | None = None
    log: Path | None = None
    checkpoint: bool = False


@dataclass(frozen=True)
class Part:
    """A comparison on one data set.

    Attributes:
      settings: what all methods share.
      dataset: the images.
      results: what is finished; every change is written to `path` at once.
      path: results.json.
      keep: what is kept besides results.
    """

    settings: Settings
    dataset: Dataset
    results: Results
    path: Path
    keep: Keep

    def facts(self) -> list[dict[str, object]]:
        """Returns what has to be the same in every process."""
        return [self.settings.summary(), self.dataset.summary()]


class Run:
    """What one comparison works with.

    Attributes:
      progress: where progress shows.
      programs: what has been compiled so far, by method name.
    """

    def __init__(self, part: Part, progress: Progress):
        """Starts with nothing compiled."""
        self.settings = part.settings
        self.dataset = part.dataset
        self.results = part.results
        self.path = part.path
        self.keep = part.keep
        self.progress = progress
        self.programs: dict[str, Program] = {}

    def train(self, method: Method, seeds: int) -> None:
        """Trains a method with each of the first `seeds` seeds not yet finished.

        Those that are trained side by side are finished, and saved, together.
        """
        entry = self.results["methods"].setdefault(method.name, {"runs": []})
        finished = {run["seed"] for run in entry["runs"]}
        missing = [seed for seed in range(seeds) if seed not in finished]
        if not missing:
            return
        per_epoch = steps_per_epoch(self.dataset, self.settings)
        bar = self.progress.add_task("", total=self.settings.epochs * per_epoch)
        programs = {1: self._compile(method, bar)}
        most = self.keep.beside or of_first(lambda: _fitting(programs[1], missing))
        for first in range(0, len(missing), most):
            group = missing[first : first + most]
            beside = len(group)
            if beside not in programs:
                label = f"{method.name}: compiling for {beside} seeds side by side"
                self.progress.update(bar, description=label)
                program = compile_program(method, self.dataset, self.settings, beside)
                programs[beside] = program
            numbers = "seed " if beside == 1 else f"seeds {group[0] + 1} to "
            label = f"{method.name}: {numbers}{group[-1] + 1} of {seeds}, step"
            self.progress.reset(bar, description=label)
            entry["runs"] += self._train(method.name, programs[beside], group, bar)
            self.save()
        self.progress.remove_task(bar)
        self.progress.console.print(summary(method.name, entry))

    def _train(
        self, name: str, program: Program, seeds: Sequence[int], bar: TaskID
    ) -> list[dict[str, Any]]:
        """Trains some seeds side by side; their networks are saved before they are."""
        on_step = partial(self.progress.advance, bar)
        with contextlib.ExitStack() as held:
            on_epoch = None
            if self.keep.log:
                log = curves(self.keep.log, self.settings.data, name, seeds)
                on_epoch = held.enter_context(log)
            runs, states = train(
                program, self.dataset, self.settings, seeds, on_step, on_epoch
            )
        if self.keep.checkpoint:
            together(lambda: self._keep_networks(name, seeds, states))
        if len(seeds) > 1:
            runs = [{**run, "beside": len(seeds)} for run in runs]
        return runs

    def _keep_networks(
        self, name: str, seeds: Sequence[int], states: Sequence[State]
    ) -> None:
        for seed, state in zip(seeds, states, strict=True):
            if is_first():
                checkpoints.save(self.path.parent, name, seed, state, self.dataset)

    def measure(self) -> None:
        """Measures all methods side by side, if any of them changed or lacks it."""
        entries = self.results["methods"]
        if not self.programs and all("costs" in entry for entry in entries.values()):
            return
        known = all_methods()
        bar = self.progress.add_task("", total=ROUNDS + 1)
        for name in [name for name in entries if name not in self.programs]:
            self._compile(known[name], bar)
        self.progress.update(bar, description="measuring: round")
        on_round = partial(self.progress.advance, bar)
        costs = measure(self.programs, self.dataset, self.settings, on_round)
        for name, entry in entries.items():
            entry["costs"] = costs[name]
        self.save()

    def save(self) -> None:
        """Writes results.json."""
        together(lambda: write(self.path, self.results) if is_first() else None)

    def _compile(self, method: Method, bar: TaskID) -> Program:
        self.progress.update(bar, description=f"{method.name}: compiling")
        program = compile_program(method, self.dataset, self.settings)
        self.programs[method.name] = program
        return program


def _fitting(program: Program, seeds: Sequence[int]) -> int:
    """How many seeds to train side by side, of those that are missing.

    On CPUs it is one: side by side they are no faster. Elsewhere it is as many as the
    device has memory for, by XLA's plan for one of them.
    """
    device = jax.local_devices()[0]
    room = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu" or not room or not can_go_side_by_side():
        return 1
    needed = memory(program.step) or room
    return min(max(room // needed, 1), len(seeds))
