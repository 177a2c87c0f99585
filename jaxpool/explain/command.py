"""The command `jaxpool shape`."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from rich.console import Console

from jaxpool._core import user_code
from jaxpool._core.user_code import UserError, is_linen, is_nnx
from jaxpool._core.window import fail
from jaxpool.explain import Explanation, Memory, explain, explain_chain, memory

__all__ = ["load", "shape"]

_SHAPE = re.compile(r"\d+(x\d+)*")


def shape(what: str, rest: Sequence[str], **options: Any) -> int:
    """Prints what is asked for.

    Args:
      what: a shape, or where a model is.
      rest: layers, or the model's input shape.
      **options: the command's options, by name.

    Returns:
      The exit code: 0, or 1 where the layers or the model break for the input.

    Raises:
      ValueError, TypeError, RuntimeError: for a request that breaks a rule.
    """
    is_chain = _SHAPE.fullmatch(what) is not None
    _check(options, is_chain)
    model = None if is_chain else load(what)
    needs = None
    with Console(stderr=True).status("Following the layers"):
        if is_chain:
            explained = explain_chain(_sizes(what), rest)
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
    module = user_code.load("shape", place)
    if not hasattr(module, name):
        rule = f"must name something in {place}"
        raise fail("shape", "model", rule, name, UserError)
    with user_code.running("shape", reference):
        model = _made(getattr(module, name))
    if not callable(model):
        rule = "must be a module of Flax, what makes one, or a function of an array"
        raise fail("shape", "model", rule, model, UserError)
    return model


def _made(value: Any) -> Any:
    """The model that a class or a function makes, if it makes one."""
    if is_linen(value) or is_nnx(value) or not callable(value):
        return value
    is_class = isinstance(value, type)
    needed = user_code.needed(value)
    if needed is None:
        return value  # a function of arrays
    if more := [name for name in needed if name != "rngs"]:
        if is_class:
            rule = "must be an instance, or a function that makes one, of a class that "
            rule += f"takes {', '.join(more)}"
            raise fail("shape", "model", rule, value.__name__, UserError)
        return value  # a function of an array
    from flax import nnx

    def make() -> Any:
        return value(**({"rngs": nnx.Rngs(0)} if needed else {}))

    if is_class and not issubclass(value, nnx.Module):
        return make()
    try:
        return nnx.eval_shape(make)
    except Exception:  # it makes no NNX module, or draws from `Rngs` of its own
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
    explained = explain(model, sizes, axis=axis, **extra)
    if explained.broken or not options["memory"]:
        return explained, None
    swap = dict(map(_pair, options["swap"] or ()))
    batch = options["batch"]
    return explained, memory(model, sizes, batch=batch, swap=swap, **extra)


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
