"""The settings of a comparison in a file."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpool.compare.forms import (
    COUNT,
    FLAG,
    NUMBER,
    TEXT,
    TEXTS,
    Form,
    conform,
    either,
)
from jaxpool.compare.settings import UserError, check

__all__ = ["FORM", "read_config"]

_AUTO = either(COUNT, TEXT)
FORM: Mapping[str, Form] = {
    "data": either(TEXT, TEXTS),
    "methods": either(TEXT, TEXTS),
    "baseline": TEXT,
    "model": TEXT,
    "epochs": COUNT,
    "batch": COUNT,
    "seeds": COUNT,
    "lr": NUMBER,
    "size": COUNT,
    "parallel_seeds": _AUTO,
    "out": TEXT,
    "log": TEXT,
    "checkpoint": FLAG,
    "resume": FLAG,
}
"""What each setting of `jaxpool.compare.compare` looks like in a file."""


def read_config(path: str) -> dict[str, Any]:
    """Reads settings of `jaxpool compare` from a TOML file.

    Args:
      path: the file. Its names are the command's options, as `parallel-seeds` or
        `parallel_seeds`; names in a list may also be text, with commas between them.

    Returns:
      What the file sets, by the names of `jaxpool.compare.compare`'s arguments.

    Raises:
      UserError: for a file that cannot be read, an unknown name, or a value of another
        kind; the message says which.
    """
    try:
        text = Path(path).read_text("utf-8")
        settings = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"`compare`: `config` {path} is not readable: {why}") from error
    found = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        close = difflib.get_close_matches(name, FORM, n=1) or FORM
        rule = f"must hold options alone (did you mean {', '.join(close)}?)"
        check(name in FORM, "config", f"{path} {rule}", key)
        check(name not in found, "config", f"{path} must set each option once", key)
        try:
            conform(value, FORM[name], key)
        except ValueError as error:
            raise UserError(f"`compare`: `config` {path}: {error}") from error
        found[name] = value
    return found
