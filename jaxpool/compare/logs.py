"""Curves of loss and accuracy, for TensorBoard and as CSV."""

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxpool._core.window import fail
from jaxpool.compare.processes import is_first
from jaxpool.compare.settings import UserError

__all__ = ["OnEpoch", "begin", "curves"]

_COLUMNS = ("data", "method", "seed", "epoch", "loss", "accuracy")

OnEpoch = Callable[[Sequence[float], Sequence[float]], object]
"""What to call behind each epoch, with each seed's loss in it and accuracy after it."""


def begin(folder: Path) -> None:
    """Makes the folder of all curves.

    Raises:
      UserError: if that cannot be done, or a package is missing.
    """
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        needs = "needs the package tensorboardX: pip install 'jaxpool[compare]'"
        raise UserError(f"`compare`: `log` {needs}") from error
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or error
        rule = f"must be a folder that can be written to ({why})"
        raise fail("compare", "log", rule, str(folder), UserError) from error


@contextlib.contextmanager
def curves(
    folder: Path, data: str, method: str, seeds: Sequence[int]
) -> Iterator[OnEpoch]:
    """Writes what each epoch of some seeds gives, as soon as it is over.

    METHOD/seed0 and so on then hold an event file of TensorBoard and curve.csv, begun
    anew whenever the seed is. Of several processes the first one alone writes.
    """
    with contextlib.ExitStack() as held:
        writers = [
            held.enter_context(_curve(folder / method / f"seed{seed}"))
            for seed in (seeds if is_first() else ())
        ]
        epochs = 0

        def on_epoch(losses: Sequence[float], accuracies: Sequence[float]) -> None:
            nonlocal epochs
            epochs += 1
            for i, write in enumerate(writers):
                write([data, method, seeds[i], epochs, losses[i], accuracies[i]])

        yield on_epoch


@contextlib.contextmanager
def _curve(folder: Path) -> Iterator[Callable[[Sequence[object]], None]]:
    """Opens the files of one seed; yields what writes a row of `_COLUMNS` to both."""
    from tensorboardX import SummaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()
    with (
        open(folder / "curve.csv", "w", newline="", encoding="utf-8") as file,
        SummaryWriter(str(folder)) as events,
    ):
        table = csv.writer(file)
        table.writerow(_COLUMNS)

        def write(row: Sequence[Any]) -> None:
            table.writerow(row)
            file.flush()
            *_, epoch, loss, accuracy = row
            events.add_scalar("loss", loss, epoch)
            events.add_scalar("accuracy", accuracy, epoch)
            events.flush()

        yield write
