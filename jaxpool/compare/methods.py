"""The methods to compare: two baselines, and whatever fits in the table of ops."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxpool
import jaxpool.nnx
from jaxpool._core.op import OPS, PoolOp
from jaxpool.compare.settings import check

__all__ = ["Layer", "Method", "all_methods", "choose", "left_out"]

Layer = Callable[..., jax.Array]


def halve(x: jax.Array) -> jax.Array:
    """Returns the maxima of 2x2 windows of `x` [B, H, W, C]."""
    return jaxpool.max_pool(x, (2, 2), strides=(2, 2))


def keep(x: jax.Array) -> jax.Array:
    """Returns `x` [B, H, W, C] as it is."""
    return x


def every_second(x: jax.Array) -> jax.Array:
    """Returns every second row and column of `x` [B, H, W, C]."""
    return x[:, ::2, ::2]


def flatten(x: jax.Array) -> jax.Array:
    """Returns `x` [B, ...] as [B, features]."""
    return x.reshape(x.shape[0], -1)


def first(x: jax.Array, *others: jax.Array) -> jax.Array:
    """Returns the first of several arrays."""
    return x


_BASELINES: dict[str, Layer] = {"none": keep, "stride": every_second}


@dataclass(frozen=True)
class Method:
    """A way to go from images to features between and after convolutions.

    A method that makes maps smaller follows each block. Any other is a head: it acts
    once, after the last block, and blocks are followed by `halve`.

    Attributes:
      name: what the user calls it.
      op: None for a baseline.
      options: keyword arguments of the op's module besides sizes.
    """

    name: str
    op: PoolOp | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def after_block(self, x: jax.ShapeDtypeStruct, rngs: nnx.Rngs) -> list[Layer]:
        """Returns the layers that follow a block whose output is like `x`."""
        if self.op is None:
            return [_BASELINES[self.name]]
        return self.layers(x.shape, rngs) if self._shrinks else [halve]

    def before_head(self, x: jax.ShapeDtypeStruct, rngs: nnx.Rngs) -> list[Layer]:
        """Returns the layers that make [B, features] of the last block's output."""
        if self.op is None or self._shrinks:
            return [flatten]
        return [*self.layers(x.shape, rngs), flatten]

    def layers(self, shape: Sequence[int], rngs: nnx.Rngs) -> list[Layer]:
        """Returns the op's own layers for input of a shape [B, H, W, C]."""
        op = self.op
        assert op is not None
        module = getattr(jaxpool.nnx, op.module_name)
        takes = inspect.signature(module).parameters
        streams = {"rngs": rngs} if "rngs" in takes else {}
        pool = module(**{**op.sizes(shape), **self.options}, **streams)
        return [pool] if op.outputs == 1 else [pool, first]

    @cached_property
    def _shrinks(self) -> bool:
        """Whether the op makes a map with fewer pixels of a map."""
        x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)

        def pooled(x: jax.Array) -> jax.Array:
            return nnx.Sequential(*self.layers(x.shape, nnx.Rngs(0)))(x)

        y = jax.eval_shape(pooled, x)
        return y.ndim == x.ndim and math.prod(y.shape[1:3]) < math.prod(x.shape[1:3])


def all_methods() -> dict[str, Method]:
    """Returns every method by name: the baselines, then the ops in table order."""
    methods = [Method(name) for name in _BASELINES]
    for op in OPS.values():
        if not _misfit(op):
            methods += _variants(op)
    return {method.name: method for method in methods}


def left_out() -> dict[str, list[str]]:
    """Returns the names that `all` does not stand for, by the reason."""
    reasons: dict[str, list[str]] = {}
    for op in OPS.values():
        if reason := _misfit(op):
            reasons.setdefault(reason, []).append(op.method)
    return reasons


def choose(
    names: Sequence[str],
    argument: str = "methods",
    check: Callable[[bool, str, str, object], None] = check,
) -> list[Method]:
    """Returns the methods that these names stand for, each once.

    Names that are not known fail `check`, as values of `argument`.

    A name stands for a method, for a family of ops, or, if it is `all`, for all. Where
    a method and a family share a name it is the method's; `family:NAME` is the family.
    """
    methods = all_methods()
    families: dict[str, list[Method]] = {}
    for method in methods.values():
        if method.op:
            families.setdefault(method.op.family, []).append(method)
    groups = {
        **families,
        **{f"family:{name}": family for name, family in families.items()},
        **{name: [method] for name, method in methods.items()},
        "all": list(methods.values()),
    }
    reasons = {name: why for why, those in left_out().items() for name in those}
    check(len(names) > 0, argument, "must name at least one method", names)
    for name in names:
        close = difflib.get_close_matches(name, groups) or methods
        rule = f"must be known (did you mean {', '.join(close)}?)"
        if name in reasons:
            rule = f"must fit into the network ({name}: {reasons[name]})"
        check(name in groups, argument, rule, name)
    return list({m.name: m for name in names for m in groups[name]}.values())


def _misfit(op: PoolOp) -> str:
    """Why a module of `op` cannot stand in the network; nothing if it can."""
    if isinstance(op.compare, str):
        return op.compare
    if op.integer:
        return "takes integers alone"
    parameters = inspect.signature(op.fn).parameters
    empty = inspect.Parameter.empty
    missing = [n for n in op.inputs[1:] if parameters[n].default is empty]
    missing += sorted(op.required - op.sizes((1, 8, 8, 4)).keys() - op.compare.keys())
    return f"needs {', '.join(missing)}" if missing else ""


def _variants(op: PoolOp) -> list[Method]:
    """Returns an op's method, and a second one where it has something to learn."""
    assert not isinstance(op.compare, str)
    if not op.learned:
        return [Method(op.method, op, op.compare)]
    return [
        Method(op.method, op, {**op.compare, "trainable": False}),
        Method(f"{op.method}_learned", op, {**op.compare, "trainable": True}),
    ]
