r"""Regions of interest: a fixed number of bins of each box, whatever the box's size.

A box is :math:`(x_1, y_1, x_2, y_2)`, its coordinates times `spatial_scale` those of
the feature map. Rows and columns follow the same rules, written here for rows, with
:math:`h` bins of a map of height :math:`H`. What is aligned samples between elements;
what is pooled rounds the box to elements.

Boxes are `[..., K, 4]` with the batch axes of `x`, which they broadcast to: each image
has its own K boxes, or all share them. Or, with `batch_indices`, boxes are `[K, 4]` and
each says which image of `[N, H, W, C]` it is in.

References:
  Ross Girshick: Fast R-CNN, 2015 (`roi_pool`).
  Jifeng Dai, Yi Li, Kaiming He, Jian Sun: R-FCN: Object Detection via Region-based
  Fully Convolutional Networks, 2016 (`ps_roi_pool`).
  Kaiming He, Georgia Gkioxari, Piotr Dollár, Ross Girshick: Mask R-CNN, 2017
  (`roi_align`).
  Tsung-Yi Lin, Piotr Dollár, Ross Girshick, Kaiming He, Bharath Hariharan, Serge
  Belongie: Feature Pyramid Networks for Object Detection, 2017 (`roi_levels`,
  `multiscale_roi_align`).
  Zeming Li, Chao Peng, Gang Yu, Xiangyu Zhang, Yangdong Deng, Jian Sun: Light-Head
  R-CNN: In Defense of Two-Stage Object Detector, 2017 (`ps_roi_align`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxpool._core import regions
from jaxpool._core.arguments import as_array, as_integers, check_whole, int32_of
from jaxpool._core.geometry import static_size
from jaxpool._core.numerics import accumulation_dtype, divide, mean_dtype
from jaxpool._core.op import OPS, Example, pool_op
from jaxpool._core.window import (
    Ints,
    as_entries,
    as_flag,
    as_int,
    as_ints,
    as_number,
    as_positive,
    fail,
    is_sequence,
)

__all__ = [
    "multiscale_roi_align",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_levels",
    "roi_pool",
]

_INPUTS = ("x", "boxes", "batch_indices")


@pool_op(
    "regions",
    "other",
    inputs=_INPUTS,
    camel="RoIAlign",
    linear=True,
    monotone=True,
    example=Example(
        (2, 1, 4, 4, 16),
        {"x": "jnp.ones((2, 8, 8, 16))", "boxes": "jnp.array([[0.0, 0.0, 4.0, 4.0]])"},
    ),
)
def roi_align(
    x: ArrayLike,
    boxes: ArrayLike,
    output_shape: Ints,
    *,
    batch_indices: ArrayLike | None = None,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> jax.Array:
    r"""The mean of bilinear samples in each bin of each box.

    .. math::
        y_{o} = \frac{1}{s^2} \sum_{i, j < s} x(v_{oi}, u_{oj}), \qquad
        v_{oi} = v_0 + \Bigl(o + \frac{i + 1/2}{s}\Bigr) \frac{v_1 - v_0}{h}

    with sampling ratio :math:`s`, where :math:`v_0, v_1` are :math:`y_1, y_2` times
    the scale, less 1/2 if `aligned`; without, the box is at least 1 high and wide.
    :math:`x(v, u)` interpolates between the four nearest elements; it is 0 outside of
    :math:`[-1, H] \times [-1, W]`, and elsewhere that of the nearest place in
    :math:`[0, H - 1] \times [0, W - 1]`.

    Gradient: to each of the four elements by its weight, and to `boxes` through the
    weights (almost everywhere; torchvision has none: `lax.stop_gradient(boxes)`). A
    box with NaN or infinity gives 0; one that is empty or reversed is sampled at the
    points of the formula.

    Args:
      x: `[B..., H, W, C]`, of any dtype; one `[N, H, W, C]` with `batch_indices`.
      boxes: `[B..., K, 4]`, its batch axes broadcast to those of `x`, or `[K, 4]` with
        `batch_indices`: integers or floats, as (x1, y1, x2, y2).
      output_shape: the number of bins (h, w); an int stands for both.
      batch_indices: `[K]`, integers: the image of each box. One without an image is
        refused; under `jit`, where values are not known, its result is 0.
      spatial_scale: what coordinates of boxes are multiplied by to give those of the
        feature map, greater than 0: 1/16 for a map with a stride of 16 pixels.
      sampling_ratio: samples along each axis of a bin, at least 1.
      aligned: whether the element 0 has its middle at 1/2, as pixels do, and not at 0.

    Returns:
      `[B..., K, h, w, C]`, or `[K, h, w, C]` with `batch_indices`; floats in the dtype
      of `x` (half precision is computed in float32), integers as floats.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(16.0).reshape(4, 4, 1)
      >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0]])
      >>> jp.roi_align(x, boxes, (2, 2), aligned=True)[0, ..., 0]
      Array([[0.625, 1.5  ],
             [4.125, 5.   ]], dtype=float32)
    """
    caller = "roi_align"
    x = as_array(caller, x)
    cut = _sampling(caller, output_shape, sampling_ratio, aligned)
    scale = as_positive(caller, "spatial_scale", spatial_scale)
    return _over_boxes(caller, cut, [x], [scale], boxes, batch_indices)


@pool_op(
    "regions",
    "other",
    inputs=_INPUTS,
    camel="PSRoIAlign",
    linear=True,
    monotone=True,
    example=Example(
        (2, 1, 4, 4, 1),
        {"x": "jnp.ones((2, 8, 8, 16))", "boxes": "jnp.array([[0.0, 0.0, 4.0, 4.0]])"},
    ),
)
def ps_roi_align(
    x: ArrayLike,
    boxes: ArrayLike,
    output_shape: Ints,
    *,
    batch_indices: ArrayLike | None = None,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
) -> jax.Array:
    r"""As `roi_align`, where each bin reads channels of its own.

    .. math:: y_{c, o, p} = \operatorname{align}(x_{(c h + o) w + p})_{o, p}

    for bin :math:`(o, p)` of :math:`(h, w)`, with `aligned` coordinates; a box has no
    least size. Arguments, boxes, gradient and errors as in :func:`roi_align`, with
    channels in multiples of h * w.

    Returns:
      `[B..., K, h, w, C / (h * w)]`, or `[K, h, w, C / (h * w)]` with `batch_indices`,
      in the dtype as :func:`roi_align`.

    Example:
      Bin (o, p) of 2 x 2 reads channel 2 o + p:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.broadcast_to(jnp.array([10.0, 20.0, 30.0, 40.0]), (8, 8, 4))
      >>> boxes = jnp.array([[1.0, 1.0, 5.0, 5.0]])
      >>> jp.ps_roi_align(x, boxes, (2, 2))[0, ..., 0]
      Array([[10., 20.],
             [30., 40.]], dtype=float32)
    """
    caller = "ps_roi_align"
    x = as_array(caller, x)
    cut = _sampling(caller, output_shape, sampling_ratio, True, grouped=True)
    scale = as_positive(caller, "spatial_scale", spatial_scale)
    return _over_boxes(caller, cut, [x], [scale], boxes, batch_indices)


@pool_op(
    "regions",
    "other",
    inputs=_INPUTS,
    camel="RoIPool",
    monotone=True,
    example=Example(
        (2, 1, 4, 4, 16),
        {"x": "jnp.ones((2, 8, 8, 16))", "boxes": "jnp.array([[0.0, 0.0, 4.0, 4.0]])"},
    ),
)
def roi_pool(
    x: ArrayLike,
    boxes: ArrayLike,
    output_shape: Ints,
    *,
    batch_indices: ArrayLike | None = None,
    spatial_scale: float = 1.0,
) -> jax.Array:
    r"""The largest element in each bin of each box.

    .. math::
        y_o = \max_{i \in W(o)} x_i, \qquad W(o) = \Bigl\{i :
        \lfloor o\, b \rfloor \le i - v_0 < \lceil (o + 1)\, b \rceil\Bigr\}, \qquad
        b = \frac{\max(v_1 - v_0 + 1, 1)}{h}

    where :math:`v_0, v_1` are :math:`y_1, y_2` times the scale, rounded (halves away
    from 0), both within the box. Bins end with the feature map; an empty bin, and any
    of a box with NaN or infinity, gives 0.

    Gradient: to the first maximal element in row-major order, or to the first NaN, and
    none for an empty bin; to `boxes`, 0. Arguments and errors as in :func:`roi_align`.
    Unlike in torchvision, NaN and -inf are elements as all others are.

    Returns:
      `[B..., K, h, w, C]`, or `[K, h, w, C]` with `batch_indices`, in the dtype of `x`,
      which must be real.

    Example:
      A box in pixels, on a map with a stride of 16 pixels:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.arange(16.0).reshape(4, 4, 1)
      >>> boxes = jnp.array([[0, 0, 48, 48]])
      >>> jp.roi_pool(x, boxes, (2, 2), spatial_scale=1 / 16)[0, ..., 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    caller = "roi_pool"
    x = as_array(caller, x, ordered=True)
    cut = _Largest(as_ints(caller, "output_shape", output_shape, 2, 1))
    scale = as_positive(caller, "spatial_scale", spatial_scale)
    return _over_boxes(caller, cut, [x], [scale], boxes, batch_indices)


@pool_op(
    "regions",
    "other",
    inputs=_INPUTS,
    camel="PSRoIPool",
    linear=True,
    monotone=True,
    example=Example(
        (2, 1, 4, 4, 1),
        {"x": "jnp.ones((2, 8, 8, 16))", "boxes": "jnp.array([[0.0, 0.0, 4.0, 4.0]])"},
    ),
)
def ps_roi_pool(
    x: ArrayLike,
    boxes: ArrayLike,
    output_shape: Ints,
    *,
    batch_indices: ArrayLike | None = None,
    spatial_scale: float = 1.0,
) -> jax.Array:
    r"""The mean of each bin of each box, where each bin reads channels of its own.

    .. math::
        y_{c, o, p} = \frac{1}{|W(o, p)|} \sum_{i \in W(o, p)} x_{(c h + o) w + p,\, i}

    for bin :math:`(o, p)` of :math:`(h, w)`. Bins are those of :func:`roi_pool`, but
    :math:`b = \max(v_1 - v_0, 1) / h`, and they end before the last row and column of
    the feature map, which therefore never take part: as in torchvision's forward pass.
    An empty bin gives 0.

    Gradient: :math:`1 / |W(o, p)|` to each element of the bin. (torchvision's goes to
    other elements where a box reaches the last row or column: its backward pass does
    not end bins there.) Arguments, boxes and errors as in :func:`roi_align`, with
    channels in multiples of h * w and H, W of known size.

    Returns:
      `[B..., K, h, w, C / (h * w)]`, or `[K, h, w, C / (h * w)]` with `batch_indices`,
      in the dtype as :func:`roi_align`.

    Example:
      A box in the second image of a batch; bin (o, p) of 2 x 2 reads channel 2 o + p:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.zeros((2, 8, 8, 4)).at[1].set(jnp.array([10.0, 20.0, 30.0, 40.0]))
      >>> boxes, images = jnp.array([[1.0, 1.0, 5.0, 5.0]]), jnp.array([1])
      >>> jp.ps_roi_pool(x, boxes, (2, 2), batch_indices=images)[0, ..., 0]
      Array([[10., 20.],
             [30., 40.]], dtype=float32)
    """
    caller = "ps_roi_pool"
    x = as_array(caller, x)
    cut = _Mean(as_ints(caller, "output_shape", output_shape, 2, 1), grouped=True)
    scale = as_positive(caller, "spatial_scale", spatial_scale)
    return _over_boxes(caller, cut, [x], [scale], boxes, batch_indices)


@pool_op(
    "regions",
    "other",
    inputs=("features", "boxes", "batch_indices"),
    camel="MultiScaleRoIAlign",
    linear=True,
    monotone=True,
    example=Example(
        (2, 1, 4, 4, 16),
        {
            "features": "[jnp.ones((2, 8, 8, 16)), jnp.ones((2, 4, 4, 16))]",
            "boxes": "jnp.array([[0.0, 0.0, 16.0, 16.0]])",
        },
        "(4, 4), image_shape=(32, 32)",
    ),
)
def multiscale_roi_align(
    features: ArrayLike | Sequence[ArrayLike],
    boxes: ArrayLike,
    output_shape: Ints,
    *,
    batch_indices: ArrayLike | None = None,
    image_shape: Ints | None = None,
    spatial_scales: Sequence[float] | None = None,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
) -> jax.Array:
    r"""As `roi_align`, from the level of a feature pyramid that suits each box's size.

    .. math:: y_k = \operatorname{align}(x_{l(k)}, b_k), \qquad
        l(k) = \operatorname{clip}\Bigl(\Bigl\lfloor l_0 + \log_2
        \frac{\sqrt{A_k}}{s_0} + \epsilon \Bigr\rfloor, l_\min, l_\max\Bigr)

    with the area :math:`A_k` of box :math:`b_k`, canonical scale :math:`s_0` and level
    :math:`l_0`, as :func:`roi_levels` has it; :math:`l_\min` and :math:`l_\max` are
    those of the first and last map, and level :math:`l` has the scale :math:`2^{-l}`.
    Each box is read from its own level alone. Gradient as in :func:`roi_align`; the
    choice of the level has none.

    Args:
      features: a list or tuple of maps `[B..., H_l, W_l, C]`, from fine to coarse, that
        agree in all but height and width; one array is a pyramid of one level.
      boxes, output_shape, batch_indices, sampling_ratio, aligned: as in
        :func:`roi_align`, boxes in pixels of the image.
      image_shape: the height and width, in pixels, of the images as they were fed to
        the network (the largest of a padded batch); each map's scale is the power of
        two that is nearest to its height over the image's.
      spatial_scales: the scale of each map, instead of `image_shape`: powers of two,
        each half of the one before.
      canonical_scale: the side, in pixels, of a box that belongs to `canonical_level`.
      canonical_level: the level that such a box belongs to.

    Returns:
      As :func:`roi_align`.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      Three maps, each filled with its number, and boxes of three sizes:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> pyramid = [jnp.full((1, 64 // 2**i, 64 // 2**i, 1), i) for i in range(3)]
      >>> boxes = jnp.array([[0.0, 0, 64, 64], [0, 0, 128, 128], [0, 0, 256, 256]])
      >>> y = jp.multiscale_roi_align(pyramid, boxes[None], 1, image_shape=(256, 256))
      >>> y.ravel()
      Array([0., 1., 2.], dtype=float32)
    """
    caller = "multiscale_roi_align"
    maps = _pyramid(caller, features)
    cut = _sampling(caller, output_shape, sampling_ratio, aligned)
    if (image_shape is None) == (spatial_scales is None):
        rule = "must be given, unless `spatial_scales` is"
        raise fail(caller, "image_shape", rule, image_shape)
    if image_shape is not None:
        height, _ = as_ints(caller, "image_shape", image_shape, 2, 1)
        heights = [static_size(caller, m.shape[-3]) for m in maps]
        scales = [2.0 ** round(math.log2(h / height)) for h in heights]
    else:
        given: Any = spatial_scales
        if not is_sequence(given):
            rule = "must be a sequence with one number for each level"
            raise fail(caller, "spatial_scales", rule, given, TypeError)
        given = as_entries(caller, "spatial_scales", given)
        scales = [as_positive(caller, "spatial_scales", s) for s in given]
    first = round(-math.log2(scales[0])) if scales else 0
    if scales != [2.0 ** -(first + i) for i in range(len(maps))]:
        rule = f"must give {len(maps)} scales, powers of two that halve at each level"
        argument = "spatial_scales" if image_shape is None else "image_shape"
        raise fail(caller, argument, rule, scales)
    choice = {
        "levels": (first, first + len(maps) - 1),
        "scale": as_positive(caller, "canonical_scale", canonical_scale),
        "level": as_int(caller, "canonical_level", canonical_level, -(2**31)),
        "eps": _EPS,
    }
    return _over_boxes(
        caller,
        cut,
        maps,
        scales,
        boxes,
        batch_indices,
        lambda boxes: _levels(boxes, **choice) - first,
    )


_EPS = 1e-6


def roi_levels(
    boxes: ArrayLike,
    min_level: int,
    max_level: int,
    *,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
    eps: float = _EPS,
) -> jax.Array:
    r"""The level of a feature pyramid that suits each box's size.

    .. math:: l = \operatorname{clip}\Bigl(\Bigl\lfloor l_0 + \log_2
        \frac{\sqrt{(x_2 - x_1) (y_2 - y_1)}}{s_0} + \epsilon \Bigr\rfloor,
        l_\min, l_\max\Bigr)

    A box whose area is not positive, or NaN, has the lowest level. No gradient.

    Args:
      boxes: `[..., 4]`, integers or floats, as (x1, y1, x2, y2) in pixels of the image.
      min_level: the level of the finest feature map: 2 for a stride of 4 pixels.
      max_level: the level of the coarsest.
      canonical_scale: the side, in pixels, of a box that belongs to `canonical_level`.
      canonical_level: the level that such a box belongs to.
      eps: keeps a box of exactly twice a side from the level below, against rounding.

    Returns:
      int32, `[...]`: the levels. (torchvision counts them from `min_level`.)

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> jp.roi_levels(jnp.array([[0, 0, 112, 112], [0, 0, 300, 300]]), 2, 5)
      Array([3, 4], dtype=int32)
    """
    caller = "roi_levels"
    boxes = _as_boxes(caller, boxes)
    lowest = as_int(caller, "min_level", min_level, -(2**31))
    rule = "must be a number, at least 0 and below 1"
    eps = as_number(caller, "eps", eps, rule, lambda n: 0 <= n < 1)
    return _levels(
        boxes.astype(accumulation_dtype(mean_dtype(boxes.dtype))),
        levels=(lowest, as_int(caller, "max_level", max_level, lowest)),
        scale=as_positive(caller, "canonical_scale", canonical_scale),
        level=as_int(caller, "canonical_level", canonical_level, -(2**31)),
        eps=eps,
    )


@functools.partial(jax.jit, static_argnames=("levels", "scale", "level", "eps"))
def _levels(boxes, levels, scale, level, eps):
    x1, y1, x2, y2 = _corners(lax.stop_gradient(boxes))
    area = (x2 - x1) * (y2 - y1)
    side = jnp.sqrt(jnp.where(area > 0, area, 0))  # NaN is not either
    found = jnp.floor(level + jnp.log2(side / scale) + eps)
    return jnp.clip(found, *levels).astype(jnp.int32)


@dataclass(frozen=True)
class _Cut:
    """How boxes are cut into bins, and what becomes of each; hashable."""

    out: tuple[int, ...]
    grouped: bool = False
    reads: ClassVar = (-3, -2)  # the axes of a map that a bin needs whole

    def pool(self, images: jax.Array, boxes: regions.Boxes, shape: Any) -> jax.Array:
        """Returns `[K, h, w, C]`; `shape` is that of a single feature map."""
        raise NotImplementedError

    def dtypes(self, dtype: Any) -> tuple[Any, Any]:
        """The dtypes to compute in and to return."""
        return accumulation_dtype(mean_dtype(dtype)), mean_dtype(dtype)

    def _cut(self, boxes: regions.Boxes) -> tuple[Any, Any]:
        """Rows and columns, each by `_along(start, end, bins, size, boxes)`."""
        x1, y1, x2, y2 = _corners(boxes.corners)
        return (
            self._along(y1, y2, self.out[0], boxes.height, boxes),
            self._along(x1, x2, self.out[1], boxes.width, boxes),
        )

    def _along(self, start, end, out, size, boxes) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class _Sampled(_Cut):
    ratio: int = 2
    aligned: bool = False
    least: float = -math.inf

    def pool(self, images, boxes, shape):
        return divide(
            regions.interpolate(images, boxes, *self._cut(boxes)), self.ratio**2
        )

    def _along(self, start, end, out, size, boxes):
        shift = 0.5 if self.aligned else 0.0
        start, end = start - shift, end - shift
        extent = jnp.maximum(end - start, self.least)
        return regions.samples(start, extent, out, self.ratio, size)


@dataclass(frozen=True)
class _Largest(_Cut):
    reads: ClassVar = (-3, -2, -1)  # each channel has places of its own

    def pool(self, images, boxes, shape):
        boxes = lax.stop_gradient(boxes)
        return regions.maxima(images, boxes, *self._cut(boxes))

    def dtypes(self, dtype):
        return accumulation_dtype(dtype), dtype

    def _along(self, start, end, out, size, boxes):
        start, end = _rounded(start), _rounded(end)
        return regions.bins(start, end - start + 1, out, size, boxes.known)


@dataclass(frozen=True)
class _Mean(_Cut):
    def pool(self, images, boxes, shape):
        shape = tuple(static_size("ps_roi_pool", size) for size in shape)
        rows, columns = self._cut(boxes)
        tall, wide = (a.end - a.start for a in (rows, columns))
        total = regions.bin_sums(images, boxes, rows, columns, shape)
        count = tall[:, :, None, None] * wide[:, None, :, None]
        return divide(total, jnp.maximum(count, 1))

    def _along(self, start, end, out, size, boxes):
        start, end = _rounded(start), _rounded(end)
        return regions.bins(start, end - start, out, size - 1, boxes.known)


def _rounded(x: jax.Array) -> jax.Array:
    """Halves go away from 0, unlike in `jnp.round`."""
    return lax.round(lax.stop_gradient(x), lax.RoundingMethod.AWAY_FROM_ZERO)


def _corners(boxes: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(boxes[..., i] for i in range(4))


def _over_boxes(
    caller: str,
    cut: _Cut,
    maps: list[jax.Array],
    scales: Sequence[float],
    boxes: ArrayLike,
    batch_indices: ArrayLike | None,
    levels: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Checks that arrays fit together, and pools each box of each image."""
    x, name = maps[0], OPS[caller].inputs[0]
    if x.ndim < 3:
        raise fail(caller, name, "must have at least 3 axes, [..., H, W, C]", x.shape)
    for size in (n for m in maps for n in m.shape[-3:-1] if isinstance(n, int)):
        as_int(caller, f"{name}.shape", size, 1)
    for level in maps:
        check_whole(caller, level, cut.reads, name)
    if cut.grouped and x.shape[-1] % math.prod(cut.out):
        rule = f"must have channels in multiples of {math.prod(cut.out)}, its bins"
        raise fail(caller, name, rule, x.shape)
    boxes = _as_boxes(caller, boxes)
    boxes = boxes.astype(jnp.finfo(accumulation_dtype(mean_dtype(x.dtype))).dtype)
    if batch_indices is None:
        batch, own = x.shape[:-3], boxes.shape[:-2]
        pairs = zip(reversed(own), reversed(batch), strict=False)
        fits = 2 <= boxes.ndim < x.ndim and all(b in (1, n) for b, n in pairs)
        if not fits:
            rule = (
                f"must be [..., K, 4] with batch axes that broadcast to {batch}, those "
                f"of `{name}`, or [K, 4] with `batch_indices`"
            )
            raise fail(caller, "boxes", rule, boxes.shape)
        boxes = boxes.reshape((1,) * (x.ndim - 1 - boxes.ndim) + boxes.shape)
    else:
        if x.ndim != 4 or x.shape[0] == 0:
            rule = "must be [N, H, W, C] with N > 0 where `batch_indices` are given"
            raise fail(caller, name, rule, x.shape)
        if isinstance(x.shape[0], int) and x.shape[0] >= 2**31:
            rule = "must have fewer than 2**31 images, to be numbered in int32"
            raise fail(caller, name, rule, x.shape)
        if boxes.ndim != 2:
            rule = "must be [K, 4] where `batch_indices` are given"
            raise fail(caller, "boxes", rule, boxes.shape)
        batch_indices = _as_indices(caller, batch_indices, boxes.shape[0], x.shape[0])
    level = None if levels is None else levels(boxes)
    return _pooled(cut, tuple(scales), maps, boxes, batch_indices, level)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled(cut, scales, maps, boxes, batch_indices, level):
    shapes = [m.shape[-3:-1] for m in maps]
    groups = math.prod(cut.out) if cut.grouped else 1
    wide, dtype = cut.dtypes(maps[0].dtype)

    def flat(x):  # [..., H, W, C] to [..., P, G, C / G]
        *lead, height, width, channels = x.shape
        x = x.reshape(*lead, height * width, channels)  # one at a time, for shardings
        x = x.reshape(*lead, height * width, channels // groups, groups)
        return jnp.swapaxes(x, -1, -2).astype(wide)

    def pool(images, boxes, level, image):
        laid = regions.lay(shapes, scales, boxes, image, level, images.shape[0])
        return cut.pool(images, laid, shapes[0]).astype(dtype)

    def pool_one(image, boxes, level):
        return pool(image[None], boxes, level, jnp.zeros_like(level))

    images = jnp.concatenate([flat(m) for m in maps], -3)
    if level is None:
        level = jnp.zeros(boxes.shape[:-1], jnp.int32)
    if batch_indices is not None:
        return pool(images, boxes, level, batch_indices)
    each = jnp.vectorize(pool_one, signature="(p,g,c),(k,d),(k)->(k,h,w,c)")
    return each(images, boxes, level)


def _sampling(
    caller: str, output_shape: Any, ratio: Any, aligned: Any, grouped: bool = False
) -> _Sampled:
    out = as_ints(caller, "output_shape", output_shape, 2, 1)
    if as_int(caller, "sampling_ratio", ratio, -(2**31)) < 1:
        rule = (
            "must be at least 1 (a number that follows each box's size, as torchvision "
            "takes for 0 and -1, depends on values: XLA needs it when it compiles)"
        )
        raise fail(caller, "sampling_ratio", rule, ratio)
    aligned = as_flag(caller, "aligned", aligned)
    least = -math.inf if aligned else 1.0
    return _Sampled(out, grouped, int(ratio), aligned, least)


def _pyramid(caller: str, features: Any) -> list[jax.Array]:
    levels = features if isinstance(features, list | tuple) else [features]
    maps = [as_array(caller, level, "features") for level in levels]
    facts = [(m.shape[:-3], m.shape[-1:], m.dtype) for m in maps]
    if not facts or any(fact != facts[0] for fact in facts):
        rule = "must be maps that agree in all but height and width"
        raise fail(caller, "features", rule, [(m.shape, m.dtype.name) for m in maps])
    return maps


def _as_boxes(caller: str, boxes: ArrayLike) -> jax.Array:
    boxes = as_array(caller, boxes, "boxes", ordered=True)
    if boxes.dtype == jnp.bool_:
        raise fail(caller, "boxes", "must be numbers", boxes.dtype, TypeError)
    if boxes.shape[-1:] != (4,):
        rule = "must have a last axis of 4, (x1, y1, x2, y2)"
        raise fail(caller, "boxes", rule, boxes.shape)
    return boxes


def _as_indices(caller: str, value: ArrayLike, boxes: Any, images: Any) -> jax.Array:
    name = "batch_indices"
    indices = as_integers(caller, value, name)
    if indices.shape != (boxes,):
        rule = f"must have the shape {(boxes,)}, one for each box"
        raise fail(caller, name, rule, indices.shape)
    if isinstance(images, int) and not isinstance(value, Tracer):
        known = np.asarray(value).astype(np.int64)
        if not np.all((known >= 0) & (known < images)):
            rule = f"must be at least 0 and less than {images}, the number of images"
            raise fail(caller, name, rule, known)
    return int32_of(indices)
