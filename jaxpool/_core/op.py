"""The table of ops: one row of facts for each, read by modules, tests and `compare`.

A row holds facts and no behaviour. `@pool_op` records one and returns the function
unchanged, so that signatures, docstrings and static types stay what they are.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

__all__ = ["OPS", "PoolOp", "Weight", "pool_op"]

F = TypeVar("F", bound=Callable[..., Any])

Kind = Literal["window", "global", "adaptive", "other"]
# A learned array: its shape, and what draws its first value of (key, shape, dtype).
Weight = tuple[tuple[int, ...], Callable[..., Any]]


@dataclass(frozen=True)
class PoolOp:
    """The facts about one op.

    Attributes:
      name: the function's name.
      fn: the function.
      family: the file of formulas that it stands in.
      kind: what decides the output's size: a sliding window, the whole extent, the
        requested output, or something else.
      inputs: the arguments that arrive at call time, arrays first to last.
      takes_key: whether it samples (`key=`, `deterministic=`).
      learned: arguments that a module can learn, a scalar or one value a channel.
      positive: those of them that start above 0.
      per_channel: whether what is learned may be one value a channel.
      weights: for a function that takes learned arrays in a mapping `params`: the
        function that says which, by name, from further arguments of a module.
      arrays: the same for a function that takes each learned array as an argument of
        its own: all keywords that have no default.
      linear: y(ax + bz) = a y(x) + b y(z).
      monotone: x <= z everywhere implies y(x) <= y(z).
      outputs: number of arrays that it returns.
      integer: whether `x` is int8 or uint8 and nothing else; without derivatives.
      camel: its modules' name, where the rule in `module_name` does not give it.
      compare: what its module in `jaxpool compare` is built with, besides sizes; or,
        as text, why it has no place there.
    """

    name: str
    fn: Callable[..., Any]
    family: str
    kind: Kind
    inputs: tuple[str, ...] = ("x",)
    takes_key: bool = False
    learned: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()
    per_channel: bool = True
    weights: Callable[..., dict[str, Weight]] | None = None
    arrays: Callable[..., dict[str, Weight]] | None = None
    linear: bool = False
    monotone: bool = False
    outputs: int = 1
    integer: bool = False
    camel: str = ""
    compare: Mapping[str, Any] | str = field(default_factory=dict)

    @property
    def module_name(self) -> str:
        """The name of its modules: `max_pool` gives `MaxPool`."""
        return self.camel or "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def method(self) -> str:
        """Its name in `jaxpool compare`: `max_pool` gives `max`."""
        return self.name.removesuffix("_pool")

    @property
    def config(self) -> dict[str, inspect.Parameter]:
        """The function's arguments that a module fixes when it is built."""
        at_call = {*self.inputs, *self.slots, "where", "key", "deterministic"}
        return {n: p for n, p in self._parameters.items() if n not in at_call}

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """All that a module fixes when it is built: `config`, and for its weights."""
        return {**self._sizes, **self.config}

    @property
    def learned_arrays(self) -> Callable[..., dict[str, Weight]] | None:
        """The function that says which arrays a module learns, however it is called."""
        return self.weights or self.arrays

    @property
    def slots(self) -> tuple[str, ...]:
        """The arguments that take learned arrays: one for all, or one for each."""
        if self.weights:
            return ("params",)
        given = self._parameters.values() if self.arrays else ()
        required = (p for p in given if p.default is p.empty)
        return tuple(p.name for p in required if p.kind is p.KEYWORD_ONLY)

    def weights_for(self, settings: Mapping[str, Any]) -> dict[str, Weight]:
        """The learned arrays of a module with these settings."""
        if self.learned_arrays is None:
            return {}
        return self.learned_arrays(**{name: settings[name] for name in self._sizes})

    def passed(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The arguments by which the function takes these learned arrays."""
        return {"params": arrays} if self.weights else arrays

    @property
    def _sizes(self) -> Mapping[str, inspect.Parameter]:
        sizes = self.learned_arrays
        return inspect.signature(sizes).parameters if sizes else {}

    @property
    def takes_where(self) -> bool:
        """Whether it takes a mask."""
        return "where" in self._parameters

    @functools.cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        # Read once: whoever intercepts the function exchanges its code for a while.
        return inspect.signature(self.fn).parameters


OPS: dict[str, PoolOp] = {}
"""Every op, by name."""


def pool_op(family: str, kind: Kind, **facts: Any) -> Callable[[F], F]:
    """Records a function's row in `OPS` and returns the function as it is."""

    def record(fn: F) -> F:
        OPS[fn.__name__] = PoolOp(fn.__name__, fn, family, kind, **facts)
        return fn

    return record
