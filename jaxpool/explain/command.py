"""The command `jaxpool shape`."""

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from jaxpool._core.window import fail
from jaxpool.explain import Explanation, Memory, explain, explain_chain, memory
from jaxpool.explain.programs import is_linen, is_nnx

__all__ = ["UserError", "load", "shape"]

_SHAPE = re.compile(r"\d+(x\d+)*")


class UserError(ValueError):
    """A request that breaks a rule; the command prints it without a traceback."""


def shape(what: str, rest: Sequence[str], **options: Any) -> int:
    """Prints what is asked for.

    Args:
      what: a shape, or where a model is.
      rest: layers, or the model's input shape.
      **options: the command's options, by name.

    Returns:
      The exit code: 0, or 1 where the layers or the model break for the input.

    Raises:
      UserError: for a request that breaks a rule.
    """
    is_chain = _SHAPE.fullmatch(what) is not None
    _check(options, is_chain)
    model = None if is_chain else load(what)
    needs = None
    with Console(stderr=True).status("Following the layers"):
        if is_chain:
            explained = _asked(explain_chain, _sizes(what), rest)
        else:
            explained, needs = _of_model(model, rest, options)
    _print(explained, needs, options)
    return 1 if explained.broken else 0


def load(reference: str) -> Any:
    """Returns the model that FILE.py:NAME or package.module:NAME stands for.

    What makes a model, a class or a function without arguments but `rngs`, is called,
    abstractly: no weights are computed.

    Args:
      reference: where it is.

    Raises:
      UserError: for what is not there, and for what is no model.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        rule = "must be a shape such as 224x224x3, or FILE.py:NAME"
        raise fail("shape", "model", rule, reference, UserError)
    module = _module(place)
    if not hasattr(module, name):
        rule = f"must name something in {place}"
        raise fail("shape", "model", rule, name, UserError)
    model = _made(getattr(module, name))
    if not callable(model):
        rule = "must be a module of Flax, what makes one, or a function of an array"
        raise fail("shape", "model", rule, model, UserError)
    return model


def _module(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix != ".py":
        sys.path.insert(0, "")  # as for `python -m`
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and not f"{place}.".startswith(f"{error.name}."):
                raise  # something that it imports itself
            rule = "must be a file ending in .py, or a module that can be imported"
            raise fail("shape", "model", rule, place, UserError) from None
    if not path.is_file():
        raise fail("shape", "model", "must be a file that exists", place, UserError)
    sys.path.insert(0, str(path.resolve().parent))  # for what it imports
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _made(value: Any) -> Any:
    """The model that a class or a function makes, if it makes one."""
    if is_linen(value) or is_nnx(value) or not callable(value):
        return value
    is_class = isinstance(value, type)
    try:
        parameters = inspect.signature(value.__init__ if is_class else value).parameters
    except ValueError:
        return value
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        p
        for p in [*parameters.values()][is_class:]
        if p.default is p.empty and p.kind not in variable
    ]
    if {p.name for p in needed} - {"rngs"}:
        return value  # a function of an array
    from flax import nnx

    def make() -> Any:
        return value(**({"rngs": nnx.Rngs(0)} if needed else {}))

    if is_class and not issubclass(value, nnx.Module):
        return make()
    try:
        return nnx.eval_shape(make)
    except TypeError:  # what it makes is no NNX module
        return make()


def _check(options: dict[str, Any], is_chain: bool) -> None:
    of_models = ("axis", "set", "memory", "batch", "swap")
    for name in of_models:
        if is_chain and options[name]:
            rule = "must be left out for a chain of layers"
            raise fail("shape", name, rule, options[name], UserError)
    for name in ("batch", "swap"):
        if options[name] and not options["memory"]:
            rule = "must be left out without --memory"
            raise fail("shape", name, rule, options[name], UserError)


def _of_model(
    model: Any, rest: Sequence[str], options: dict[str, Any]
) -> tuple[Explanation, Memory | None]:
    if len(rest) != 1 or not _SHAPE.fullmatch(rest[0]):
        rule = "must be one shape such as 1x224x224x3, for a model"
        raise fail("shape", "shape", rule, " ".join(rest), UserError)
    sizes, extra = _sizes(rest[0]), dict(map(_setting, options["set"]))
    extra["dtype"] = _dtype(options["dtype"])
    axis = options["axis"]
    if axis is not None:
        axis = [_number("axis", a) for a in axis.split(",")]
    explained = _asked(explain, model, sizes, axis=axis, **extra)
    if explained.broken or not options["memory"]:
        return explained, None
    swap = dict(map(_pair, options["swap"] or ()))
    batch = options["batch"]
    return explained, _asked(memory, model, sizes, batch=batch, swap=swap, **extra)


def _asked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a function whose complaints are the user's to read."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(str(error)) from error


def _print(explained: Explanation, needs: Memory | None, options: dict) -> None:
    if options["json"]:
        plain = {**explained.to_dict(), "memory": needs.to_dict() if needs else None}
        print(json.dumps(plain, indent=2))
        return
    explained.print(every=options["all"])
    if needs:
        print()
        needs.print()


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise fail("shape", option, "must be made of ints", text, UserError) from None


def _pair(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    if not old or not new:
        raise fail("shape", "swap", "must be OLD=NEW", text, UserError)
    return old, new


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value:
        raise fail("shape", "set", "must be NAME=VALUE", text, UserError)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _dtype(name: str) -> Any:
    try:
        return jnp.dtype(name)
    except TypeError:
        raise fail(
            "shape", "dtype", "must be a dtype of JAX", name, UserError
        ) from None
