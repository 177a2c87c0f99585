r"""Pools in the frequency domain: low frequencies stay, the others go.

With the coefficients :math:`X_k = \frac{1}{L} \sum_i x_i e^{-2 \pi j k i / L}` of an
axis of size L, an output of size O is, along each pooled axis,

.. math:: y_o = \sum_{|k| \le m / 2} g_k X_k e^{2 \pi j k o / O}, \qquad m = \min(L, O)

whose gain is 1 at k = 0: a constant stays what it is. Where m is even,
:math:`k = \pm m / 2` count half each, so the result is real: per axis the mean of the
two, and at the corner of several axes the mean over all signs. (The real part of a
complex crop differs there alone: at a corner it keeps two of the signs.)

That is a real matrix for each axis, O x L, and is computed as one: for the sizes that
networks pool it is faster than a Fourier transform, and needs less memory. Half
precision is multiplied in float32 and rounded once.

Pools of Haar wavelets, the other tiling of frequencies, are sums and differences of
neighbours.

References:
  Oren Rippel, Jasper Snoek, Ryan Adams: Spectral Representations for Convolutional
  Neural Networks, 2015.
  Julia Grabinski, Steffen Jung, Janis Keuper, Margret Keuper: FrequencyLowCut Pooling,
  2022.
  Rachid Riad, Olivier Teboul, David Grangier, Neil Zeghidour: Learning Strides in
  Convolutional Neural Networks, 2022.
  Travis Williams, Robert Li: Wavelet Pooling for Convolutional Neural Networks, 2018.
  Guoping Xu, Wentao Liao, Xuan Zhang, Chang Li, Xinwei He, Xinglong Wu: Haar Wavelet
  Downsampling, 2023 (all bands).
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, check_whole, output_axes, whole
from jaxpool._core.engine import window_sum, window_taps
from jaxpool._core.geometry import Geometry, static_size
from jaxpool._core.numerics import accumulation_dtype, mean_dtype
from jaxpool._core.op import Example, pool_op
from jaxpool._core.window import Ints, Window, as_number, fail, is_name, resolve_axes

__all__ = ["diffstride_pool", "flc_pool", "haar_pool", "haar_unpool", "spectral_pool"]

OutputShape = int | None | Sequence[int | None]


@pool_op("frequency", "other", linear=True)
def spectral_pool(
    x: ArrayLike, output_shape: OutputShape, *, axis: Ints | None = None
) -> jax.Array:
    r"""The lowest frequencies, as many as an output of the given size can hold.

    .. math:: y_o = \sum_{|k| \le m / 2} X_k e^{2 \pi j k o / O}, \qquad m = \min(L, O)

    along each pooled axis, by the convention of this module at :math:`|k| = m / 2`. An
    output larger than the input has no further frequencies: it is the trigonometric
    interpolation. Linear; gradient: the transposed matrix times the output's.

    Args:
      x: `[B..., S..., C]`, of any dtype.
      output_shape: the output's size for each pooled axis, at least 1; None keeps the
        input's, and an int needs `axis=`.
      axis: the pooled axes, by default those before a trailing channel axis.

    Returns:
      `[B..., *output_shape, C]`; floats in the dtype of `x`, integers as floats. Every
      output has a part of every element of its plane: one NaN makes all of them NaN.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or empty axes.

    Example:
      The mean stays, and the fastest wave goes:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, -1.0, 1.0, -1.0]) + 3.0
      >>> jp.spectral_pool(x[:, None], (2,))[:, 0]
      Array([3., 3.], dtype=float32)
    """
    caller = "spectral_pool"
    x = as_array(caller, x)
    axes, sizes = output_axes(caller, output_shape, axis, x.ndim, x.shape)
    check_whole(caller, x, range(min(axes), 0))
    return _resample(x, {a: (out, None) for a, out in zip(axes, sizes, strict=True)})


@pool_op(
    "frequency", "other", linear=True, camel="FLCPool", example=Example((2, 4, 4, 16))
)
def flc_pool(x: ArrayLike, *, axis: Ints | None = None) -> jax.Array:
    r"""The lower half of the frequencies (frequency low cut), for half the size.

    .. math:: y_o = \sum_{|k| \le O / 2} X_k e^{2 \pi j k o / O}, \qquad
        O = \lceil L / 2 \rceil

    That is :func:`spectral_pool` for half the size, whose gradient it has. The paper's
    frequencies, :math:`[L / 4, 3 L / 4)` of the sorted ones, are these where 4 divides
    L, but for the convention at L / 4; for other sizes they would not lie around 0.

    Args:
      x: `[B..., S..., C]`, of any dtype.
      axis: the pooled axes, by default all but the first and the last.

    Returns:
      `[B..., O..., C]`, as from :func:`spectral_pool`.

    Raises:
      ValueError, TypeError: as in :func:`spectral_pool`.

    Example:
      The mean stays, and the fastest wave goes:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, -1.0, 1.0, -1.0]) + 3.0
      >>> jp.flc_pool(x[None, :, None])[0, :, 0]
      Array([3., 3.], dtype=float32)
    """
    x, geometry, _ = whole("flc_pool", x, None, axis)
    check_whole("flc_pool", x, range(min(geometry.pooled), 0))
    halves = (-(-static_size("flc_pool", size) // 2) for size in geometry.sizes)
    halved = zip(geometry.pooled, halves, strict=True)
    return _resample(x, {a: (out, None) for a, out in halved})


@pool_op(
    "frequency",
    "other",
    linear=True,
    learned=("strides",),
    per_channel=False,
    camel="DiffStridePool",
    example=Example((2, 8, 8, 16)),
)
def diffstride_pool(
    x: ArrayLike,
    strides: ArrayLike,
    *,
    smoothness: float = 4.0,
    output_shape: OutputShape = None,
    axis: Ints | None = None,
) -> jax.Array:
    r"""A low-pass filter whose bandwidth is that of a learned, fractional stride.

    .. math:: y_o = \sum_{|k| \le m / 2} g_k X_k e^{2 \pi j k o / O}, \qquad
        g_k = \operatorname{clip}\Big(\frac{R + L / (2 s) - |k|}{R},\ 0,\ 1\Big)

    along each pooled axis, with stride :math:`s \ge 1`, smoothness :math:`R` and
    :math:`m = \min(L, O)`, by the convention of this module at :math:`|k| = m / 2`. So
    :math:`s = 1` changes nothing, and the mean stays for any other.

    The paper crops the frequencies whose gain is 0, which makes the output's size
    depend on what is learned. Here it is the input's, or `output_shape`, to which the
    rest is resampled as by :func:`spectral_pool`.

    Linear in `x`, with the transposed matrix as gradient. Gradient in s: that of the
    gains between 0 and 1, :math:`\partial g_k / \partial s = -L / (2 s^2 R)`, from all
    frequencies that they weigh. None at :math:`s = 1`: start above it.

    Args:
      x: `[B..., S..., C]`, of any dtype.
      strides: :math:`s`, in elements of the input, one for each pooled axis; a scalar,
        for all of them, needs `axis=`. Values below 1, if not refused because they are
        not known yet (within `jit`), count as 1.
      smoothness: :math:`R`, the number of frequencies over which the gain falls from 1
        to 0, greater than 0.
      output_shape: the output's size for each pooled axis, as in :func:`spectral_pool`.
      axis: the pooled axes, by default those before a trailing channel axis.

    Returns:
      `[B..., O..., C]`, as from :func:`spectral_pool`.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or empty axes.

    Example:
      A stride of 8 leaves the mean of the fastest wave:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([4.0, 0.0, 4.0, 0.0, 4.0, 0.0, 4.0, 0.0])[:, None]
      >>> jp.diffstride_pool(x, (8.0,), smoothness=1.0)[:2, 0]
      Array([2., 2.], dtype=float32)
    """
    caller = "diffstride_pool"
    x = as_array(caller, x)
    stride = _as_strides(caller, strides)
    rule = "must be a finite number greater than 0"
    smoothness = as_number(
        caller, "smoothness", smoothness, rule, lambda n: 0 < n < math.inf
    )
    if axis is None:
        if stride.ndim == 0:
            rule = "must be a sequence with one for each pooled axis, unless `axis=`"
            raise fail(caller, "strides", f"{rule} is given", strides)
        axis = tuple(range(-1 - len(stride), -1))
        if not 1 < len(axis) + 1 <= x.ndim:
            rule = f"must have between 1 and {x.ndim - 1} entries to fit the array"
            raise fail(caller, "strides", rule, strides)
    named = resolve_axes(caller, axis, x.ndim)
    if stride.ndim and len(stride) != len(named):
        rule = f"must have {len(named)} entries, one for each pooled axis"
        raise fail(caller, "strides", rule, strides)
    shape = (None,) * len(named) if output_shape is None else output_shape
    axes, outs = output_axes(caller, shape, named, x.ndim, x.shape)
    check_whole(caller, x, range(min(axes), 0))
    dtype = jnp.finfo(accumulation_dtype(mean_dtype(x.dtype))).dtype
    stride = jnp.broadcast_to(jnp.maximum(stride.astype(dtype), 1), (len(named),))
    kept = {}
    for a, out in zip(axes, outs, strict=True):
        size = x.shape[a]
        k = np.arange(min(size, out) // 2 + 1, dtype=dtype)
        edge = smoothness + size / (2 * stride[named.index(a)])
        kept[a] = out, jnp.clip((edge - k) / smoothness, 0, 1)
    return _resample(x, kept)


def _as_strides(caller: str, strides: ArrayLike) -> jax.Array:
    array = as_array(caller, strides, "strides")
    if array.ndim > 1 or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise fail(caller, "strides", "must be real, a scalar or a vector", strides)
    if not isinstance(strides, Tracer) and not isinstance(array, Tracer):
        numbers = np.asarray(array)
        if not np.all((numbers >= 1) & np.isfinite(numbers)):
            raise fail(caller, "strides", "must be finite and at least 1", strides)
    return array


def _resample(x, kept) -> jax.Array:
    """`x` with `kept[axis] = (size, gains)` of frequencies, None for gains of 1."""
    dtype = mean_dtype(x.dtype)
    y = x.astype(accumulation_dtype(dtype))
    for a, (out, gains) in kept.items():
        size = x.shape[a]
        if gains is not None:
            matrix = _filtered(gains, size, out).astype(y.dtype)
        elif size == out:
            continue
        else:
            matrix = np.asarray(_cropped(size, out), y.dtype)
        y = _along(y, matrix, y.ndim + a)
    return y.astype(dtype)


@functools.lru_cache(256)
def _waves(size: int, frequencies: int) -> np.ndarray:
    """Cosines, then sines, of the frequencies 0, 1, ...: `[2 * frequencies, size]`."""
    turns = np.outer(np.arange(frequencies), np.arange(size)) % size / size
    return np.concatenate([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)])


def _weights(size: int, out: int) -> np.ndarray:
    """How often each frequency counts: k and -k are one, but for 0 and half a turn."""
    least = min(size, out)
    weights = np.full(least // 2 + 1, 2.0)
    weights[0] = 1
    if least % 2 == 0:
        weights[-1] = 1
    return weights / size


@functools.lru_cache(256)
def _cropped(size: int, out: int) -> np.ndarray:
    """The matrix `[out, size]` that keeps what frequencies it can."""
    weights = np.tile(_weights(size, out), 2)
    before, after = (_waves(n, len(weights) // 2) for n in (size, out))
    matrix = after.T @ (weights[:, None] * before)
    # What is 0 has to be: infinity times a rounding error would be infinite.
    return np.where(np.abs(matrix) < 1e-14, 0, matrix)


def _filtered(gains: jax.Array, size: int, out: int) -> jax.Array:
    """The same for frequencies that are weighed first."""
    before, after = (_waves(n, len(gains)).astype(gains.dtype) for n in (size, out))
    weights = jnp.tile(gains * _weights(size, out).astype(gains.dtype), 2)
    high = lax.Precision.HIGHEST
    return jnp.matmul(after.T, weights[:, None] * before, precision=high)


@functools.partial(jax.jit, static_argnums=2)
def _along(x: jax.Array, matrix: ArrayLike, axis: int) -> jax.Array:
    """The matrix times `x`, along an axis counted from the front."""
    lead, size, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    out, columns = np.shape(matrix)[0], math.prod(rest)
    matrix = jnp.asarray(matrix)
    high = lax.Precision.HIGHEST
    if not (isinstance(columns, int) and columns >= out):
        # The matrix, once for each product, would be larger than the input.
        y = jnp.tensordot(x, matrix, ((axis,), (1,)), precision=high)
        return jnp.moveaxis(y, -1, axis)
    z = x.reshape(*lead, size, columns)
    # Products of two batches need no transposition; `none` says how they are sharded.
    none = jnp.zeros_like(jnp.sum(z, (-2, -1), keepdims=True))
    stacked = none + lax.expand_dims(matrix, range(len(lead)))
    return jnp.matmul(stacked, z, precision=high).reshape(*lead, out, *rest)


@pool_op("frequency", "other", linear=True, example=Example((2, 4, 4, 16)))
def haar_pool(
    x: ArrayLike, *, bands: Literal["low", "all"] = "low", axis: Ints | None = None
) -> jax.Array:
    r"""The Haar wavelet transform, once: its low band, or all bands as channels.

    .. math:: y^{(b)}_o = 2^{-d/2} \sum_{p \in \{0, 1\}^d} (-1)^{b \cdot p} x_{2 o + p}

    for the :math:`2^d` bands :math:`b \in \{0, 1\}^d` of d pooled axes: 1 stands for
    the difference along that axis. The transform is orthonormal; the low band, b = 0,
    is the mean of 2 x 2 elements times :math:`2^{d/2}`, thus twice the mean for images.
    (Two levels of which the first one's details are dropped, as in wavelet pooling,
    give the low band of the first.) Linear; gradient: the transposed, for all bands
    :func:`haar_unpool`.

    Args:
      x: `[B..., S..., C]`, of any dtype; the pooled axes have even sizes.
      bands: `"low"`, or `"all"`: bands in row-major order of b (for images LL, then
        differences along columns, along rows, along both), each with all channels.
      axis: the pooled axes, by default all but the first and the last. Channels are the
        last axis that is not among them.

    Returns:
      `[B..., S/2..., C]`, or `[B..., S/2..., 2^d C]` for all bands; floats in the dtype
      of `x`, integers as floats.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or odd sizes.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 3.0], [5.0, 7.0]])[..., None]
      >>> jp.haar_pool(x, bands="all", axis=(0, 1))[0, 0]
      Array([ 8., -2., -4.,  0.], dtype=float32)
    """
    caller = "haar_pool"
    x, geometry, _ = whole(caller, x, None, axis)
    if not is_name(bands, ("low", "all")):
        raise fail(caller, "bands", "must be one of low, all", bands)
    if any(static_size(caller, size) % 2 for size in geometry.sizes):
        rule = f"must have even sizes along the axes {geometry.pooled}"
        raise fail(caller, "x", rule, x.shape)
    dtype = mean_dtype(x.dtype)
    wide = x.astype(accumulation_dtype(dtype))
    pairs = Geometry.of(Window.of(caller, 2, 2, axis=geometry.pooled), x.shape)
    norm = np.asarray(2 ** (-len(geometry.axes) / 2), wide.dtype)
    if bands == "low":
        return (window_sum(wide, pairs) * norm).astype(dtype)
    parts = [part * norm for part in _differences(window_taps(wide, pairs))]
    channel = _channels(caller, x, geometry)
    return jnp.concatenate([part.astype(dtype) for part in parts], channel)


@pool_op(
    "frequency",
    "other",
    linear=True,
    compare="undoes another method",
    example=Example((2, 16, 16, 4)),
)
def haar_unpool(x: ArrayLike, *, axis: Ints | None = None) -> jax.Array:
    r"""The inverse of :func:`haar_pool` with all bands.

    .. math:: y_{2 o + p} = 2^{-d/2} \sum_{b \in \{0, 1\}^d} (-1)^{b \cdot p} x^{(b)}_o

    Linear; gradient: :func:`haar_pool` with all bands.

    Args:
      x: `[B..., S..., 2^d C]`: the bands in row-major order, as channels.
      axis: the d pooled axes, by default all but the first and the last. Channels are
        the last axis that is not among them.

    Returns:
      `[B..., 2 S..., C]`; floats in the dtype of `x`, integers as floats.

    Raises:
      ValueError, TypeError: for arguments that break these rules, and channels that are
        no multiple of the number of bands.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> bands = jnp.array([8.0, -2.0, -4.0, 0.0])[None, None]
      >>> jp.haar_unpool(bands, axis=(0, 1))[..., 0]
      Array([[1., 3.],
             [5., 7.]], dtype=float32)
    """
    caller = "haar_unpool"
    x, geometry, _ = whole(caller, x, None, axis)
    axes, channel = geometry.pooled, _channels(caller, x, geometry)
    count = 2 ** len(axes)
    if static_size(caller, x.shape[channel]) % count:
        rule = f"must have a multiple of {count} channels, one set for each band"
        raise fail(caller, "x", rule, x.shape)
    dtype = mean_dtype(x.dtype)
    norm = np.asarray(2 ** (-len(axes) / 2), accumulation_dtype(dtype))
    bands = jnp.split(x.astype(norm.dtype), count, channel)
    parts = [(part * norm).astype(dtype) for part in _differences(bands)]
    for a in reversed(axes):  # of which the last runs fastest
        at = parts[0].ndim + a
        parts = [
            lax.collapse(jnp.stack(pair, at + 1), at, at + 2)
            for pair in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _channels(caller: str, x: jax.Array, geometry: Geometry) -> int:
    """The last axis that is not pooled."""
    rest = set(range(-x.ndim, 0)) - set(geometry.pooled)
    if not rest:
        rule = "must leave an axis of channels"
        raise fail(caller, "axis", rule, geometry.pooled)
    return max(rest)


def _differences(parts: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The Walsh-Hadamard transform of 2^d arrays, in row-major order of d bits."""
    if len(parts) == 1:
        return parts
    half = len(parts) // 2
    pairs = list(zip(parts[:half], parts[half:], strict=True))
    return [
        *_differences([a + b for a, b in pairs]),
        *_differences([a - b for a, b in pairs]),
    ]
