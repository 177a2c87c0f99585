"""Shapes without arrays."""

from collections.abc import Sequence

from jaxpool._core.geometry import Geometry, static_size
from jaxpool._core.window import Ints, Padding, Window, as_shape

__all__ = ["output_shape"]


def output_shape(
    input_shape: Sequence[int],
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
) -> tuple[int, ...]:
    r"""The shape that a windowed op gives an input of `input_shape`.

    .. math:: O = \Big\lfloor \frac{L + p_{low} + p_{high} - d (K - 1) - 1}{s}
        \Big\rfloor + 1

    along a pooled axis of size L; `"SAME"` pads so that this is L / s rounded up;
    `ceil_mode` rounds up instead of down, but drops a last window that would start
    behind the input and its low padding.

    Args:
      input_shape: sizes of all axes.
      window_shape, strides, padding, window_dilation, ceil_mode, axis: the window, as
        in :func:`max_pool`.

    Returns:
      Sizes of all axes of the result.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`.

    Example:
      >>> import jaxpool as jp
      >>> jp.output_shape((8, 112, 112, 64), (3, 3), (2, 2), padding=1)
      (8, 56, 56, 64)
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    window = Window.of("output_shape", *spec)
    shape = as_shape("output_shape", "input_shape", input_shape)
    for a in window.resolve(len(shape)):
        static_size("output_shape", shape[a], "input_shape")
    return Geometry.of(window, shape).out_shape(shape)
