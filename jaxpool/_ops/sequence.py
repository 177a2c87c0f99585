"""Sequences: one vector for the tokens of each row, wherever its padding stands.

Padding may be behind a row's tokens, in front of them, or anywhere: every mode gives
what it would give for the tokens alone.

References:
  Nils Reimers, Iryna Gurevych: Sentence-BERT: Sentence Embeddings using Siamese
  BERT-Networks, 2019 (first token, mean, maximum).
  Niklas Muennighoff: SGPT: GPT Sentence Embeddings for Semantic Search, 2022 (mean
  weighted by position, last token).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import (
    as_array,
    as_integers,
    as_mask,
    as_modes,
    int32_of,
    whole,
)
from jaxpool._core.engine import window_extremum, window_sum
from jaxpool._core.geometry import Geometry
from jaxpool._core.indices import take
from jaxpool._core.numerics import accumulation_dtype, divide, hide, mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import as_int, fail, resolve_axes
from jaxpool._ops.average import element_count, masked_mean, masked_sum

__all__ = ["sequence_pool"]


@pool_op(
    "sequence",
    "other",
    inputs=("x", "lengths"),
    monotone=True,
    compare="takes sequences",
    example=Example(
        (2, 16), {"x": "jnp.ones((2, 10, 16))", "lengths": "jnp.array([10, 7])"}
    ),
)
def sequence_pool(
    x: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    where: ArrayLike | None = None,
    mode: str | Sequence[str] = "mean",
    num_prefix_tokens: int = 0,
    axis: int = -2,
) -> jax.Array:
    r"""One vector for the tokens of each sequence; padding takes no part.

    With the tokens :math:`x_1, \ldots, x_n` of a row, without its padding,

    .. math::
        y_{\text{cls}} = x_1, \quad y_{\text{last}} = x_n, \quad
        y_{\text{max}} = \max_i x_i, \quad
        y_{\text{mean}} = \frac{1}{n} \sum_i x_i, \quad
        y_{\text{mean\_sqrt\_len}} = \frac{1}{\sqrt{n}} \sum_i x_i,

        y_{\text{weighted\_mean}} = \frac{\sum_i i \, x_i}{\sum_i i}, \quad
        y_{\text{avgmax}} = \tfrac{1}{2} (y_{\text{mean}} + y_{\text{max}})

    Positions :math:`i` count from the row's first token, so that padding in front
    changes nothing; a gap within a row counts. Gradient: that of the formula; the
    maximum's goes to the first maximal token alone.

    Args:
      x: `[B..., L, C]`: any leading axes, L tokens, C channels.
      lengths: integers `[B...]`, or what broadcasts to that: how many tokens a row
        has, with its padding behind them. Below 0 counts as 0, above L as L.
      where: boolean, True for tokens: `[B..., L]`, or what broadcasts to that, as an
        attention mask is; or, with as many axes as `x`, broadcastable to `x`. Not
        together with `lengths`.
      mode: `"cls"`, `"last"`, `"max"`, `"mean"`, `"mean_sqrt_len"`, `"weighted_mean"`
        or `"avgmax"`, or a sequence of them, whose results are put side by side.
      num_prefix_tokens: number of each row's first tokens (class and register tokens)
        that only `"cls"` sees.
      axis: the axis L, for any other layout; channels are the last of the others.

    Returns:
      `[B..., C]`, or `[B..., kC]` for k modes; floats in the dtype of `x` (half
      precision adds up in float32), integers as floats where a mode takes means. A row
      without tokens gives 0, and the lowest value of the dtype as a maximum.

    Raises:
      ValueError, TypeError: for arguments that break these rules, `lengths` together
        with `where`, an unknown mode, or as many prefix tokens as there are tokens.

    Example:
      Two tokens and padding: their mean, and the last of them:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]])
      >>> jp.sequence_pool(x, lengths=2, mode=("mean", "last"))
      Array([2., 3., 3., 4.], dtype=float32)
    """
    caller = "sequence_pool"
    modes = as_modes(caller, mode, _MODES)
    x = as_array(caller, x, ordered=not {"max", "avgmax"}.isdisjoint(modes))
    axes = resolve_axes(caller, axis, x.ndim)
    if len(axes) != 1 or x.ndim < 2:
        rule = "must name one axis of an array that has channels too"
        raise fail(caller, "axis", rule, axis)
    prefix = as_int(caller, "num_prefix_tokens", num_prefix_tokens, 0)
    size = x.shape[axes[0]]
    if isinstance(size, int) and prefix >= max(size, 1):
        rule = f"must be less than the number of tokens, {size}"
        raise fail(caller, "num_prefix_tokens", rule, num_prefix_tokens)

    if where is not None:
        where = as_mask(caller, where)
        full = where.ndim == x.ndim
        where = jnp.moveaxis(where, axes[0], -2) if full else where[..., None]
    x = jnp.moveaxis(x, axes[0], -2)
    if lengths is not None:
        if where is not None:
            rule = "must not be given together with `where`"
            raise fail(caller, "lengths", rule, lengths)
        where = _positions(x) < _as_lengths(caller, lengths, x)

    averages = not {"cls", "last", "max"}.issuperset(modes)
    dtype = mean_dtype(x.dtype) if averages else x.dtype
    # Widened before the modes, so that their gradients add up in float32.
    x, geometry, where = whole(
        caller, x.astype(accumulation_dtype(dtype)), where, -2, ordered=False
    )
    body = where
    if prefix:
        body = _positions(x) >= _end(x, geometry, where, False) + prefix
        body = body if where is None else body & where
    tokens = {"cls": where}
    parts = [_MODES[m](x, geometry, tokens.get(m, body)) for m in modes]
    return jnp.squeeze(jnp.concatenate(parts, -1), -2).astype(dtype)


def _as_lengths(caller: str, lengths: Any, x: jax.Array) -> jax.Array:
    """Returns the lengths as int32 `[B..., 1, 1]`."""
    lengths = int32_of(as_integers(caller, lengths, "lengths"))
    batch = x.shape[:-2]
    pairs = zip(lengths.shape[::-1], batch[::-1], strict=False)
    if lengths.ndim > len(batch) or any(m not in (1, n) for m, n in pairs):
        rule = f"must broadcast to the shape of `x` without L and C, {batch}"
        raise fail(caller, "lengths", rule, lengths.shape)
    missing = (1,) * (len(batch) - lengths.ndim)
    return lengths.reshape(*missing, *lengths.shape, 1, 1)


def _positions(x: jax.Array) -> jax.Array:
    """0 to L - 1, int32 with `x`'s rank."""
    shape = (*(1,) * (x.ndim - 2), x.shape[-2], 1)
    return lax.broadcasted_iota(jnp.int32, shape, x.ndim - 2)


def _end(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, last: bool
) -> jax.Array:
    """The position of each row's first or last token."""
    return window_extremum(_positions(x), geometry, last, where)


def _token(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, last: bool
) -> jax.Array:
    index = _end(x, geometry, where, last)
    if where is not None:
        index = jnp.where(window_extremum(where, geometry, True), index, -1)
    # As large as x along all other axes, and laid out on devices as it is.
    rows = lax.full_like(lax.slice_in_dim(x, 0, 1, axis=-2), 0, jnp.int32)
    return take(x, rows + index, geometry.pooled)


def _cls(x, geometry, where):
    return _token(x, geometry, where, False)


def _last(x, geometry, where):
    return _token(x, geometry, where, True)


def _max(x, geometry, where):
    return window_extremum(x, geometry, True, where)


def _mean(x, geometry, where):
    return masked_mean(x, geometry, where, False)


def _mean_sqrt_len(x, geometry, where):
    dtype = x.real.dtype
    count = jnp.asarray(element_count(dtype, x.ndim, geometry, where, False), dtype)
    return divide(masked_sum(x, geometry, where), jnp.sqrt(jnp.maximum(count, 1)))


def _weighted_mean(x, geometry, where):
    ranks = _positions(x) - _end(x, geometry, where, False) + 1
    weights = hide(ranks.astype(x.dtype), where)
    total = masked_sum(hide(x, where) * weights, geometry, None)
    # Without tokens both sums are 0.
    count = window_sum(weights, geometry)
    return divide(total, jnp.where(count == 0, 1, count))


def _avgmax(x, geometry, where):
    y = (_mean(x, geometry, where) + _max(x, geometry, where)) / 2
    return y if where is None else hide(y, window_extremum(where, geometry, True))


_MODES: dict[str, Callable[[jax.Array, Geometry, jax.Array | None], jax.Array]] = {
    "cls": _cls,
    "last": _last,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weighted_mean": _weighted_mean,
    "avgmax": _avgmax,
}
