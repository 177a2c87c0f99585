"""Flax Linen modules over the functions of `jaxpool`, one for each op.

A module takes its function's arguments as attributes and its arrays when it is called:
`MaxPool((2, 2), strides=(2, 2))(x)` is `max_pool(x, (2, 2), strides=(2, 2))`. Classes
are made from the op table; `help(jaxpool.linen.MaxPool)` shows its arguments.
"""

import dataclasses
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxpool  # noqa: F401 (fills the op table)
from jaxpool._core.module import (
    Shown,
    Step,
    arguments,
    document,
    freeze,
    learned_start,
    validate,
)
from jaxpool._core.op import OPS, PoolOp
from jaxpool._core.window import as_flag


class PoolModule(nn.Module):
    """The base of all pooling modules: an op and its arguments."""

    _op: ClassVar[PoolOp]
    extra: ClassVar[tuple[tuple[str, Any], ...]] = ()

    def __post_init__(self) -> None:
        """Checks the window when the module is built."""
        for field in map(_field, self._op.settings):
            object.__setattr__(self, field, freeze(getattr(self, field)))
        own = {n: getattr(self, n) for n in _OWN if hasattr(self, n)}
        validate(self._op, {**_settings(self), **own})
        super().__post_init__()

    @nn.compact
    def __call__(self, *inputs: Any, where: Any = None, **named: Any) -> Any:
        """Pools the inputs, by position or name; `where` masks them, if it may."""
        masks = {} if where is None else {"where": where}
        return self._op.fn(*inputs, **named, **_config(self), **masks)


class RandomPoolModule(PoolModule):
    """The base of modules that sample, with keys as in `nn.Dropout`."""

    extra = (("deterministic", None), ("rng_collection", "dropout"))

    @nn.compact
    def __call__(
        self,
        *inputs: Any,
        where: Any = None,
        deterministic: bool | None = None,
        rng: jax.Array | None = None,
        **named: Any,
    ) -> Any:
        """Pools the inputs; `deterministic` is given here or as an attribute."""
        masks = {} if where is None else {"where": where}
        attribute = getattr(self, "deterministic", None)
        deterministic = nn.merge_param("deterministic", attribute, deterministic)
        as_flag(self._op.module_name, "deterministic", deterministic)
        if not deterministic and rng is None:
            rng = self.make_rng(getattr(self, "rng_collection", "dropout"))
        sampling = {"key": rng, "deterministic": bool(deterministic)}
        return self._op.fn(*inputs, **named, **_config(self), **masks, **sampling)


# Functions and no methods: those of a module Flax counts as calls of it, which
# `nn.tabulate` shows, and cannot have while a module is being built.


def _settings(module: PoolModule) -> dict[str, Any]:
    return {name: getattr(module, _field(name)) for name in module._op.settings}


def _config(module: PoolModule) -> dict[str, Any]:
    op = module._op
    config = {name: getattr(module, _field(name)) for name in op.config}
    arrays = {
        name: module.param(name, initial, shape, jnp.float32)
        for name, (shape, initial) in op.weights_for(_settings(module)).items()
    }
    config |= op.passed(arrays)
    for name in op.learned if getattr(module, "trainable", False) else ():
        features = getattr(module, "features", None)
        start, shape = learned_start(op, name, config[name], features)
        initial = nn.initializers.constant(start)
        config[name] = module.param(name, initial, shape, jnp.float32)
    return config


_OWN = ("trainable", "rng_collection")  # attributes that are no argument of the op


def _field(argument: str) -> str:
    """The attribute for an argument; `init` is a method of `nn.Module`, so `init_`."""
    return f"{argument}_" if hasattr(nn.Module, argument) else argument


def _example(op: PoolOp) -> list[Step]:
    shown = Shown(op)
    steps = [*shown.inputs, shown.built()]
    given, variables, sampling, still = shown.given, "{}", "", ""
    if op.takes_key:
        steps.append(('rngs = {"dropout": jax.random.key(1)}', ""))
        sampling, still = ", deterministic=False, rngs=rngs", ", deterministic=True"
    if op.learned or op.learned_arrays:
        start = f"pool.init(jax.random.key(0), {given}{still})"
        steps.append((f"variables = {start}", ""))
        variables = "variables"
    steps.append(shown.called(f"pool.apply({variables}, {given}{sampling})"))
    return [*steps, *shown.parameter('variables["params"]["{}"]')]


def _module(op: PoolOp) -> type[PoolModule]:
    base = RandomPoolModule if op.takes_key else PoolModule
    fields = arguments(op, *base.extra).parameters.values()
    facts: dict[str, Any] = {
        "_op": op,
        "__annotations__": {_field(f.name): Any for f in fields},
        "__doc__": document(op, __name__, _example(op)),
        "__module__": __name__,
        "__qualname__": op.module_name,
    }
    for f in fields:
        if f.default is not f.empty:
            facts[_field(f.name)] = f.default
        elif f.kind is f.KEYWORD_ONLY:
            facts[_field(f.name)] = dataclasses.field(kw_only=True)
    return cast(type[PoolModule], type(op.module_name, (base,), facts))


globals().update({op.module_name: _module(op) for op in OPS.values()})
__all__ = sorted(op.module_name for op in OPS.values())  # pyright: ignore


def __getattr__(name: str) -> type[PoolModule]:
    # Says to type checkers what the names above are.
    raise AttributeError(f"module `jaxpool.linen` has no pooling module `{name}`")
