"""Attention over tokens: how arrays are read, and the steps that all such pools share.

Formulas and the names of learned arrays are those of `_ops/attention.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, as_mask, check_whole, countable
from jaxpool._core.numerics import accumulation_dtype, hide
from jaxpool._core.weights import SHAPES, entry, fit_shapes, read_params
from jaxpool._core.window import (
    Ints,
    as_entries,
    as_ints,
    as_positive,
    fail,
    is_name,
    is_sequence,
    resolve_axes,
)

__all__ = [
    "Tokens",
    "absorbed",
    "affine",
    "as_choice",
    "as_eps",
    "attend",
    "by_first",
    "by_key_channels",
    "by_queries",
    "fit_positions",
    "kernel_of",
    "layer_norm",
    "like",
    "map_axes",
    "map_sizes",
    "read_learned",
    "read_tokens",
    "softmax",
    "softmax_powers",
    "token_axes",
    "turn",
]


class Tokens(NamedTuple):
    """Tokens `[B..., L, C]` without what a mask `[B..., L]` hides, and their origin."""

    x: jax.Array  # in the dtype to compute in
    where: jax.Array | None
    sizes: tuple[Any, ...]  # of the axes that L is made of
    order: tuple[int, ...]  # of the given axes, as batch, L, C
    dtype: Any

    @property
    def visible(self) -> jax.Array | None:
        """The mask, with an axis for channels."""
        return None if self.where is None else self.where[..., None]

    def finish(self, y: jax.Array) -> jax.Array:
        """Returns a result `[B..., (Q,) F]`, as 0 where no token takes part."""
        if self.where is not None:
            some = jnp.any(self.where, -1)
            y = hide(y, some.reshape(some.shape + (1,) * (y.ndim - some.ndim)))
        return y.astype(self.dtype)

    def finish_map(self, y: jax.Array) -> jax.Array:
        """Returns a result `[B..., L, F]` in the given layout, with 0 for no tokens."""
        y = hide(y, self.visible).astype(self.dtype)
        y = y.reshape(*y.shape[:-2], *self.sizes, y.shape[-1])
        return y.transpose(np.argsort(self.order))


def as_tokens(
    caller: str, x: ArrayLike, where: ArrayLike | None, axis: Ints | None
) -> Tokens:
    """Returns the tokens along `axis`: by default all axes but the first and last."""
    x = as_array(caller, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise fail(caller, "x", "must be floating", x.dtype, TypeError)
    axes, rest = token_axes(caller, axis, x.ndim)
    check_whole(caller, x, (*axes, rest[-1]))
    order = tuple(a + x.ndim for a in (*rest[:-1], *axes, rest[-1]))
    shape, dtype = x.shape, x.dtype
    x, sizes = x.transpose(order), tuple(shape[a] for a in axes)
    if 0 in sizes:
        raise fail(caller, "x", "must have tokens", f"the shape {shape}")
    countable(caller, sizes)
    batch = x.shape[: len(rest) - 1]
    x = x.reshape(*batch, math.prod(sizes), x.shape[-1])
    if where is not None:
        where = as_mask(caller, where)
        full = shape[: rest[-1]] + shape[len(shape) + rest[-1] + 1 :]
        mask = (1,) * (len(full) - where.ndim) + where.shape
        if len(mask) != len(full) or any(
            m not in (1, n) for m, n in zip(mask, full, strict=True)
        ):
            rule = f"must broadcast to `x` without channels, whose shape is {full}"
            raise fail(caller, "where", rule, where.shape)
        where = jnp.expand_dims(where.reshape(mask), rest[-1]).transpose(order)[..., 0]
        lead = where.shape[: len(batch)]
        where = jnp.broadcast_to(where, (*lead, *sizes)).reshape(*lead, x.shape[-2])
        x = hide(x, where[..., None])
    return Tokens(x, where, sizes, order, dtype)


def token_axes(
    caller: str, axis: Ints | None, ndim: int
) -> tuple[tuple[int, ...], list[int]]:
    """Returns the axes along which tokens lie and the others, the channels' last."""
    if axis is None:
        if ndim < 3:
            rule = "must be given for an array without axes between the first and last"
            raise fail(caller, "axis", rule, axis)
        axis = tuple(range(1, ndim - 1))
    axes = tuple(sorted(resolve_axes(caller, axis, ndim)))
    rest = [a for a in range(-ndim, 0) if a not in axes]
    if not rest:
        raise fail(caller, "axis", "must leave an axis for the channels", axis)
    return axes, rest


def widen(
    tokens: Tokens, w: Mapping[str, jax.Array]
) -> tuple[Tokens, dict[str, jax.Array]]:
    """Returns the tokens and the learned arrays in the dtype to compute in."""
    arrays = (tokens.x, *w.values())
    wide = np.result_type(*(accumulation_dtype(a.dtype) for a in arrays))
    w = {name: a.astype(wide) for name, a in w.items()}
    return tokens._replace(x=tokens.x.astype(wide)), w


def read_tokens(
    caller: str,
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    where: ArrayLike | None,
    axis: Ints | None,
    num_heads: int,
    names: Sequence[str],
    needs: Sequence[str],
) -> tuple[Tokens, dict[str, jax.Array]]:
    """Returns the tokens and the learned arrays of attention, looked at and widened."""
    tokens = as_tokens(caller, x, where, axis)
    w = read_weights(caller, params, tokens.x.shape[-1], num_heads, names, needs)
    return widen(tokens, w)


def read_learned(
    caller: str,
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    where: ArrayLike | None,
    axis: Ints | None,
    shapes: Mapping[str, str],
    needs: Sequence[str],
) -> tuple[Tokens, dict[str, jax.Array]]:
    """As `read_tokens`, for arrays of other `shapes`; the letter c is the channels."""
    tokens = as_tokens(caller, x, where, axis)
    given = read_params(caller, params, needs)
    fit_shapes(caller, given, shapes, {"c": tokens.x.shape[-1]})
    return widen(tokens, given)


def read_weights(
    caller: str,
    params: Mapping[str, ArrayLike],
    channels: int,
    num_heads: int,
    names: Sequence[str],
    needs: Sequence[str],
) -> dict[str, jax.Array]:
    """Returns the arrays in `params`, of known names and with shapes that fit."""
    given = read_params(caller, params, needs)
    for fused in ("qkv", "kv"):
        for part in ("kernel", "bias") if set(fused) <= set(names) else ():
            array = given.pop(f"{fused}_{part}", None)
            if array is None:
                continue
            if array.ndim == 0 or array.shape[-1] % len(fused):
                rule = f"must have a last axis of {len(fused)} equal parts"
                raise fail(caller, entry(f"{fused}_{part}"), rule, array.shape)
            parts = jnp.split(array, len(fused), -1)
            given |= {f"{n}_{part}": a for n, a in zip(fused, parts, strict=True)}
    wanted = set(names)
    shapes = {n: s for n, s in SHAPES.items() if {n, n.rpartition("_")[0]} & wanted}
    embed = [given[f"{n}_kernel"].shape[-1:] for n in "qkv" if f"{n}_kernel" in given]
    (features,) = embed[0] if embed else (channels,)
    if features % num_heads:
        rule = f"must divide the {features} channels of the keys"
        raise fail(caller, "num_heads", rule, num_heads)
    sizes = {"c": channels, "d": features, "h": features // num_heads}
    sizes |= {} if "query" in names else {"e": channels}
    sizes |= {} if "out" in names else {"f": features}
    sizes = fit_shapes(caller, given, shapes, sizes)
    for name in shapes:  # when all sizes are known
        if name.endswith("kernel") and name not in given:
            a, b = (sizes.get(letter) for letter in SHAPES[name])
            if None not in (a, b) and a != b:
                rule = f"must have `{name}`, to make {b} channels of {a}"
                raise fail(caller, "params", rule, sorted(params))
    return given


def by_queries(
    tokens: Tokens,
    w: Mapping[str, jax.Array],
    num_heads: int,
    eps: float = 0.0,
    approximate: bool = False,
) -> jax.Array:
    """What learned queries find, `[B..., Q, F]`, or `[B..., F]` for one alone."""
    query = w["query"]
    q = query.reshape(-1, query.shape[-1])
    y = attend(q, tokens.x, tokens.x, tokens.where, w, num_heads, eps)
    y = affine(y, w, "out")
    if "mlp_in_kernel" in w:
        hidden = affine(layer_norm(y, w, "norm", eps), w, "mlp_in")
        y = y + affine(jax.nn.gelu(hidden, approximate=approximate), w, "mlp_out")
    return y[..., 0, :] if query.ndim == 1 else y


def by_first(
    caller: str,
    tokens: Tokens,
    z: Tokens,
    w: Mapping[str, jax.Array],
    num_heads: int,
    pool_type: str,
    angles: np.ndarray | None = None,
) -> jax.Array:
    """What the first of the tokens `z` finds, or all but the first do."""
    as_choice(caller, "pool_type", pool_type, ("token", ""))
    q = z.x[..., :1, :] if pool_type else z.x
    y = attend(q, z.x, z.x, z.where, w, num_heads, angles=angles)
    y = affine(y, w, "out")
    return (
        tokens.finish(y[..., 0, :]) if pool_type else tokens.finish_map(y[..., 1:, :])
    )


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: jax.Array | None,
    w: Mapping[str, jax.Array],
    num_heads: int,
    eps: float = 0.0,
    angles: np.ndarray | None = None,
) -> jax.Array:
    """Projects q `[..., Q, E]`, k and v `[..., L, C]`; attends: `[..., Q, D]`.

    Few queries take the projection of the keys upon them: see `absorbed`.
    """

    def heads(x, name):
        x = x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)
        return layer_norm(x, w, f"{name}_norm", eps)

    q = heads(affine(q, w, "q"), "q")
    normed = {"k_norm_scale", "v_norm_scale"} & set(w)
    few = q.shape[-3] * num_heads <= q.shape[-2] * q.shape[-1]
    q = q * q.shape[-1] ** -0.5
    if few and not normed and angles is None:
        return absorbed(by_key_channels(q, k, w), k, v, where, w)
    k, v = heads(affine(k, w, "k"), "k"), heads(affine(v, w, "v"), "v")
    if angles is not None:
        q, k = turn(q, angles), turn(k, angles)
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k)
    visible = None if where is None else where[..., None, None, :]
    y = jnp.einsum("...hqk,...khd->...qhd", softmax(scores, visible), v)
    return y.reshape(*y.shape[:-2], v.shape[-2] * v.shape[-1])


def by_key_channels(
    q: jax.Array, k: jax.Array, w: Mapping[str, jax.Array]
) -> jax.Array:
    """Projected queries `[..., Q, H, D / H]` as the rows that `absorbed` takes."""
    kernel = kernel_of(k, w, "k").reshape(k.shape[-1], *q.shape[-2:])
    return jnp.einsum("...qhd,chd->...hqc", q, kernel)


def absorbed(
    rows: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: jax.Array | None,
    w: Mapping[str, jax.Array],
) -> jax.Array:
    """What `rows` `[..., H, Q, C]`, which take in the keys' projection, find.

    That is `[..., Q, D]`, of which each head has its part. Projections are linear: (q
    W_Q) (k W_K)^T = (q W_Q W_K^T) k^T, where a bias of the keys changes all scores
    alike, and as the weights of values sum to 1, it is their mean that is projected. No
    token is.
    """
    visible = None if where is None else where[..., None, None, :]
    scores = jnp.einsum("...hqc,...kc->...hqk", rows, k)
    seen = jnp.einsum("...hqk,...kc->...hqc", softmax(scores, visible), v)
    kernel = kernel_of(v, w, "v")
    kernel = kernel.reshape(len(kernel), rows.shape[-3], -1)
    y = jnp.einsum("...hqc,chd->...qhd", seen, kernel)
    y = y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])
    return y + like(w["v_bias"], y) if "v_bias" in w else y


def kernel_of(x: jax.Array, w: Mapping[str, jax.Array], name: str) -> jax.Array:
    """The kernel of this name for `x`; the identity if there is none."""
    return w.get(f"{name}_kernel", jnp.eye(x.shape[-1], dtype=x.dtype))


def softmax(scores: jax.Array, where: jax.Array | None) -> jax.Array:
    """The softmax of the True scores, and 0 for all others, all of them too."""
    powers = softmax_powers(scores, where, -1)
    total = jnp.sum(powers, -1, keepdims=True)
    return powers / jnp.where(total == 0, 1, total)


def softmax_powers(scores: jax.Array, where: jax.Array | None, axis: int) -> jax.Array:
    """What a softmax divides by its sum; the largest is 1."""
    largest = jnp.max(scores, axis, keepdims=True, where=where, initial=-np.inf)
    largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    return hide(jnp.exp(hide(scores, where, largest) - largest), where)


def turn(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns pairs of neighbouring channels of x `[..., L, heads, d]`, by `[L, d]`."""
    angles = angles[: x.shape[-3], None, :]  # a first token alone has no other's
    cos, sin = (like(jnp.asarray(f(angles), x.dtype), x) for f in (np.cos, np.sin))
    odd, even = x[..., 1::2], x[..., ::2]
    return x * cos + jnp.stack([-odd, even], -1).reshape(x.shape) * sin


def affine(x: jax.Array, w: Mapping[str, jax.Array], name: str) -> jax.Array:
    """The projection of this name; x itself if there is none."""
    if (kernel := w.get(f"{name}_kernel")) is not None:
        x = jnp.tensordot(x, kernel, 1)
    if (bias := w.get(f"{name}_bias")) is not None:
        x = x + like(bias, x)
    return x


def layer_norm(
    x: jax.Array, w: Mapping[str, jax.Array], name: str, eps: float
) -> jax.Array:
    """The layer norm of this name, over the last axis; x itself if there is none."""
    if f"{name}_scale" not in w:
        return x
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    x = x * like(w[f"{name}_scale"], x)
    return x + like(w[f"{name}_bias"], x) if f"{name}_bias" in w else x


def like(array: jax.Array, x: jax.Array) -> jax.Array:
    """`array` with axes of size 1 in front, to the rank of x."""
    return array.reshape((1,) * (x.ndim - array.ndim) + array.shape)


def fit_positions(caller: str, w: Mapping[str, jax.Array], rows: int) -> jax.Array:
    """Returns the positions, of as many rows."""
    if w["positions"].shape[0] != rows:
        shape = w["positions"].shape
        raise fail(caller, entry("positions"), f"must have {rows} rows", shape)
    return w["positions"]


def as_choice(
    caller: str, argument: str, value: object, options: Sequence[str]
) -> None:
    if not is_name(value, options):
        rule = f"must be one of {', '.join(map(repr, options))}"
        raise fail(caller, argument, rule, value)


def as_eps(caller: str, eps: float) -> float:
    return as_positive(caller, "eps", eps)


def map_axes(
    caller: str, argument: str, value: Any, axis: Ints | None
) -> tuple[tuple[int, ...], Ints]:
    """Returns a map's sizes, and the axes that they speak of."""
    sizes = map_sizes(caller, argument, value)
    if axis is None:
        return sizes, tuple(range(-1 - len(sizes), -1))
    named: Any = axis
    if (len(named) if is_sequence(named) else 1) != len(sizes):
        rule = f"must have {len(sizes)} entries, as `{argument}` has"
        raise fail(caller, "axis", rule, axis)
    return sizes, axis


def map_sizes(caller: str, argument: str, value: Any) -> tuple[int, ...]:
    if not is_sequence(value) or not len(value):
        rule = "must be a sequence with one int for each axis of the map"
        raise fail(caller, argument, rule, value)
    return as_ints(caller, argument, as_entries(caller, argument, value), len(value), 1)
