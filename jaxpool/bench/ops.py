"""Every op beside the plain mean: what a formula costs more than reading its input."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
from flax import nnx

import jaxpool
from jaxpool._core.op import PoolOp
from jaxpool.bench.contestants import OURS, Entry, jax_entry
from jaxpool.bench.pools import PASSES
from jaxpool.bench.problem import NUMBERS
from jaxpool.bench.results import Row
from jaxpool.bench.timing import interleave, spread
from jaxpool.compare.methods import Method

__all__ = [
    "BOUNDS",
    "MEAN",
    "QUICK",
    "SHAPE",
    "SUITE",
    "Bound",
    "Trial",
    "measure",
    "temporaries",
    "trials",
]

SUITE, MEAN = "ops", "avg_pool"

Shape = tuple[int, ...]
SHAPE: Shape = (8, 56, 56, 64)
QUICK: Shape = (2, 28, 28, 16)

_SMALL, _LARGE, _ALL = "2/2/0", "3/2/1", "all"
_WINDOWS: dict[str, dict[str, Any]] = {
    _SMALL: {"window_shape": (2, 2), "strides": (2, 2)},
    _LARGE: {
        "window_shape": (3, 3),
        "strides": (2, 2),
        "padding": ((1, 1), (1, 1)),
    },
}
# What a method of `compare` has one of for each of its windows' 4 elements.
_NINE = {"weights": tuple(n / 45 for n in range(9, 0, -1))}


@dataclass(frozen=True)
class Trial:
    """An op in one form.

    Attributes:
      method: how it is built.
      window: a key of `_WINDOWS`: the op's, if it takes one, and the mean's beside it.
      deterministic: whether it is as in evaluation, for an op that samples.
    """

    method: Method
    window: str = _SMALL
    deterministic: bool = True

    @property
    def name(self) -> str:
        """The op's name, and the form if there are two."""
        op = self.method.op
        evaluated = op and op.takes_key and self.deterministic
        return f"{self.method.name} (evaluation)" if evaluated else self.method.name

    def model(self, shape: Shape) -> nnx.Sequential:
        """Returns the op as a model for input of this shape."""
        method = self.method
        if self.window != _SMALL:
            nine = {name: _NINE[name] for name in _NINE if name in method.options}
            options = {**method.options, **_WINDOWS[self.window], **nine}
            method = replace(method, options=options)
        model = nnx.Sequential(*method.layers(shape, nnx.Rngs(0)))
        model.eval() if self.deterministic else model.train()
        return model


def trials(methods: Iterable[Method], quick: bool = False) -> list[Trial]:
    """Returns the forms of each op among these methods, each op once.

    A quick run leaves out windows of 3x3, whose gradients take longest to compile.
    """
    ops: dict[str, tuple[PoolOp, Method]] = {}
    for method in methods:
        if method.op:
            ops.setdefault(method.op.name, (method.op, method))
    slides = _WINDOWS[_LARGE].keys()
    windows = [_SMALL] if quick else [_SMALL, _LARGE]
    return [
        Trial(method, window, deterministic)
        for op, method in ops.values()
        for window in (windows if slides <= op.settings.keys() else [_SMALL])
        for deterministic in ((False, True) if op.takes_key else (True,))
    ]


def measure(trial: Trial, shape: Shape, dtype: str, rounds: int) -> list[Row]:
    """Returns a row for each pass of an op, timed in turns with the mean."""
    graph, state = nnx.split(trial.model(shape))

    def pool(x, state):
        return nnx.merge(graph, state, copy=True)(x)

    x = _normal(0, shape, NUMBERS[dtype])
    y = jax.eval_shape(pool, x, state)
    a_map = y.ndim == len(shape) and math.prod(y.shape[1:-1]) > 1
    window = trial.window if a_map else _ALL
    entries = {
        MEAN: _mean(window, shape, dtype),
        OURS: jax_entry(pool, x, _normal(1, y.shape, y.dtype), state),
    }
    op = trial.method.op
    assert op is not None
    rows = []
    for which in PASSES:
        calls = {name: getattr(entry, which) for name, entry in entries.items()}
        times = interleave(calls, rounds)
        rows.append(
            Row(
                suite=SUITE,
                case=op.family,
                op=trial.name,
                window=window,
                direction=which,
                dtype=dtype,
                layout="channels_last",
                shape=shape,
                input_bytes=x.nbytes,
                outputs=y.size,
                base=MEAN,
                times={name: spread(seconds) for name, seconds in times.items()},
                notes={},
                costs={name: entry.costs[which] for name, entry in entries.items()},
            )
        )
    return rows


@cache  # compiled once for all the ops that stand beside it
def _mean(window: str, shape: Shape, dtype: str) -> Entry:
    pool = jaxpool.global_avg_pool
    if window in _WINDOWS:
        pool = partial(jaxpool.avg_pool, **_WINDOWS[window])
    x = _normal(0, shape, NUMBERS[dtype])
    return jax_entry(pool, x, _normal(1, jax.eval_shape(pool, x).shape, x.dtype))


def _normal(seed: int, shape: Sequence[int], dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), tuple(shape), dtype)


@dataclass(frozen=True)
class Bound:
    """What an op may cost.

    Attributes:
      what: what is bounded: time in units of the mean's, or temporaries of the input's.
      limit: how much of it is fine.
      families: whose ops it is for; all if there are none.
      direction: the pass it is for.
    """

    what: str
    limit: float
    families: tuple[str, ...] = ()
    direction: str = "forward"

    def amounts(self, rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, Any]]:
        """Returns how much each row costs that the bound is for, with the row."""
        return [
            (amount, row)
            for row in rows
            if row["direction"] == self.direction
            and (not self.families or row["case"] in self.families)
            and (amount := _AMOUNTS[self.what](row)) is not None
        ]


def _time(row: Mapping[str, Any]) -> float:
    return row["ratios"][OURS]


def temporaries(row: Mapping[str, Any]) -> float | None:
    """Returns the temporary values of a row's op in units of its input."""
    count = row["costs"][OURS]["temp_bytes"]
    return None if count is None else count / row["input_bytes"]


_AMOUNTS = {"time": _time, "temporaries": temporaries}

BOUNDS = (
    Bound("time", 4, ("exponential", "power", "stochastic")),
    Bound("time", 10, ("rank",)),
    Bound("temporaries", 2),
    Bound("temporaries", 2, direction="gradient"),
)
"""What ops are meant to keep."""
