r"""Fractional pooling: regions whose sizes vary, so that any output size can be had.

An axis of size :math:`L` is cut into :math:`O` regions by drawn boundaries, which are
computed in integers. With :math:`k = \lfloor L / O \rfloor`, :math:`r = L \bmod O`,

.. math:: b_0 = 0, \qquad b_i = \Big\lfloor \frac{i L + w}{O} \Big\rfloor, \qquad
    b_O = L, \qquad w \in \{0, \dots, V - 1\}, \quad V = \min(2 O - r, O + r)

are the pseudo-random ones: those of :math:`b_i = \lceil \alpha (i + u) \rceil - 1`,
:math:`\alpha = L / O`, for all :math:`u` that give no region other than
:math:`k` or :math:`k + 1` elements (TensorFlow's bound on u), each as likely as there.
The random ones are a shuffle of :math:`O - r` regions of :math:`k` elements and
:math:`r` of :math:`k + 1`. With a given window :math:`K`, windows start instead at

.. math:: s_i = \lfloor (i + u) \alpha \rfloor - \lfloor u \alpha \rfloor, \qquad
    s_{O - 1} = L - K, \qquad \alpha = \frac{L - K}{O - 1}

which is PyTorch's rule, in floating point as there.

References:
  Benjamin Graham: Fractional Max-Pooling, 2014.
"""

import functools
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, as_key, check_whole
from jaxpool._core.geometry import static_size
from jaxpool._core.numerics import accumulation_dtype, divide, mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.sharding import vary_alike
from jaxpool._core.taps import flat_positions
from jaxpool._core.window import (
    Ints,
    as_entries,
    as_flag,
    as_int,
    as_ints,
    as_shape,
    fail,
    is_name,
    is_sequence,
    resolve_axes,
)

__all__ = [
    "fractional_avg_pool",
    "fractional_boundaries",
    "fractional_max_pool",
    "fractional_max_pool_with_argmax",
]

OutputShape = int | None | Sequence[int | None]
Ratio = float | Fraction | Sequence[float | Fraction]
Mode = Literal["pseudorandom", "random"]
Shared = bool | Literal["channels"]
Samples = ArrayLike | Sequence[float]


@pool_op(
    "fractional",
    "other",
    inputs=("x", "samples"),
    takes_key=True,
    monotone=True,
    compare={"ratio": (1.5, 1.5)},
    example=Example((2, 5, 5, 16)),
)
def fractional_max_pool(
    x: ArrayLike,
    output_shape: OutputShape = None,
    *,
    ratio: Ratio | None = None,
    window_shape: Ints | None = None,
    key: Any = None,
    deterministic: bool = False,
    mode: Mode = "pseudorandom",
    overlapping: bool = False,
    shared: Shared = True,
    samples: Samples | None = None,
    axis: Ints | None = None,
) -> jax.Array:
    r"""The largest element of each region, for any output size up to the input's.

    .. math:: y_o = \max_{i \in W(o)} x_i, \qquad
        W(o) = [b_o, b_{o + 1}) \ \text{(disjoint)}, \quad
        [b_o, b_{o + 1}] \ \text{(overlapping)}, \quad [s_o, s_o + K)

    along each axis, with the boundaries :math:`b` or, for a `window_shape` of
    :math:`K`, the starts :math:`s` of this module's formulas. Gradient: all of it goes
    to the first maximal element in row-major order, or to the first NaN.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      output_shape: the output's size for each pooled axis, between 1 and the input's;
        None keeps it, and an int needs `axis=`.
      ratio: instead, input size over output size, at least 1, for each pooled axis or
        with `axis=` for all: the output has floor(size / ratio) elements. It is taken
        for the nearest fraction with a denominator of at most a million, so 1.1 and
        10 / 7 mean what they say. (PyTorch's `output_ratio` is its inverse.)
      window_shape: None for regions between neighbouring boundaries (TensorFlow, and
        Graham's paper), or the size of windows that start at drawn places (PyTorch),
        an int or one for each pooled axis; output + window - 1 must fit the input.
      key: a PRNG key, typed or raw; the same key draws the same regions.
      deterministic: whether to take the regions of u = 1/2 (of w = V // 2), evenly
        spread, in either mode; it needs no key. The paper draws in evaluation too, and
        averages the results of several draws.
      mode: `"pseudorandom"`, or `"random"`: sizes, or steps between windows, shuffled.
      overlapping: whether a region has the first element of the next one too, unless
        `window_shape` says how far windows reach.
      shared: what has the same regions: True for everything, `"channels"` for the
        channels of a sample, the last axis that is not pooled, or False for nothing:
        every plane has its own.
      samples: numbers in [0, 1) to use in place of drawn ones, with `mode`
        "pseudorandom": `[..., n]` for n pooled axes, in the order of `axis`, where the
        leading axes broadcast to those of `x` that are not pooled (`[B..., C, n]` has
        one for each plane and axis). They are u with `window_shape`, in whose dtype
        the starts are then computed, and else u as a fraction of its bound: w is
        floor(samples * V).
      axis: the pooled axes, by default those before a trailing channel axis.

    Returns:
      `[B..., O..., C]` in the dtype of `x`, which must be real.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or without a key to
        draw with.

    Pooled axes must have a known size; only the others may be symbolic in an export.

    Example:
      Regions of two elements and of one:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(7.0)[:, None]
      >>> jp.fractional_max_pool(x, (5,), deterministic=True)[:, 0]
      Array([1., 2., 3., 5., 6.], dtype=float32)
      >>> key = jax.random.key(0)  # the same key draws the same regions
      >>> y = jp.fractional_max_pool(x, ratio=(1.4,), key=key)
      >>> y.shape, bool((y == jp.fractional_max_pool(x, ratio=(1.4,), key=key)).all())
      ((5, 1), True)
    """
    x = as_array("fractional_max_pool", x, ordered=True)
    spec = (output_shape, ratio, window_shape, overlapping, axis)
    chance = (key, deterministic, mode, shared, samples)
    lines, spans = _laid("fractional_max_pool", x, spec, chance)
    return _largest(x, spans, lines, False)[0]


@pool_op(
    "fractional",
    "other",
    inputs=("x", "samples"),
    takes_key=True,
    outputs=2,
    compare="is another method with indices",
    example=Example((2, 5, 5, 16), arguments="ratio=(1.5, 1.5)"),
)
def fractional_max_pool_with_argmax(
    x: ArrayLike,
    output_shape: OutputShape = None,
    *,
    ratio: Ratio | None = None,
    window_shape: Ints | None = None,
    key: Any = None,
    deterministic: bool = False,
    mode: Mode = "pseudorandom",
    overlapping: bool = False,
    shared: Shared = True,
    samples: Samples | None = None,
    axis: Ints | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The largest element of each region and where it stands.

    .. math:: y_o = x_{a(o)}, \qquad a(o) = \min \arg\max_{i \in W(o)} x_i

    Arguments, regions, errors and gradient as in :func:`fractional_max_pool`.

    Returns:
      values: `[B..., O..., C]` in the dtype of `x`, which must be real.
      indices: int32 of the same shape, counted as by :func:`max_pool_with_argmax`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([4.0, 1.0, 5.0, 9.0, 2.0])[:, None]
      >>> y, indices = jp.fractional_max_pool_with_argmax(x, (3,), deterministic=True)
      >>> y[:, 0], indices[:, 0]
      (Array([4., 9., 2.], dtype=float32), Array([0, 3, 4], dtype=int32))
    """
    x = as_array("fractional_max_pool_with_argmax", x, ordered=True)
    spec = (output_shape, ratio, window_shape, overlapping, axis)
    chance = (key, deterministic, mode, shared, samples)
    lines, spans = _laid("fractional_max_pool_with_argmax", x, spec, chance)
    return cast(Any, _largest(x, spans, lines, True))


@pool_op(
    "fractional",
    "other",
    inputs=("x", "samples"),
    takes_key=True,
    linear=True,
    monotone=True,
    compare={"ratio": (1.5, 1.5)},
    example=Example((2, 5, 5, 16)),
)
def fractional_avg_pool(
    x: ArrayLike,
    output_shape: OutputShape = None,
    *,
    ratio: Ratio | None = None,
    window_shape: Ints | None = None,
    key: Any = None,
    deterministic: bool = False,
    mode: Mode = "pseudorandom",
    overlapping: bool = False,
    shared: Shared = True,
    samples: Samples | None = None,
    axis: Ints | None = None,
) -> jax.Array:
    r"""The mean of each region, for any output size up to the input's.

    .. math:: y_o = \frac{1}{|W(o)|} \sum_{i \in W(o)} x_i

    Arguments, regions and errors as in :func:`fractional_max_pool`; complex inputs are
    welcome. Gradient: each element gets :math:`1 / |W(o)|` of that of every region it
    lies in.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x` (half precision adds up in
      float32), integers as floats.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 2.0, 5.0, 7.0, 4.0])[:, None]
      >>> jp.fractional_avg_pool(x, (3,), deterministic=True)[:, 0]
      Array([1., 6., 4.], dtype=float32)
    """
    x = as_array("fractional_avg_pool", x)
    spec = (output_shape, ratio, window_shape, overlapping, axis)
    chance = (key, deterministic, mode, shared, samples)
    lines, spans = _laid("fractional_avg_pool", x, spec, chance)
    return _mean(x, spans, lines)


def fractional_boundaries(
    input_shape: Sequence[int],
    output_shape: OutputShape = None,
    *,
    ratio: Ratio | None = None,
    window_shape: Ints | None = None,
    key: Any = None,
    deterministic: bool = False,
    mode: Mode = "pseudorandom",
    overlapping: bool = False,
    shared: Shared = True,
    samples: Samples | None = None,
    axis: Ints | None = None,
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    r"""The regions that fractional pools of an input of `input_shape` have.

    .. math:: W(o) = [\mathit{start}_o, \mathit{end}_o)

    Arguments and errors as in :func:`fractional_max_pool`, and with the same ones, the
    key included, these are the regions that it pools.

    Args:
      input_shape: sizes of all axes of the input.
      output_shape, ratio, window_shape, overlapping, axis: what is pooled, and
      key, deterministic, mode, shared, samples: what is drawn, as in
        :func:`fractional_max_pool`.

    Returns:
      For each pooled axis, in the order of `axis`, (start, end): int32 `[..., O]`,
      where the leading axes are none for regions shared by everything, and else those
      of the input that are not pooled, or 1 where these share.

    Example:
      Ten elements in seven regions, of one or two elements:

      >>> import jaxpool as jp
      >>> ((start, end),) = jp.fractional_boundaries((10, 1), (7,), deterministic=True)
      >>> start
      Array([0, 2, 3, 5, 6, 7, 9], dtype=int32)
      >>> end
      Array([ 2,  3,  5,  6,  7,  9, 10], dtype=int32)
    """
    caller = "fractional_boundaries"
    shape = as_shape(caller, "input_shape", input_shape)
    spec = (output_shape, ratio, window_shape, overlapping, axis)
    chance = (key, deterministic, mode, shared, samples)
    return _spans(caller, shape, _lines(caller, shape, *spec), *chance)


@dataclass(frozen=True)
class _Line:
    """One pooled axis: `out` regions of `least` to `most` elements each.

    `window` is the size that was asked for, if any.
    """

    axis: int
    size: int
    out: int
    window: int | None
    overlapping: bool
    least: int
    most: int

    @property
    def disjoint(self) -> bool:
        """Whether no two regions share an element."""
        return self.window is None and not self.overlapping


def _laid(
    caller: str, x: jax.Array, spec: tuple, chance: tuple
) -> tuple[tuple[_Line, ...], Any]:
    """The pooled axes, in the user's order, and (start, end), `[..., O]`, for each."""
    lines = _lines(caller, x.shape, *spec)
    check_whole(caller, x, [line.axis for line in lines])
    return lines, _spans(caller, x.shape, lines, *chance)


def _lines(caller, shape, output_shape, ratio, window_shape, overlapping, axis):
    """The pooled axes, in the order in which the user names them."""
    if (output_shape is None) == (ratio is None):
        value = (output_shape, ratio)
        raise fail(caller, "output_shape", "or `ratio` must be given, not both", value)
    name, given = "output_shape", output_shape
    if ratio is not None:
        name, given = "ratio", ratio
    if axis is not None:
        axes = resolve_axes(caller, axis, len(shape))
    elif is_sequence(given):
        axes = tuple(range(-1 - len(given), -1))
    else:
        rule = "must be a sequence with one number for each pooled axis, unless `axis=`"
        raise fail(caller, name, f"{rule} is given", given)
    alone = not is_sequence(given)
    entries = as_entries(caller, name, (given,) * len(axes) if alone else given)
    if len(entries) != len(axes):
        rule = f"must have {len(axes)} entries, one for each pooled axis"
        raise fail(caller, name, rule, given)
    if not axes or len(shape) <= len(axes) - (axis is not None):
        rule = f"must have between 1 and {len(shape) - 1} entries to fit the array"
        raise fail(caller, name, rule, given)
    overlapping = as_flag(caller, "overlapping", overlapping)
    windows = (None,) * len(axes)
    if window_shape is not None:
        windows = as_ints(caller, "window_shape", window_shape, len(axes), 1)
        if overlapping:
            rule = "must be False where `window_shape` says how far windows reach"
            raise fail(caller, "overlapping", rule, overlapping)
    lines = []
    for a, entry, window in zip(axes, entries, windows, strict=True):
        size = static_size(caller, shape[a])
        as_int(caller, "x.shape", size, 1)
        if ratio is not None:
            out = _divided(caller, size, entry)
        else:
            out = size if entry is None else as_int(caller, name, entry, 1)
        room = size - (window or 1) + 1
        if not 1 <= out <= room:
            rule = f"must leave between 1 and {room} regions on axis {a} of size {size}"
            rule += f" for a window of {window}" if window else ""
            raise fail(caller, name, f"{rule}, not {out}", given)
        least = most = window or size // out
        if window is None:
            # The last region has no next one whose first element it could share.
            most = min(most + (size % out > 0) + (overlapping and out > 1), size)
        lines.append(_Line(a, size, out, window, overlapping, least, most))
    return tuple(lines)


def _divided(caller: str, size: int, ratio: Any) -> int:
    """floor(size / ratio), for the number that the float stands for."""
    if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real):
        raise fail(caller, "ratio", "must be made of numbers", ratio, TypeError)
    try:
        exact = Fraction(str(ratio)).limit_denominator(10**6)
    except ValueError:  # NaN and infinity
        exact = Fraction(0)
    if exact < 1:
        rule = "must be finite and at least 1: input size over output size"
        raise fail(caller, "ratio", rule, ratio)
    return size * exact.denominator // exact.numerator


def _spans(
    caller: str,
    shape: Sequence[Any],
    lines: Sequence[_Line],
    key: Any,
    deterministic: bool,
    mode: Mode,
    shared: Shared,
    samples: Samples | None,
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """(start, end) for each line, `[..., O]`."""
    if not is_name(mode, ("pseudorandom", "random")):
        raise fail(caller, "mode", "must be 'pseudorandom' or 'random'", mode)
    if not (isinstance(shared, bool) or is_name(shared, ("channels",))):
        raise fail(caller, "shared", "must be True, False or 'channels'", shared)
    pooled = {len(shape) + line.axis for line in lines}
    kept = tuple(n for d, n in enumerate(shape) if d not in pooled)
    lead = () if shared is True else (*kept[:-1], 1) if shared and kept else kept
    if samples is not None:
        if mode == "random":
            rule = "must be None where regions are shuffled, which takes more numbers"
            raise fail(caller, "samples", rule, samples)
        u = _as_samples(caller, samples, kept, len(lines))
    elif as_flag(caller, "deterministic", deterministic):
        u = jnp.full(len(lines), 0.5, jnp.float32)
    elif mode == "random":
        keys = jax.random.split(as_key(caller, key), len(lines))
        return tuple(_shuffled(keys[i], lead, line) for i, line in enumerate(lines))
    else:
        u = jax.random.uniform(as_key(caller, key), (*lead, len(lines)), jnp.float32)
    return tuple(_sequence(u[..., i : i + 1], line) for i, line in enumerate(lines))


def _as_samples(
    caller: str, samples: Samples, kept: Sequence[Any], n: int
) -> jax.Array:
    """Numbers in [0, 1), `[..., n]`, whose leading axes broadcast to `kept`."""
    u = as_array(caller, cast(Any, samples), "samples", ordered=True)
    u = u if jnp.issubdtype(u.dtype, jnp.floating) else u.astype(jnp.float32)
    lead = u.shape[:-1]
    fits = len(lead) <= len(kept) and u.shape[-1:] == (n,)
    aligned = kept[len(kept) - len(lead) :]
    if not fits or any(m not in (1, k) for m, k in zip(lead, aligned, strict=True)):
        rule = f"must be [..., {n}], with leading axes that broadcast to {kept}"
        raise fail(caller, "samples", rule, u.shape)
    if not isinstance(u, Tracer):
        values = np.asarray(u, np.float64)
        if not np.all((values >= 0) & (values < 1)):
            raise fail(caller, "samples", "must lie in [0, 1)", samples)
    return u


@functools.partial(jax.jit, static_argnums=1)
def _sequence(u, line):
    """The pseudo-random (start, end) of `u`, `[..., 1]`."""
    if line.window is not None:
        start = _torch_starts(u, line)
        return start, start + np.int32(line.window)
    out, rest = line.out, line.size % line.out
    bound = min(2 * out - rest, out + rest)
    u = u.astype(accumulation_dtype(u.dtype))
    w = jnp.clip((u * bound).astype(jnp.int32), 0, bound - 1)
    # (i * size + w) // out, without products that int32 could not hold.
    multiples = _last(np.arange(1, out) * line.size, u.ndim)
    whole, part = (q.astype(np.int32) for q in np.divmod(multiples, out))
    inner = whole + (part + w) // np.int32(out)
    return _regions(inner, line)


def _regions(inner, line):
    """The (start, end) between boundaries, of which `inner` lacks first and last."""
    start, end = _framed(inner, low=0), _framed(inner, high=line.size)
    return start, jnp.minimum(end + 1, line.size) if line.overlapping else end


def _framed(inner, **ends):
    """`inner` with one more number in front (`low`) or behind (`high`)."""
    for end, value in ends.items():
        pads = [(0, 0, 0)] * (inner.ndim - 1) + [(end == "low", end == "high", 0)]
        inner = lax.pad(inner, np.int32(value), pads)
    return inner


def _torch_starts(u, line):
    """Where windows start, rounded at every step as PyTorch rounds in u's dtype."""
    info, last = jnp.finfo(u.dtype), line.size - line.window
    number, wide = np.dtype(u.dtype).type, accumulation_dtype(u.dtype)

    def rounded(value):
        return lax.reduce_precision(value, info.nexp, info.nmant)

    alpha = number(last) / number(max(line.out - 1, 1))
    steps = _last(np.arange(line.out - 1), u.ndim).astype(u.dtype).astype(wide)
    alpha, u = alpha.astype(wide), u.astype(wide)
    places = rounded(rounded(steps + u) * alpha).astype(jnp.int32)
    start = places - rounded(u * alpha).astype(jnp.int32)
    return jnp.clip(_framed(start, high=last), 0, last)


def _last(row, ndim):
    """`row` as an array of rank `ndim`."""
    return row.reshape(*[1] * (ndim - 1), -1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _shuffled(key, lead, line):
    """A random (start, end): sizes, or steps between windows, in random order."""
    fixed = line.window is not None
    total, parts = line.size - (line.window or 0), line.out - fixed
    step, longer = divmod(total, max(parts, 1))
    steps = (step + (np.arange(parts) < longer)).astype(np.int32)
    # Sorted by random numbers, whose ties are rare: `jax.random.permutation` can't be
    # exported with a symbolic batch.
    order = jax.random.bits(key, (*lead, parts), jnp.uint32)
    order, steps = vary_alike(order, jnp.broadcast_to(steps, order.shape))
    _, steps = lax.sort_key_val(order, steps)
    inner = jnp.cumsum(steps, -1, dtype=jnp.int32)[..., :-1]
    if not fixed:
        return _regions(inner, line)
    start = _framed(inner, **({"low": 0} if parts else {}), high=total)
    return start, start + np.int32(line.window)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _largest(x, spans, lines, with_index):
    """(values,), or (values, indices), of the first largest element of each region.

    A window is covered by parts of a power of two, which may share elements: of two
    equal parts the first holds the first of the largest elements.
    """
    # Gradients add up in what half precision is converted to.
    values = x.astype(accumulation_dtype(x.dtype))
    pooled = tuple(sorted(line.axis for line in lines))
    arrays: tuple[jax.Array, ...] = (values,)
    if with_index:  # zeros that are laid out on devices as `x`
        zeros = (x != x).astype(jnp.int32) * 0
        arrays = (values, zeros + flat_positions(x.shape, pooled))
    for line, span in _last_first(lines, spans):
        start, end = (_along(b, x.ndim, line, pooled) for b in span)
        width = 1
        while 2 * width <= line.least:
            arrays = _first_larger(*_neighbours(arrays, width, line))
            width *= 2
        parts = []
        for i in range(-(-line.most // width)):
            place = jnp.minimum(start + np.int32(i * width), end - np.int32(width))
            parts.append(tuple(_rows(a, place, line) for a in arrays))
        arrays = functools.reduce(_first_larger, parts)
    return (arrays[0].astype(x.dtype), *arrays[1:])


def _first_larger(first, second):
    """Of two arrays, each with others that follow it, the larger; NaN is largest."""
    (a, *firsts), (b, *seconds) = first, second
    larger = _larger if jnp.issubdtype(a.dtype, jnp.floating) else lax.max
    rest = [jnp.where(_wins(a, b), q, p) for p, q in zip(firsts, seconds, strict=True)]
    return (larger(a, b), *rest)


def _wins(a, b):
    """Whether `b` is the maximum of both, and `a` is not."""
    return (b > a) | ((b != b) & (a == a))


@jax.custom_jvp
def _larger(a, b):
    # Not a choice by `_wins`, for which XLA's CPU backend branches at each element.
    return lax.max(a, b)


@_larger.defjvp
def _larger_jvp(primals, tangents):
    return _larger(*primals), jnp.where(_wins(*primals), *tangents[::-1])


@functools.partial(jax.jit, static_argnums=2)
def _mean(x, spans, lines):
    """The mean of each region: sums of disjoint parts, each a power of two long."""
    dtype = mean_dtype(x.dtype)
    x = x.astype(accumulation_dtype(dtype))
    pooled = tuple(sorted(line.axis for line in lines))
    count = jnp.ones((1,) * x.ndim, jnp.int32)
    for line, span in _last_first(lines, spans):
        start, end = (_along(b, x.ndim, line, pooled) for b in span)
        count = count * (end - start)
        terms, blocks, width = [], (x,), 1
        while width <= line.least:
            if line.least & width:
                terms.append(_rows(blocks[0], start, line))
                start = start + np.int32(width)
            if 2 * width <= line.least:
                (first,), (second,) = _neighbours(blocks, width, line)
                blocks = (first + second,)
            width *= 2
        for _ in range(line.most - line.least):
            part = _rows(x, jnp.minimum(start, end - 1), line)
            terms.append(jnp.where(start < end, part, jnp.zeros((), x.dtype)))
            start = start + 1
        x = functools.reduce(lax.add, terms)
    return divide(x, count).astype(dtype)


def _last_first(lines, spans):
    """Lines with their spans, the last axis first: so ties stay row-major."""
    pairs = zip(lines, spans, strict=True)
    return sorted(pairs, key=lambda pair: pair[0].axis, reverse=True)


def _along(bounds, ndim, line, pooled):
    """Boundaries `[..., O]` as an array of rank `ndim`, with O on the line's axis."""
    kept = [d - ndim for d in range(ndim) if d - ndim not in pooled]
    others = [a for a in pooled if a != line.axis]
    lead = (1,) * (len(kept) + 1 - bounds.ndim) + bounds.shape[:-1]
    bounds = bounds.reshape(*lead, *[1] * len(others), line.out)
    return jnp.moveaxis(bounds, range(ndim), (*kept, *others, line.axis))


def _neighbours(arrays, distance, line):
    """Each array without its last, and without its first, `distance` elements."""
    axis = arrays[0].ndim + line.axis
    size = arrays[0].shape[axis]
    cut = functools.partial(lax.slice_in_dim, axis=axis)
    return (
        tuple(cut(a, 0, size - distance) for a in arrays),
        tuple(cut(a, distance, size) for a in arrays),
    )


def _rows(x, places, line):
    """The elements of `x` at `places`, which must be there, along the line's axis.

    `places` stand so far behind the start of each region, or so far before its end if
    that comes first. Of disjoint regions both ascend, and no place stands twice: the
    transpose adds in no order that threads could change.
    """
    axis = x.ndim + line.axis
    own = [d for d, n in enumerate(places.shape) if d == axis or n != 1]
    shared = tuple(d for d in range(x.ndim) if d not in own)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=shared,
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=tuple(d for d in own if d != axis),
        start_indices_batching_dims=tuple(i for i, d in enumerate(own) if d != axis),
    )
    return lax.gather(
        x,
        lax.squeeze(places, shared)[..., None],
        numbers,
        # Of nothing, jax 0.7 reads no more than nothing.
        [n if d in shared else int(n != 0) for d, n in enumerate(x.shape)],
        unique_indices=line.disjoint,
        mode="promise_in_bounds",
    )
