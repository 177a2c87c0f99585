"""Files of results: whole or not there, written by one process, checked when read."""

import contextlib
import itertools
import json
import os
import re
import secrets
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxpool._core.files import replace, unfinished
from jaxpool._core.window import fail
from jaxpool.compare.forms import Form, conform
from jaxpool.compare.settings import UserError

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None

__all__ = ["folder_name", "read", "replace", "reserve"]


def folder_name(name: str, taken: Container[str] = ()) -> str:
    """Returns a name for a folder of what is of a data set, unlike those taken."""
    last = name.removeprefix("hf:").rstrip("/").split("/")[-1].removesuffix(".npz")
    plain = re.sub(r"[^\w.-]+", "-", last, flags=re.ASCII)[:60].strip("-.") or "data"
    names = itertools.chain([plain], (f"{plain}-{n}" for n in itertools.count(2)))
    return next(each for each in names if each not in taken)


@contextlib.contextmanager
def reserve(caller: str, path: Path) -> Iterator[None]:
    """Keeps a folder, in which `path` is to be, for this process alone.

    The system gives the folder back when the process ends in whatever way, and a lock
    leaves nothing behind. Where the file system knows no locks, there is none.

    Raises:
      UserError: for a folder that cannot be made or written to, or that another
        process holds.
    """
    if jax.process_index() > 0:  # of several hosts the first one writes
        yield
        return
    folder = path.parent
    new = not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / unfinished(path, secrets.token_hex(4))
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or error
        rule = f"must be a folder that can be written to ({why})"
        raise fail(caller, "out", rule, str(folder), UserError) from error
    with _lock(caller, folder) as locked:
        if locked:
            for left in folder.glob(".*.unfinished.*"):  # by one that was killed
                left.unlink(missing_ok=True)
        try:
            yield
        finally:
            if new:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


@contextlib.contextmanager
def _lock(caller: str, folder: Path) -> Iterator[bool]:
    """Locks a folder, if its file system can, and tells whether that is so."""
    if fcntl is None:
        yield False
        return
    try:
        held = os.open(folder, os.O_RDONLY)
    except OSError:  # it may be written to and not be listed
        yield False
        return
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            rule = "must not be in use by another process"
            raise fail(caller, "out", rule, str(folder), UserError) from error
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(held)


def read(
    caller: str, path: Path, form: Form, more: Callable[[Any], object] = lambda _: None
) -> Any:
    """Reads JSON of a form; `more` may ask more of it.

    Raises:
      UserError: if the file is not whole or not of that form; it says where.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        conform(value, form)
        more(value)
    except (OSError, ValueError, RecursionError) as error:  # the last: deep nesting
        why = getattr(error, "strerror", None) or error
        problem = f"`{caller}`: `out` {path} is not readable: {why}"
        raise UserError(problem) from error
    return value
