"""The methods to compare: two baselines, and whatever fits in the table of ops."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
from flax import nnx

import jaxpool.nnx
from jaxpool._core.op import OPS, Kind, PoolOp
from jaxpool.compare.settings import check

__all__ = ["Method", "all_methods", "choose"]

Layer = Callable[[jax.Array], jax.Array]

# How many arguments without a default an op of each kind may have: the size that
# its module is built with, and nothing that only a user could choose.
_SIZES = {"window": 1, "adaptive": 1, "global": 0}
# And those that one of another kind may have, if it has a stride like a window.
_STRIDED = {"window_shape", "strides"}


def keep(x: jax.Array) -> jax.Array:
    """Returns `x` [B, H, W, C] as it is."""
    return x


def every_second(x: jax.Array) -> jax.Array:
    """Returns every second row and column of `x` [B, H, W, C]."""
    return x[:, ::2, ::2]


def flatten(x: jax.Array) -> jax.Array:
    """Returns `x` [B, ...] as [B, features]."""
    return x.reshape(x.shape[0], -1)


@dataclass(frozen=True)
class Method:
    """A way to go from images to features between and after convolutions.

    Attributes:
      name: what the user calls it.
      kind: an op's kind, or the name of a baseline: decides where it acts.
      module: the class of an op's layers.
      options: keyword arguments of `module` besides sizes.
      draws: whether `module` takes `rngs`.
    """

    name: str
    kind: Kind | Literal["none", "stride"]
    module: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    draws: bool = False

    def after_block(self, size: tuple[int, int], rngs: nnx.Rngs) -> Layer:
        """Returns the layer that follows a block whose output has `size` pixels."""
        if self.kind == "stride":
            return every_second
        if self.kind == "window":
            return self._build(rngs, (2, 2), strides=(2, 2))
        if self.kind == "other":
            return self._build(rngs)
        if self.kind == "adaptive":
            return self._build(rngs, tuple(math.ceil(n / 2) for n in size))
        return keep

    def before_head(self, rngs: nnx.Rngs) -> Layer:
        """Returns the layer that makes [B, features] of the last block's output."""
        return self._build(rngs) if self.kind == "global" else flatten

    def _build(self, rngs: nnx.Rngs, *sizes: Any, **strides: Any) -> Layer:
        source = {"rngs": rngs} if self.draws else {}
        return self.module(*sizes, **strides, **self.options, **source)


def all_methods() -> dict[str, Method]:
    """Returns every method by name: the baselines, then the ops in table order."""
    methods = [Method("none", "none"), Method("stride", "stride")]
    for op in OPS.values():
        if _fits(op):
            methods += _variants(op)
    return {method.name: method for method in methods}


def choose(names: Sequence[str]) -> list[Method]:
    """Returns the methods of these names, each once; `all` stands for every one."""
    available = all_methods()
    check(len(names) > 0, "methods", "must name at least one method", names)
    if "all" in names:
        return list(available.values())
    for name in names:
        close = difflib.get_close_matches(name, available) or available
        rule = f"must be known (did you mean {', '.join(close)}?)"
        check(name in available, "methods", rule, name)
    return [available[name] for name in dict.fromkeys(names)]


def _fits(op: PoolOp) -> bool:
    """Whether a module of `op` can stand in the network with no further choices."""
    required = _required(op)
    strided = op.kind == "other" and "strides" in op.config and required <= _STRIDED
    sized = _SIZES.get(op.kind) == len(required)
    plain = op.inputs == ("x",) and op.outputs == 1 and not op.integer
    return plain and (sized or strided)


def _required(op: PoolOp) -> set[str]:
    """The arguments without a default that a module of `op` is built with."""
    empty = inspect.Parameter.empty
    return {name for name, p in op.config.items() if p.default is empty}


def _variants(op: PoolOp) -> list[Method]:
    """Returns an op's method, and a second one where it has something to learn."""
    strided = dict.fromkeys({"strides", *_required(op)}, (2, 2))
    strided = strided if op.kind == "other" else {}
    variants: dict[str, dict[str, Any]] = {op.method: strided}
    if op.learned:
        variants = {
            op.method: {"trainable": False},
            f"{op.method}_learned": {"trainable": True},
        }
    module = getattr(jaxpool.nnx, op.module_name)
    draws = op.takes_key or op.learned_arrays is not None
    return [
        Method(name, op.kind, module, options, draws)
        for name, options in variants.items()
    ]
