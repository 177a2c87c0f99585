r"""Dilation and erosion: maximum and minimum of windows with a landscape added on top.

The landscape, a structuring element of the window's shape, says how much each place of
a window is favoured, and can be learned. Of zeros alone it leaves maximum and minimum.

References:
  Jean Serra: Image Analysis and Mathematical Morphology, 1982.
  Gianni Franchi, Amin Fehri, Angela Yao: Deep morphological networks, 2020 (learned, as
  layers that pool).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core import linear, taps
from jaxpool._core.arguments import kernel_shape, kernel_taps, laid
from jaxpool._core.engine import (
    identity,
    window_extremum,
    window_pad,
    window_taps,
)
from jaxpool._core.geometry import static_size
from jaxpool._core.numerics import accumulation_dtype, mean_dtype
from jaxpool._core.op import Weight, pool_op
from jaxpool._core.order import MOST_MATCHED
from jaxpool._core.stages import large_and_whole
from jaxpool._core.window import Ints, Padding, fail

__all__ = ["dilate_pool", "erode_pool"]


def _element(
    window_shape: Ints, *, axis: Ints | None = None, features: int | None = None
) -> dict[str, Weight]:
    """The element starts at 0: with that, they are maximum and minimum.

    Args:
      features: channels C of the input, for an element a channel; None for one for all.
    """
    shape = kernel_shape("DilatePool or ErodePool", window_shape, axis, features)
    return {"element": (shape, initializers.zeros)}


@pool_op("morphology", "other", arrays=_element)
def dilate_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    element: ArrayLike,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Dilation: the largest of each window plus a landscape; strides default to 1.

    .. math:: y_o = \max_{0 \le k < K} \big(x_{o s - p + k d} + e_k\big)

    with the notation of :func:`max_pool`, which it equals for e = 0. As convolutions of
    neural networks do, it reads e in the order of x: it is the dilation of morphology,
    :math:`\max_z x_{o - z} + b_z`, by the reflected element, so that kornia's
    `dilation(x, kernel, structuring_element=b)` is `dilate_pool` with
    `padding="SAME"` and `element=b[::-1, ::-1]`.

    Gradient: all of it goes to the first element in row-major order whose sum is
    maximal, or NaN, and to its entry of e.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`; of at most 254 elements, unless it is the whole
        extent.
      element: the structuring element e, of the shape of the window, or `[*window, C]`
        with one a channel; in units of x. -inf leaves a place out.

    Returns:
      `[B..., O..., C]`; floats in the dtype of `x` (half precision adds in float32),
      integers as floats. A window without elements gives -inf and no gradient.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, for larger windows, and for
        elements of other shapes.

    Example:
      The middle of a window is at a disadvantage of 4:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 5.0, 2.0, 0.0])[:, None]
      >>> jp.dilate_pool(x, (3,), element=jnp.array([0.0, -4.0, 0.0]))[:, 0]
      Array([2., 5.], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    return _dilate("dilate_pool", x, spec, element, where, 1)


@pool_op("morphology", "other", arrays=_element)
def erode_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    element: ArrayLike,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Erosion: the smallest of each window less a landscape; strides default to 1.

    .. math:: y_o = \min_{0 \le k < K} \big(x_{o s - p + k d} - e_k\big)

    which is :func:`min_pool` for e = 0, and minus the dilation of -x. Arguments,
    dtypes, errors and gradient as in :func:`dilate_pool`; a window without elements
    gives inf. It reads e as morphology and kornia's `erosion` do (the latter with
    `padding="SAME_LOWER"`). Dilation by e and erosion by the reflected e, with strides
    of 1, make an opening or a closing.

    Example:
      An opening, which takes away what is narrower than the window:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([0.0, 0.0, 9.0, 0.0, 4.0, 4.0, 4.0, 0.0])[:, None]
      >>> y = jp.erode_pool(x, (3,), padding="SAME", element=jnp.zeros(3))
      >>> jp.dilate_pool(y, (3,), padding="SAME", element=jnp.zeros(3))[:, 0]
      Array([0., 0., 0., 0., 4., 4., 4., 0.], dtype=float32)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    return _dilate("erode_pool", x, spec, element, where, -1)


def _dilate(caller, x, spec, element, where, sign):
    """The dilation of `x`, or with a sign of -1 minus that of `-x`."""
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    for a in geometry.axes:
        static_size(caller, a.size)
    whole = large_and_whole(geometry)
    if geometry.taps > MOST_MATCHED and not whole:
        rule = f"must have at most {MOST_MATCHED} elements, or be the whole extent"
        raise fail(caller, "window_shape", rule, spec[0])
    dtype = mean_dtype(x.dtype)
    rest = [a for a in range(-x.ndim, 0) if a not in geometry.pooled]
    wide = sign * x.astype(accumulation_dtype(dtype))
    entries = kernel_taps(caller, "element", element, wide, geometry, spec[-1])
    if whole:
        others = [entries.shape[a] for a in rest]
        over = entries.reshape(*geometry.sizes, *others)
        over = over.transpose(np.argsort([*geometry.pooled, *rest]))
        y = window_extremum(wide + over, geometry, True, where)
    else:
        lowest = identity(wide.dtype, True)
        wide, geometry, where = window_pad(wide, geometry, where, lowest)
        y = _highest(wide, list(entries), where, geometry)
    return (sign * y).astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _highest(x, entries, where, geometry):
    """The largest sum of each window, whose padding `x` holds and `where` hides."""
    del where  # only the derivative has to tell a hidden element from an equal one
    return _value(x, entries, geometry)


@_highest.defjvp
def _highest_jvp(geometry, primals, tangents):
    x, entries, where = primals
    code = _code(*lax.stop_gradient((x, entries)), where, geometry)

    def chosen(x, entries):
        return linear.read(x, geometry, code) + _read(entries, code, geometry)

    tangent = jax.jvp(chosen, (x, entries), tangents[:2])[1]
    # The decorated function, so that a second derivative follows this rule too.
    return _highest(x, entries, where, geometry), tangent


def _sums(x, entries, geometry):
    parts = window_taps(x, geometry)
    return [part + entry for part, entry in zip(parts, entries, strict=True)]


@functools.partial(jax.jit, static_argnums=2)
def _value(x, entries, geometry):
    return functools.reduce(lax.max, _sums(x, entries, geometry))


@functools.partial(jax.jit, static_argnums=3)
def _code(x, entries, where, geometry):
    """The code of the first largest sum of each window, as in `taps.choose`.

    In one pass, with its own running maximum: compared with a maximum from elsewhere,
    a sum that was rounded otherwise there would be found nowhere.
    """
    sums = _sums(x, entries, geometry)
    alive = [None] * len(sums) if where is None else window_taps(where, geometry)
    highest, code = sums[0], jnp.where(sums[0] == sums[0], taps.NONE, taps.NONE)
    for tap, (value, shown) in enumerate(zip(sums, alive, strict=True)):
        wins = (code == taps.NONE) | (~(value <= highest) & (highest == highest))
        wins = wins if shown is None else wins & shown
        code = jnp.where(wins, np.uint8(tap), code)
        highest = lax.max(highest, value)
    return taps.apart(code)


@functools.partial(jax.jit, static_argnums=2)
def _read(entries, code, geometry):
    """The entry that each code names.

    Row after row: the transpose adds up, for each entry, all outputs that chose it, and
    XLA's CPU backend would first write out an array as large as the output for each.
    """
    axis = code.ndim + geometry.pooled[0]

    @functools.partial(jax.checkpoint, prevent_cse=False)  # keeps codes, not masks
    def row(entries, code):
        code = lax.expand_dims(code, [axis])
        terms = [
            jnp.where(code == np.uint8(tap), entry, 0)
            for tap, entry in enumerate(entries)
        ]
        return lax.squeeze(functools.reduce(lax.add, terms), [axis])

    rows = lax.map(functools.partial(row, entries), jnp.moveaxis(code, axis, 0))
    return jnp.moveaxis(rows, 0, axis)
