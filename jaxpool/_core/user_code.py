"""Users' code that commands load and run; and of an error, whose it is.

A command that cannot do what it was asked for says so in one line. What breaks in the
user's code is said with its file and line. All else is a fault of jaxpool.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxpool._core.window import fail

__all__ = [
    "UserError",
    "complaint",
    "is_fault",
    "is_linen",
    "is_nnx",
    "load",
    "needed",
    "running",
    "where",
]

_HERE = Path(__file__).parents[1]
_CALLERS = ("explain", "deploy/command.py", "deploy/functions.py", "_core/user_code.py")
"""Files that call users' code: an error that is raised there comes from the call."""
_STANDARD = Path(sysconfig.get_path("stdlib"))
_INSTALLED = {"site-packages", "dist-packages"}
_MOST_TEXT = 500
_folders: list[Path] = []  # where the code lies that was loaded


class UserError(ValueError):
    """What cannot be done as it was asked for; a command prints it in one line."""


def is_linen(model: Any) -> bool:
    """Whether it is a module of Flax Linen; imports nothing."""
    return _stands_on(model, "flax.linen.module")


def is_nnx(model: Any) -> bool:
    """Whether it is a module of Flax NNX; imports nothing."""
    return _stands_on(model, "flax.nnx.module")


def _stands_on(model: Any, module: str) -> bool:
    """Whether it is an object of the class `Module` of a module, without its import."""
    kinds = ((k.__module__, k.__name__) for k in type(model).__mro__)
    return (module, "Module") in kinds


def load(caller: str, place: str) -> ModuleType:
    """Returns a module, of a file ending in .py or by its name.

    Raises:
      UserError: for what is not there, and for what the code raises when it runs.
    """
    return _file(caller, place) if place.endswith(".py") else _module(caller, place)


def _file(caller: str, place: str) -> ModuleType:
    path = Path(place).absolute()
    if not path.is_file():
        raise fail(caller, "model", "must be a file that exists", place, UserError)
    _folders.append(path.parent)
    sys.path.insert(0, str(path.parent))  # for what it imports, as in a script
    name = path.stem
    while name in sys.modules:  # a file may be called types.py
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with running(caller, place):
        spec.loader.exec_module(module)
    return module


def _module(caller: str, place: str) -> ModuleType:
    rule = "must be a file ending in .py, or a module that can be imported"
    if not all(part.isidentifier() for part in place.split(".")):
        raise fail(caller, "model", rule, place, UserError)
    sys.path.insert(0, "")  # as for `python -m`
    with running(caller, place):
        spec = importlib.util.find_spec(place.partition(".")[0])
        if spec and spec.origin:
            _folders.append(Path(spec.origin).absolute().parent)
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and not f"{place}.".startswith(f"{error.name}."):
                raise  # something that it imports itself
            raise fail(caller, "model", rule, place, UserError) from None


def needed(value: Callable[..., Any]) -> list[str] | None:
    """The arguments without which a function or class cannot be called.

    None for a function of any number of them, as `partial(module.apply, variables)` is,
    and for one that Python knows no signature of.
    """
    call = value if isinstance(value, functools.partial) else functools.partial(value)
    is_class = isinstance(call.func, type)
    if is_class:  # of an NNX class the signature itself takes anything
        make = call.func.__init__
        call = functools.partial(make, None, *call.args, **call.keywords)
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return None
    if not is_class and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    fixed = (p for p in parameters if p.kind not in variable)
    return [p.name for p in fixed if p.default is p.empty]


@contextlib.contextmanager
def running(caller: str, what: str) -> Iterator[None]:
    """A context that runs users' code: what that raises becomes a `UserError`."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_fault(error) or (_is_meant(error) and not where(error)):
            raise
        raise UserError(f"`{caller}`: {what} fails: {_told(error)}") from error


def where(error: BaseException) -> str | None:
    """The innermost line of users' code that an error passed, as FILE:LINE."""
    place = None
    for file, line in _lines(error):
        if _is_users(file):
            place = file, line
    if place is None:
        return None
    file, line = place
    here = Path.cwd()
    return f"{file.relative_to(here) if file.is_relative_to(here) else file}:{line}"


def complaint(error: BaseException) -> str | None:
    """What the user can mend, in one line; None for a fault of jaxpool itself."""
    if _is_meant(error):
        return _told(error, kind=False)
    files = _files(error)
    return _told(error) if files and _is_users(files[-1]) else None


def is_fault(error: BaseException) -> bool:
    """Whether an error from a call of users' code is one that jaxpool made in it."""
    files = _files(error)
    if _is_meant(error) or not files or not files[-1].is_relative_to(_HERE):
        return False
    file = files[-1].relative_to(_HERE)
    return not any(file.is_relative_to(caller) for caller in _CALLERS)


def _is_meant(error: BaseException) -> bool:
    """Whether it says what is wrong with a request, or what there is too little of."""
    text = str(error)
    meant = isinstance(error, UserError | OSError | MemoryError)
    # All that jaxpool raises begins with a name; XLA has no class for memory.
    return meant or text.startswith("`") or "RESOURCE_EXHAUSTED" in text


def _told(error: BaseException, kind: bool = True) -> str:
    """What an error says, in one line, with its place in users' code if it has one."""
    text = " ".join(filter(None, map(str.strip, str(error).splitlines())))
    if kind or not text:
        text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = None if isinstance(error, UserError) else where(error)
    return f"{text} ({place})" if place else text


def _lines(error: BaseException) -> Iterator[tuple[Path, int]]:
    """Files and lines that an error passed, the innermost last."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield Path(frame.f_code.co_filename), line
    if isinstance(error, SyntaxError) and error.filename:
        yield Path(error.filename), error.lineno or 1


def _files(error: BaseException) -> list[Path]:
    """The files that an error passed but those of libraries, the innermost last."""
    return [
        file
        for file, _ in _lines(error)
        if file.is_relative_to(_HERE) or _is_users(file) or not _is_library(file)
    ]


def _is_library(file: Path) -> bool:
    installed = not _INSTALLED.isdisjoint(file.parts)
    return installed or file.is_relative_to(_STANDARD) or str(file).startswith("<")


def _is_users(file: Path) -> bool:
    """Whether a file lies where users' code was loaded from."""
    return not file.is_relative_to(_HERE) and any(
        file.is_relative_to(folder)
        and _INSTALLED.isdisjoint(file.relative_to(folder).parts)
        for folder in _folders
    )
