"""Files that are whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

__all__ = ["replace", "unfinished"]


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Makes a file under a temporary name, so that `path` is never half written.

    Contents reach the disk before they get their name: what is there after a loss of
    power is whole too. A folder that has gone is made anew.

    Raises:
      OSError: if that fails, with `path` as its file; what was there is left.
    """
    temporary = path.with_name(unfinished(path, secrets.token_hex(4)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def unfinished(path: Path, mark: str) -> str:
    """The name of `path` until it is whole, hidden; `mark` tells two of them apart."""
    return f".{path.stem}.{mark}.unfinished{path.suffix}"
