"""Segments: rows that belong together by name, as the nodes of each graph of a batch.

Sums add rows up where their segment's number says, in float32 at least; maxima and
minima are one row's element, as in every window of this library.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import (
    as_array,
    as_integers,
    as_mask,
    as_modes,
    check_whole,
    int32_of,
    whole,
)
from jaxpool._core.engine import identity
from jaxpool._core.indices import take
from jaxpool._core.numerics import (
    accumulation_dtype,
    divide,
    hide,
    mean_dtype,
    safe_power,
    sum_dtype,
)
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import as_int, fail

__all__ = ["segment_pool"]


@pool_op(
    "segment",
    "other",
    inputs=("x", "segment_ids"),
    example=Example(
        (3, 16),
        {"x": "jnp.ones((5, 16))", "segment_ids": "jnp.array([0, 0, 1, 2, 2])"},
        "3",
    ),
)
def segment_pool(
    x: ArrayLike,
    segment_ids: ArrayLike,
    num_segments: int,
    *,
    mode: str | Sequence[str] = "mean",
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Pools the rows of each segment, in any order: `segment_ids` says whose they are.

    With the rows :math:`R(s) = \{i : \text{segment\_ids}_i = s\}` and
    :math:`n_s = |R(s)|`,

    .. math::
        y_{\text{sum}} = \sum_{i \in R(s)} x_i, \quad
        y_{\text{mean}} = \frac{1}{n_s} \sum_{i \in R(s)} x_i, \quad
        y_{\text{max}} = \max_{i \in R(s)} x_i, \quad
        y_{\text{min}} = \min_{i \in R(s)} x_i,

        y_{\text{var}} = \frac{1}{n_s} \sum_{i \in R(s)} (x_i - y_{\text{mean}})^2,
        \quad y_{\text{std}} = \sqrt{y_{\text{var}}}

    Gradient: that of the formula; a maximum's goes to the first maximal row alone, or
    to the first NaN, and that of a standard deviation of 0 is 0.

    Where rows are sharded over devices by hand (`jax.shard_map`), each device pools its
    own: add the sums up, or take the maximum, across devices. Explicit sharding of the
    rows is refused by JAX, since a segment may lie on all devices.

    Args:
      x: `[N, ...]`: N rows, of any shape; real, unless only sums and means are taken.
      segment_ids: integers `[N]`, in any order; rows with an id outside of
        `[0, num_segments)` take no part.
      num_segments: number of segments S, a static int of at least 1.
      mode: `"sum"`, `"mean"`, `"max"`, `"min"`, `"var"` or `"std"`, or a sequence of
        them, whose results are put side by side along the last axis of rows that have
        one.
      where: boolean, `[N]` or, with as many axes as `x`, broadcastable to `x`; only
        True elements take part.

    Returns:
      `[S, ...]`, or `[S, ..., kC]` for k modes; floats in the dtype of `x` (half
      precision adds up in float32), integers widened as by `jnp.sum` for sums, as
      floats where a mode takes means, else as they are. A segment without elements
      gives 0, the lowest value of the dtype as a maximum and the highest as a minimum.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or no rows at all.

    Example:
      Two nodes of the graph 0, none of the graph 1, one of the graph 2:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0], [5.0], [3.0]])
      >>> jp.segment_pool(x, jnp.array([0, 2, 0]), 3, mode="mean")[:, 0]
      Array([2., 0., 5.], dtype=float32)
    """
    caller = "segment_pool"
    modes = as_modes(caller, mode, _MODES)
    x = as_array(caller, x, ordered=not {"sum", "mean"}.issuperset(modes))
    check_whole(caller, x, range(-x.ndim, 0))
    ids = int32_of(as_integers(caller, segment_ids, "segment_ids"))
    if ids.shape != x.shape[:1]:
        rule = f"must have one entry for each row of `x`, whose shape is {x.shape}"
        raise fail(caller, "segment_ids", rule, ids.shape)
    if len(modes) > 1 and x.ndim < 2:
        rule = "must be one for an array whose rows have no axes"
        raise fail(caller, "mode", rule, mode)
    count = as_int(caller, "num_segments", num_segments, 1)
    if where is not None:
        where = as_mask(caller, where)
        if where.ndim == 1:
            where = where.reshape(-1, *(1,) * (x.ndim - 1))

    dtype = x.dtype
    if not {"sum", "max", "min"}.issuperset(modes):
        dtype = mean_dtype(dtype)
    elif "sum" in modes:
        dtype = sum_dtype(dtype)
    # Widened before the modes, so that their gradients add up in float32.
    x, _, where = whole(caller, x.astype(accumulation_dtype(dtype)), where, 0)
    segments = _Segments.of(ids, count, where)
    parts = [_MODES[m](x, segments) for m in modes]
    return (parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)).astype(dtype)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "where"],
    meta_fields=["count"],
)
@dataclass(frozen=True)
class _Segments:
    """Whose each row is: int32 `[N]`, `count` for nobody's; and what a mask hides."""

    ids: jax.Array
    where: jax.Array | None
    count: int

    @classmethod
    def of(cls, ids: jax.Array, count: int, where: jax.Array | None) -> "_Segments":
        inside = (ids >= 0) & (ids < count)
        return cls(jnp.where(inside, ids, count), where, count)

    def empty(self, x: jax.Array, value) -> jax.Array:
        """`value` for each segment."""
        return jnp.full((self.count, *x.shape[1:]), value, x.dtype)

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum of each segment's elements, in the dtype of `x`."""
        x = hide(x, self.where)
        return self.empty(x, 0).at[self.ids].add(x, mode="drop")

    def mean(self, x: jax.Array) -> jax.Array:
        """The mean of each segment's elements, in the dtype of `x`."""
        ones = jnp.ones((x.shape[0], *(1,) * (x.ndim - 1)), x.real.dtype)
        # Without elements the sum is 0, which is the mean too.
        return divide(self.sum(x), jnp.maximum(self.sum(ones), 1))

    def rows(self, y: jax.Array) -> jax.Array:
        """For each row, its segment's `y`; that of nobody's rows is 0."""
        return y.at[self.ids].get(mode="fill", fill_value=0)


def _extremum(x: jax.Array, segments: _Segments, largest: bool) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return _differentiable_extremum(x, segments, largest)
    return _value(x, segments, largest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _differentiable_extremum(x, segments, largest):
    return _value(x, segments, largest)


@_differentiable_extremum.defjvp
def _extremum_jvp(largest, primals, tangents):
    x, segments = primals
    # The decorated function, so that a second derivative follows this rule too.
    y = _differentiable_extremum(x, segments, largest)
    first = _first(*lax.stop_gradient((x, y)), segments)
    return y, take(tangents[0], first, (-x.ndim,))


def _value(x, segments, largest):
    lowest = identity(x.dtype, largest)
    target = segments.empty(x, lowest).at[segments.ids]
    reduce = target.max if largest else target.min
    return reduce(hide(x, segments.where, lowest), mode="drop")


def _first(x, y, segments):
    """The first row of each segment that holds `y`, int32; -1 where none does."""
    mine = segments.rows(y)
    holds = (x == mine) | (jnp.isnan(x) & jnp.isnan(mine))
    holds = holds if segments.where is None else holds & segments.where
    nowhere = jnp.iinfo(jnp.int32).max
    rows = jnp.where(holds, lax.broadcasted_iota(jnp.int32, x.shape, 0), nowhere)
    first = segments.empty(rows, nowhere).at[segments.ids].min(rows, mode="drop")
    return jnp.where(first < nowhere, first, -1)


def _variance(x, segments):
    # The rows' distances from their mean: mean(x^2) - mean(x)^2 cancels.
    offset = hide(x, segments.where) - segments.rows(segments.mean(x))
    return segments.mean(offset * offset)


_MODES = {
    "sum": lambda x, segments: segments.sum(x),
    "mean": lambda x, segments: segments.mean(x),
    "max": lambda x, segments: _extremum(x, segments, True),
    "min": lambda x, segments: _extremum(x, segments, False),
    "var": _variance,
    "std": lambda x, segments: safe_power(_variance(x, segments), 0.5),
}
