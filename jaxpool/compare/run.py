"""A comparison under way: trains, measures, and saves what is finished."""

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
)

from jaxpool.compare.data import Dataset
from jaxpool.compare.methods import Method, all_methods
from jaxpool.compare.processes import is_first, together
from jaxpool.compare.report import summary
from jaxpool.compare.results import Results, write
from jaxpool.compare.settings import Settings
from jaxpool.compare.timing import ROUNDS, measure
from jaxpool.compare.training import Program, compile_program, steps_per_epoch, train

__all__ = ["Run", "progress_bar"]


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


class Run:
    """What one comparison works with.

    Attributes:
      settings: what all methods share.
      dataset: the images.
      results: what is finished; every change is written to `path` at once.
      path: results.json.
      progress: where progress shows.
      programs: what has been compiled so far, by method name.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        results: Results,
        path: Path,
        progress: Progress,
    ):
        """Starts with nothing compiled."""
        self.settings = settings
        self.dataset = dataset
        self.results = results
        self.path = path
        self.progress = progress
        self.programs: dict[str, Program] = {}

    def train(self, method: Method, seeds: int) -> None:
        """Trains a method with each of the first `seeds` seeds not yet finished."""
        entry = self.results["methods"].setdefault(method.name, {"runs": []})
        finished = {run["seed"] for run in entry["runs"]}
        missing = [seed for seed in range(seeds) if seed not in finished]
        if not missing:
            return
        per_epoch = steps_per_epoch(self.dataset, self.settings)
        bar = self.progress.add_task("", total=self.settings.epochs * per_epoch)
        program = self._compile(method, bar)
        for seed in missing:
            label = f"{method.name}: seed {seed + 1} of {seeds}, step"
            self.progress.reset(bar, description=label)
            on_step = partial(self.progress.advance, bar)
            run = train(program, self.dataset, self.settings, seed, on_step)
            entry["runs"].append(run)
            self._write()
        self.progress.remove_task(bar)
        self.progress.console.print(summary(method.name, entry))

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
        self._write()

    def _write(self) -> None:
        together(lambda: write(self.path, self.results) if is_first() else None)

    def _compile(self, method: Method, bar: TaskID) -> Program:
        self.progress.update(bar, description=f"{method.name}: compiling")
        program = compile_program(method, self.dataset, self.settings)
        self.programs[method.name] = program
        return program
