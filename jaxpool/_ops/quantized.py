r"""Pooling of 8-bit integers: sums in int32, rounded as a runtime for inference does.

A quantized tensor holds integers q that stand for the reals :math:`s (q - z)`. A
maximum is one of them. A mean is rounded, and that is where runtimes differ: a preset
says how one does it, bit for bit. Integers have no derivatives.

References:
  Benoit Jacob, Skirmantas Kligys, Bo Chen, Menglong Zhu, Matthew Tang, Andrew Howard,
  Hartwig Adam, Dmitry Kalenichenko: Quantization and Training of Neural Networks for
  Efficient Integer-Arithmetic-Only Inference, 2018.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxpool._core import taps
from jaxpool._core.arguments import (
    adaptive_bins,
    as_array,
    laid,
    reduced,
    whole,
)
from jaxpool._core.engine import window_extremum, window_sum
from jaxpool._core.geometry import Geometry, static_size
from jaxpool._core.numerics import divide, hide
from jaxpool._core.op import pool_op
from jaxpool._core.window import (
    Ints,
    Padding,
    as_int,
    as_number,
    fail,
    is_name,
)
from jaxpool._ops.average import element_count

__all__ = [
    "QuantParams",
    "dequantize",
    "quantize",
    "quantized_adaptive_avg_pool",
    "quantized_adaptive_max_pool",
    "quantized_avg_pool",
    "quantized_global_avg_pool",
    "quantized_global_max_pool",
    "quantized_max_pool",
]

Rounding = Literal["even", "away"]
Runtime = Literal["tflite", "onnx", "torch"]

# Sums of as many 8-bit differences, a zero point for each, and half of the divisor: all
# of it stays within int32.
_MOST_ELEMENTS = 2**22


@jax.tree_util.register_static
@dataclass(frozen=True)
class QuantParams:
    r"""What the integers of a quantized tensor stand for: :math:`s (q - z)`.

    .. math:: r = s (q - z), \qquad q = \mathrm{clip}(\mathrm{round}(r / s) + z)

    It is hashable and holds no arrays: a static argument, an attribute of a module, or
    a leafless node of a pytree.

    Args:
      scale: s, finite and greater than 0, the step between neighbouring integers in
        units of the reals; kept as its float32.
      zero_point: z, the integer that stands for 0; one of `dtype`.
      dtype: `"int8"` or `"uint8"`, of the integers.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      >>> import jaxpool as jp
      >>> jp.QuantParams(0.5, zero_point=3)
      QuantParams(scale=0.5, zero_point=3, dtype='int8')
    """

    scale: float = 1.0
    zero_point: int = 0
    dtype: DTypeLike = "int8"

    def __post_init__(self) -> None:
        """Checks the arguments and writes them down in plain Python."""
        caller, rule = "QuantParams", "must be 'int8' or 'uint8'"
        try:
            dtype = np.dtype(self.dtype)
        except Exception:  # objects may say of their dtype what they like
            raise fail(caller, "dtype", rule, self.dtype, TypeError) from None
        if dtype not in (np.int8, np.uint8):
            raise fail(caller, "dtype", rule, self.dtype)
        rule = "must be a finite number greater than 0, in float32 too"
        with np.errstate(over="ignore"):
            scale = float(np.float32(as_number(caller, "scale", self.scale, rule)))
        if not 0 < scale < math.inf:
            raise fail(caller, "scale", rule, self.scale)
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        zero = as_int(caller, "zero_point", self.zero_point, least)
        if zero > most:
            raise fail(caller, "zero_point", f"must be at most {most}", zero)
        for name, value in (
            ("scale", scale),
            ("zero_point", zero),
            ("dtype", dtype.name),
        ):
            object.__setattr__(self, name, value)


def quantize(
    x: ArrayLike, params: QuantParams, *, rounding: Rounding = "even"
) -> jax.Array:
    r"""The integers that stand for reals, nearest and within the dtype's limits.

    .. math:: q = \mathrm{clip}(\mathrm{round}(x / s) + z)

    in float32, as ONNX's QuantizeLinear and, with `rounding="away"`, TensorFlow Lite
    do. It has no derivative.

    Args:
      x: real, of any shape. NaN, which no integer stands for, becomes the zero point.
      params: scale, zero point and dtype.
      rounding: what halves are rounded to: `"even"`, or `"away"` from zero.

    Returns:
      Integers of the shape of `x`, in `params.dtype`.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> params = jp.QuantParams(0.1, zero_point=-5)
      >>> jp.quantize(jnp.array([-9.0, 0.0, 0.3, 900.0]), params)
      Array([-95,  -5,  -2, 127], dtype=int8)
    """
    x = as_array("quantize", x, ordered=True).astype(jnp.float32)
    params = _params("quantize", "params", params)
    method = _rounding("quantize", rounding).of_floats
    steps = divide(jnp.where(jnp.isnan(x), 0, x), np.float32(params.scale))
    return _saturate(lax.round(steps, method) + params.zero_point, params)


def dequantize(q: ArrayLike, params: QuantParams) -> jax.Array:
    r"""The reals that integers stand for.

    .. math:: x = s (q - z)

    Args:
      q: integers of any shape, in `params.dtype`.
      params: scale, zero point and dtype.

    Returns:
      float32 of the shape of `q`.

    Raises:
      TypeError: for other dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> params = jp.QuantParams(0.5, zero_point=-5)
      >>> jp.dequantize(jnp.array([-5, -4, 127], jnp.int8), params)
      Array([ 0. ,  0.5, 66. ], dtype=float32)
    """
    q = as_array("dequantize", q, "q")
    params = _params("dequantize", "params", params)
    _check_dtype("dequantize", "q", q, params)
    return _product(q.astype(jnp.int32) - params.zero_point, np.float32(params.scale))


@pool_op("quantized", "window", monotone=True, integer=True)
def quantized_max_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The largest integer of each window, which stands for the largest real.

    .. math:: y_o = \max_{i \in W(o)} q_i

    Exact in every runtime, whatever the scale: :func:`max_pool`, whose arguments and
    errors it has, for int8 and uint8 alone. No derivative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([-128, -7, 100, 127], jnp.int8)[:, None]
      >>> jp.quantized_max_pool(x, (2,), strides=(2,))[:, 0]
      Array([ -7, 127], dtype=int8)
    """
    caller = "quantized_max_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    _check_dtype(caller, "x", x)
    return window_extremum(x, geometry, True, where)


@pool_op("quantized", "global", monotone=True, integer=True)
def quantized_global_max_pool(
    x: ArrayLike,
    *,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The largest integer of the whole extent, which stands for the largest real.

    .. math:: y = \max_i q_i

    :func:`global_max_pool`, whose arguments and errors it has, for int8 and uint8
    alone. No derivative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[3, 200], [9, 100]]], jnp.uint8)
      >>> jp.quantized_global_max_pool(x)
      Array([[  9, 200]], dtype=uint8)
    """
    caller = "quantized_global_max_pool"
    x, geometry, where = whole(caller, x, where, axis, ordered=True)
    _check_dtype(caller, "x", x)
    y = window_extremum(x, geometry, True, where)
    return reduced(caller, y, geometry, keepdims)


@pool_op("quantized", "adaptive", monotone=True, integer=True)
def quantized_adaptive_max_pool(
    x: ArrayLike,
    output_shape: int | Sequence[int | None] | None,
    *,
    axis: Ints | None = None,
) -> jax.Array:
    r"""The largest integer of each bin, which stands for the largest real.

    .. math:: y_o = \max_{i \in W(o)} q_i

    :func:`adaptive_max_pool`, whose arguments and errors it has, for int8 and uint8
    alone. No derivative.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([-5, 3, -9, 8, 1], jnp.int8)[:, None]
      >>> jp.quantized_adaptive_max_pool(x, (2,))[:, 0]
      Array([3, 8], dtype=int8)
    """
    caller = "quantized_adaptive_max_pool"
    x = as_array(caller, x, ordered=True)
    geometry = adaptive_bins(caller, x, output_shape, axis)
    _check_dtype(caller, "x", x)
    return window_extremum(x, geometry, True)


@pool_op("quantized", "window", monotone=True, integer=True)
def quantized_avg_pool(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    params: QuantParams | None = None,
    output_params: QuantParams | None = None,
    preset: Runtime = "tflite",
    rounding: Rounding | None = None,
    count_include_pad: bool | None = None,
    divisor_override: int | None = None,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean of each window of 8-bit integers, rounded as a runtime does.

    .. math:: y_o = \mathrm{clip} \, \mathrm{round} \left( z' + \frac{s}{s'} \cdot
        \frac{a_o}{n_o} \right), \qquad a_o = \sum_{i \in W(o)} (q_i - z)

    with :math:`s, z` of the input and :math:`s', z'` of the output. Padding stands for
    the real 0. The presets, with fl for a rounding to float32:

    - `"tflite"` (AVERAGE_POOL_2D): :math:`z + a / n`, a quotient of integers, halves
      away from zero. Padding does not count.
    - `"torch"` (`avg_pool2d` and `avg_pool3d` of quantized tensors):
      :math:`\mathrm{fl}(\mathrm{fl}(a \cdot \mathrm{fl}(1 / n)) + z)`, halves to even.
      Padding counts.
    - `"onnx"` (ONNX Runtime's QLinearAveragePool, into which it fuses DequantizeLinear,
      AveragePool and QuantizeLinear): reals :math:`\mathrm{fl}(s (q - z))`, added up
      one by one in row-major order, divided by n and by s', plus z', each step rounded
      to float32; halves to even. Padding does not count. One window over everything
      goes by the rule of :func:`quantized_global_avg_pool`.

    No derivative: train on reals.

    Args:
      x: `[B..., S..., C]`, int8 or uint8.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`. What a mask hides is not counted either. A
        window has at most 2**22 elements, so that no sum overflows.
      params: what `x` stands for; None is scale 1 and zero point 0.
      output_params: what the result stands for; None is `params`, and only `"onnx"`
        can do with others.
      preset: `"tflite"`, `"onnx"` or `"torch"`.
      rounding: `"even"` or `"away"` (from zero) instead of what the preset does with
        halves.
      count_include_pad: whether :math:`n_o` counts padding, as in :func:`avg_pool`,
        instead of what the preset does by default.
      divisor_override: :math:`n_o` for every window, at least 1.

    Returns:
      `[B..., O..., C]` in the dtype of `output_params`; the zero point for a window
      without elements.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, for floats, which
        :func:`quantize` makes integers of, and for parameters that do not fit.

    Example:
      Halves are rounded away from 0 by one runtime, to even by the other:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1, 2, 4, 5], jnp.int8)[:, None]
      >>> jp.quantized_avg_pool(x, (2,), strides=(2,), preset="tflite")[:, 0]
      Array([2, 5], dtype=int8)
      >>> jp.quantized_avg_pool(x, (2,), strides=(2,), preset="torch")[:, 0]
      Array([2, 4], dtype=int8)
    """
    caller = "quantized_avg_pool"
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid(caller, x, where, spec, ordered=True)
    rule = _preset(caller, preset)
    include_pad = rule.count_include_pad
    if count_include_pad is not None:
        include_pad = count_include_pad
        if not isinstance(include_pad, bool | np.bool_):
            wanted = "must be True, False or None"
            raise fail(caller, "count_include_pad", wanted, include_pad, TypeError)
    if divisor_override is not None:
        divisor_override = as_int(caller, "divisor_override", divisor_override, 1)
        if divisor_override > _MOST_ELEMENTS:
            wanted = f"must be at most {_MOST_ELEMENTS}"
            raise fail(caller, "divisor_override", wanted, divisor_override)
    windows = _Windows.of(
        caller, x, geometry, where, params, output_params, rule, rounding
    ).counted(include_pad, divisor_override)
    return _saturate(rule.window(windows), windows.output)


@pool_op("quantized", "global", monotone=True, integer=True)
def quantized_global_avg_pool(
    x: ArrayLike,
    *,
    params: QuantParams | None = None,
    output_params: QuantParams | None = None,
    preset: Runtime = "tflite",
    rounding: Rounding | None = None,
    axis: Ints | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The mean over the whole extent of 8-bit integers, rounded as a runtime does.

    .. math:: y = \mathrm{clip} \, \mathrm{round} \left( z' + \frac{s}{s'} \cdot
        \frac{a}{n} \right), \qquad a = \sum_{i=1}^n (q_i - z)

    The presets, in the words of :func:`quantized_avg_pool`:

    - `"tflite"`: the same as there (AVERAGE_POOL_2D over everything, not MEAN).
    - `"torch"`: that of :func:`quantized_adaptive_avg_pool`, with one bin.
    - `"onnx"` (ONNX Runtime's QLinearGlobalAveragePool, in its x86 and portable form):
      :math:`\mathrm{round}(\mathrm{fl}(a \cdot \mathrm{fl}(s / \mathrm{fl}(s' n)))) +
      z'`, halves to even: the zero point takes no part in rounding.

    No derivative.

    Args:
      x: `[B, S..., C]`, int8 or uint8, with at most 2**22 elements to average.
      params, output_params, preset, rounding: as in :func:`quantized_avg_pool`.
      axis, keepdims, where: as in :func:`global_max_pool`.

    Returns:
      `[B, C]` in the dtype of `output_params`; the zero point where nothing takes part.

    Raises:
      ValueError, TypeError: as in :func:`quantized_avg_pool`.

    Example:
      The mean of what stands for -1, 0 and 4, in halves, with the output in quarters:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> halves, quarters = jp.QuantParams(0.5), jp.QuantParams(0.25)
      >>> x = jp.quantize(jnp.array([[[-1.0], [0.0], [4.0]]]), halves)
      >>> jp.quantized_global_avg_pool(
      ...     x, params=halves, output_params=quarters, preset="onnx"
      ... )
      Array([[4]], dtype=int8)
    """
    caller = "quantized_global_avg_pool"
    x, geometry, where = whole(caller, x, where, axis, ordered=True)
    rule = _preset(caller, preset)
    windows = _Windows.of(
        caller, x, geometry, where, params, output_params, rule, rounding
    ).counted(False)
    y = _saturate(rule.whole(windows), windows.output)
    return reduced(caller, y, geometry, keepdims)


@pool_op("quantized", "adaptive", monotone=True, integer=True)
def quantized_adaptive_avg_pool(
    x: ArrayLike,
    output_shape: int | Sequence[int | None] | None,
    *,
    rounding: Rounding = "even",
    axis: Ints | None = None,
) -> jax.Array:
    r"""The mean of each bin of 8-bit integers, rounded as PyTorch does.

    .. math:: y_o = \mathrm{round} \, \mathrm{fl} \left( r_o \sum_{i \in W(o)} q_i
        \right), \qquad r_o = \mathrm{fl}(\mathrm{fl}(1 / k_1) / k_2) \dots

    over the bins of :func:`adaptive_avg_pool`, of :math:`k_1 \times k_2 \dots`
    elements, in float32 (fl), halves to even: `adaptive_avg_pool2d` and
    `adaptive_avg_pool3d` of quantized tensors. The result stands for reals as `x`
    does, whose zero point does not matter. No derivative.

    Args:
      x: `[B..., S..., C]`, int8 or uint8.
      output_shape, axis: the bins, as in :func:`adaptive_avg_pool`, of at most 2**22
        elements.
      rounding: what halves are rounded to: `"even"`, or `"away"` from zero.

    Returns:
      `[B..., *output_shape, C]` in the dtype of `x`.

    Raises:
      ValueError, TypeError: as in :func:`adaptive_avg_pool`, and for floats, which
        :func:`quantize` makes integers of.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1, 2, 4, 5], jnp.uint8)[:, None]  # means of 1.5 and 4.5
      >>> jp.quantized_adaptive_avg_pool(x, (2,))[:, 0]
      Array([2, 4], dtype=uint8)
    """
    caller = "quantized_adaptive_avg_pool"
    x = as_array(caller, x, ordered=True)
    geometry = adaptive_bins(caller, x, output_shape, axis)
    rule = _PRESETS["torch"]
    windows = _Windows.of(caller, x, geometry, None, None, None, rule, rounding)
    return _saturate(rule.whole(windows.counted(False)), windows.output)


@dataclass(frozen=True)
class _Windows:
    """Windows of integers, and all that decides how their means are rounded."""

    x: jax.Array
    geometry: Geometry
    where: jax.Array | None
    params: QuantParams
    output: QuantParams
    rounding: "_Rounding"
    count: Any = None

    @classmethod
    def of(cls, caller, x, geometry, where, params, output_params, rule, rounding):
        """Checks what the ops share; the dtype of `x` last."""
        method = _rounding(caller, rule.rounding if rounding is None else rounding)
        given = _params(caller, "params", _plain(x) if params is None else params)
        output = given if output_params is None else output_params
        output = _params(caller, "output_params", output)
        if output != given and not rule.requantizes:
            wanted = f"must equal `params`, {given}, unless the preset is 'onnx'"
            raise fail(caller, "output_params", wanted, output)
        elements = math.prod(static_size(caller, a.window) for a in geometry.axes)
        if elements > _MOST_ELEMENTS:
            wanted = f"must hold at most {_MOST_ELEMENTS} elements, to add up in int32"
            argument = "x" if geometry.whole else "window_shape"
            raise fail(caller, argument, wanted, elements)
        _check_dtype(caller, "x", x, given)
        return cls(x, geometry, where, given, output, method)

    def counted(
        self, include_pad: bool, divisor_override: int | None = None
    ) -> "_Windows":
        """The same with what to divide each window's sum by."""
        count = divisor_override
        if count is None:
            ndim = self.x.ndim
            count = element_count(
                jnp.int32, ndim, self.geometry, self.where, include_pad
            )
        # A window without elements has the sum 0, which is its mean too.
        return replace(self, count=jnp.maximum(jnp.asarray(count, jnp.int32), 1))

    @property
    def steps(self) -> jax.Array:
        """The integers less the zero point, 0 where they are hidden."""
        return hide(self.x.astype(jnp.int32) - self.params.zero_point, self.where)

    @property
    def total(self) -> jax.Array:
        """The sum of each window's `steps`."""
        return window_sum(self.steps, self.geometry)

    def rounded(self, y: jax.Array) -> jax.Array:
        """A float rounded to an integer, still a float."""
        return lax.round(y, self.rounding.of_floats)


def _quotient(w: _Windows) -> jax.Array:
    total = w.total + w.params.zero_point * w.count
    return w.rounding.of_quotients(total, w.count)


def _times_inverse(w: _Windows) -> jax.Array:
    steps = _product(w.total, divide(jnp.float32(1), w.count))
    return w.rounded(steps + w.params.zero_point)


def _times_inverse_of_each_axis(w: _Windows) -> jax.Array:
    inverse = np.ones((1,) * w.x.ndim, np.float32)
    for axis in w.geometry.axes:
        inverse = inverse / Geometry((axis,)).counts(w.x.ndim, False).astype(np.float32)
    if w.where is not None:
        inverse = divide(jnp.float32(1), w.count)
    return w.rounded(_product(w.total + w.params.zero_point * w.count, inverse))


def _real_by_real(w: _Windows) -> jax.Array:
    if w.geometry.whole:
        return _times_scale(w)
    sizes = [static_size("quantized_avg_pool", size) for size in w.geometry.sizes]
    reals = _product(w.steps, np.float32(w.params.scale))
    # Padded here, so that all windows are alike: few terms even for large windows.
    pads = [(low, high, 0) for low, high in w.geometry.pads(w.x.ndim)]
    reals = lax.pad(reals, np.float32(0), pads)
    axes = [
        replace(a, size=a.low + size + a.high, low=0, high=0, counted_high=0)
        for a, size in zip(w.geometry.axes, sizes, strict=True)
    ]
    total = taps.fold(reals, Geometry(tuple(axes)), lax.add, np.float32(0))
    # XLA divides once where it sees two divisions in a row, which rounds otherwise.
    mean = jnp.where(total != 0, divide(total, w.count), 0)
    steps = divide(mean, np.float32(w.output.scale))
    return w.rounded(steps + w.output.zero_point)


def _times_scale(w: _Windows) -> jax.Array:
    real = np.float32(w.output.scale) * w.count.astype(jnp.float32)
    scale = divide(jnp.float32(w.params.scale), real)
    return w.rounded(_product(w.total, scale)) + w.output.zero_point


@dataclass(frozen=True)
class _Preset:
    """How a runtime averages, over a window and over everything.

    `rounding` and `count_include_pad` are its own; `requantizes` says whether its
    output may have a scale and a zero point of its own.
    """

    window: Callable[[_Windows], jax.Array]
    whole: Callable[[_Windows], jax.Array]
    rounding: Rounding
    count_include_pad: bool
    requantizes: bool


_PRESETS = {
    "tflite": _Preset(_quotient, _quotient, "away", False, False),
    "onnx": _Preset(_real_by_real, _times_scale, "even", False, True),
    "torch": _Preset(_times_inverse, _times_inverse_of_each_axis, "even", True, False),
}


def _quotient_to_even(total: jax.Array, count: jax.Array) -> jax.Array:
    below = total // count
    twice = 2 * (total - below * count)
    up = (twice > count) | ((twice == count) & (below % 2 == 1))
    return below + up.astype(below.dtype)


def _quotient_away(total: jax.Array, count: jax.Array) -> jax.Array:
    return jnp.sign(total) * ((jnp.abs(total) + count // 2) // count)


@dataclass(frozen=True)
class _Rounding:
    """What happens to halves, of floats and of quotients of integers."""

    of_floats: lax.RoundingMethod
    of_quotients: Callable[[jax.Array, jax.Array], jax.Array]


_ROUNDINGS = {
    "even": _Rounding(lax.RoundingMethod.TO_NEAREST_EVEN, _quotient_to_even),
    "away": _Rounding(lax.RoundingMethod.AWAY_FROM_ZERO, _quotient_away),
}


def _product(integers: jax.Array, scale: Any) -> jax.Array:
    """`integers * scale` in float32, rounded before anything is added to it.

    XLA makes one operation of a product and a sum that follows, rounded once, and a
    half is no half any more. Here it finds a product by a power of two, which is exact
    either way, and which it cannot merge with the first, as it is not a constant.
    """
    halves = integers.astype(jnp.float32) * (scale * np.float32(0.5))
    return halves * jnp.where(integers != 0, np.float32(2), np.float32(4))


def _saturate(y: jax.Array, params: QuantParams) -> jax.Array:
    limits = np.iinfo(params.dtype)
    return jnp.clip(y, limits.min, limits.max).astype(params.dtype)


def _plain(x: jax.Array) -> QuantParams:
    return QuantParams(dtype="uint8" if x.dtype == jnp.uint8 else "int8")


def _preset(caller: str, value: Any) -> _Preset:
    return _one_of(caller, "preset", _PRESETS, value)


def _rounding(caller: str, value: Any) -> _Rounding:
    return _one_of(caller, "rounding", _ROUNDINGS, value)


def _one_of(caller: str, argument: str, table: dict[str, Any], value: Any) -> Any:
    if not is_name(value, table):
        raise fail(caller, argument, f"must be one of {', '.join(table)}", value)
    return table[value]


def _params(caller: str, argument: str, value: Any) -> QuantParams:
    if not isinstance(value, QuantParams):
        raise fail(caller, argument, "must be a QuantParams", value, TypeError)
    return value


def _check_dtype(
    caller: str, argument: str, x: jax.Array, params: QuantParams | None = None
) -> None:
    if x.dtype not in (jnp.int8, jnp.uint8):
        rule = "must be int8 or uint8 (`quantize` makes integers of floats)"
        raise fail(caller, argument, rule, x.dtype, TypeError)
    if params is not None and x.dtype != params.dtype:
        rule = f"must have the dtype of `params`, {params.dtype}"
        raise fail(caller, argument, rule, x.dtype, TypeError)
