"""Ways to call a pooling function, and the answer that an oracle gives to each."""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxpool._core.op import PoolOp
from jaxpool.testing.windows import bins, line, over_windows

__all__ = ["EXTENTS", "OUTPUTS", "WINDOWS", "Case", "shared_cases"]

WINDOWS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((9,), dict(window_shape=(3,))),
    ((9,), dict(window_shape=(4,), strides=(3,), padding=((2, 1),), ceil_mode=True)),
    ((6, 7), dict(window_shape=(2, 2), strides=(2, 2))),
    ((6, 7), dict(window_shape=(3, 2), strides=(2, 1), padding="SAME")),
    ((6, 7), dict(window_shape=(4, 3), strides=(3, 2), padding="SAME_LOWER")),
    ((6, 7), dict(window_shape=(3, 3), padding=((1, 1), (2, 0)), strides=(2, 2))),
    ((7, 7), dict(window_shape=(3, 2), window_dilation=(2, 3), padding=((1, 1),) * 2)),
    ((6, 7), dict(window_shape=(3, 3), strides=(2, 2), ceil_mode=True)),
    ((6, 7), dict(window_shape=(1, 1), strides=(2, 3))),
    ((4, 3, 5), dict(window_shape=(2, 3, 2), strides=(2, 1, 1))),
    ((4, 3, 5), dict(window_shape=(2, 2, 2), strides=(2, 2, 2), padding="SAME")),
]
"""Windows of every kind: sizes of the pooled axes, and arguments."""

OUTPUTS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((9,), dict(output_shape=(3,))),
    ((9,), dict(output_shape=(4,))),
    ((6, 7), dict(output_shape=(4, 9))),
    ((6, 7), dict(output_shape=(None, 3))),
    ((4, 3, 5), dict(output_shape=(2, 2, 5))),
]
"""Outputs of adaptive pools: divisors of the size or not, larger than it, None."""

EXTENTS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((9,), {}),
    ((6, 7), {}),
    ((4, 3, 5), {}),
]


@dataclass(frozen=True)
class Case:
    """One way to call an op with an input `[B..., S..., C]`.

    Attributes:
      op: the op's facts.
      sizes: those of the pooled axes.
      kwargs: arguments that the oracle takes too, besides what says which windows.
      batch: the leading axes, where they are not free.
      groups: what the number of channels is a multiple of.
      formula: the oracle: `f(elements, positions, pad, **kwargs)` of one window, see
        :func:`jaxpool.testing.windows.over_windows`; or, for an op of the kind
        "other", `f(x, **arguments)` of the whole input.
      constants: arguments that do not concern the oracle of a window.
    """

    op: PoolOp
    sizes: tuple[int, ...]
    kwargs: dict[str, Any]
    batch: tuple[int, ...] | None = None
    groups: int = 1
    formula: Callable[..., Any] | None = None
    constants: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        """The op, the sizes, and those arguments that are short."""
        given = ",".join(
            f"{k}={v}"
            for k, v in self.kwargs.items()
            if k != "init" and isinstance(v, int | float | str | bool | tuple)
        )
        return f"{self.op.name}-{'x'.join(map(str, self.sizes))}-{given}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The op's arguments."""
        return {**self.constants, **self.kwargs}

    def function(self, **more: Any) -> Callable[[Any], Any]:
        """The op with its arguments, a function of `x`."""
        return functools.partial(self.op.fn, **{**self.arguments, **more})

    @property
    def oracle(self) -> Callable[..., Any] | None:
        """The formula."""
        return self.formula

    def with_arguments(self, **more: Any) -> "Case":
        """The same case with more arguments, which the oracle takes too."""
        return replace(self, kwargs={**self.kwargs, **more})

    @property
    def differentiable(self) -> Callable[[Any], Any]:
        """The op as a function of `x` with one, floating, result."""
        f = self.function()
        return (lambda x: f(x)[0]) if self.op.outputs > 1 else f

    def input(
        self,
        *,
        batch: tuple[int, ...] = (2,),
        channels: int = 2,
        seed: int = 0,
        dtype: Any = np.float32,
    ) -> np.ndarray:
        """Distinct numbers of both signs, none 0, in random order.

        Ops of integers get int8, small enough for twice as much not to overflow.
        """
        shape = (*(self.batch or batch), *self.sizes, channels * self.groups)
        n = math.prod(shape)
        values = np.arange(n) - n // 3 + 0.5
        values = np.random.default_rng(seed).permutation(values) * (4 / max(n, 1))
        if self.op.integer:
            values, dtype = np.round(values * 20), np.int8
        return values.reshape(shape).astype(dtype)

    def expected(self, x: Any, where: Any = None) -> Any:
        """The oracle's answer, in float64."""
        oracle = self.oracle
        assert oracle is not None
        if self.op.kind == "other":
            masked = {} if where is None else {"where": where}
            wide = np.asarray(x, np.float64)
            return oracle(wide, **self.arguments, **masked)
        n = len(self.sizes)
        axes = tuple(range(-1 - n, -1))
        kwargs = {k: v for k, v in self.kwargs.items() if k != "deterministic"}
        if self.op.kind == "global":
            lines = [line(x.shape[a], x.shape[a]) for a in axes]
        elif self.op.kind == "adaptive":
            wanted = kwargs.pop("output_shape")
            lines = [
                bins(x.shape[a], x.shape[a] if o is None else o)
                for a, o in zip(axes, wanted, strict=True)
            ]
        else:
            lines = self._lines(x, axes, kwargs)
        formula = functools.partial(oracle, **kwargs)
        y = over_windows(formula, x, lines, axes, where)
        if self.op.name.endswith("_catavgmax_pool"):
            y = np.concatenate(y, -1)
        if self.op.kind == "global":
            y = jax.tree.map(lambda y: np.squeeze(y, axes), y)
        return y

    @staticmethod
    def _lines(x, axes, kwargs):
        window = kwargs.pop("window_shape")
        strides = kwargs.pop("strides", None) or (1,) * len(window)
        padding = kwargs.pop("padding", "VALID")
        dilation = kwargs.pop("window_dilation", None) or (1,) * len(window)
        ceil_mode = kwargs.pop("ceil_mode", False)
        pairs = [padding] * len(window) if isinstance(padding, str) else padding
        specs = zip(axes, window, strides, pairs, dilation, strict=True)
        return [line(x.shape[a], k, s, p, d, ceil_mode) for a, k, s, p, d in specs]


def shared_cases(
    op: PoolOp, formula: Callable[..., Any], constants: dict[str, Any]
) -> list[Case]:
    """The cases of all ops of a kind, as far as this op has arguments for them."""
    table = {"window": WINDOWS, "adaptive": OUTPUTS, "global": EXTENTS}[op.kind]
    known = inspect.signature(op.fn).parameters
    return [
        Case(op, sizes, kwargs, formula=formula, constants=constants)
        for sizes, kwargs in table
        if kwargs.keys() <= known.keys()
    ]
