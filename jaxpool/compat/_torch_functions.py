"""PyTorch's pooling functions, as adapters: see :mod:`jaxpool.compat.torch`."""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import jaxpool
from jaxpool._core.arguments import as_array, as_integers
from jaxpool._core.geometry import Geometry
from jaxpool._core.window import Ints, Window, as_int, as_ints, fail, is_sequence

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "fractional_max_pool2d",
    "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d",
    "fractional_max_pool3d_with_indices",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
]

P = ParamSpec("P")
R = TypeVar("R")
Pair = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Caller:
    """One function of PyTorch's: how errors call it, and how many axes it pools."""

    name: str
    nd: int

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(-self.nd, 0))

    def ints(
        self, argument: str, value: Any, minimum: int, one: bool = False
    ) -> tuple[int, ...]:
        """One int an axis; a sequence of `one` stands for all where PyTorch lets it."""
        if one and is_sequence(value) and len(value) == 1:
            (value,) = value
        return as_ints(self.name, argument, value, self.nd, minimum)

    def flag(self, argument: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise fail(self.name, argument, "must be True or False", value, TypeError)
        return value

    def array(self, x: ArrayLike, argument: str = "input") -> jax.Array:
        """An array with a batch axis or none, channels, and the pooled axes."""
        array = as_array(self.name, x, argument)
        kinds = (jnp.integer, jnp.floating)
        if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
            rule = "must be made of integers or real floats"
            raise fail(self.name, argument, rule, array.dtype, TypeError)
        if array.ndim - self.nd not in (1, 2):
            sizes = ("L", "H, W", "D, H, W")[self.nd - 1]
            rule = f"must have the axes (N, C, {sizes}) or (C, {sizes})"
            raise fail(self.name, argument, rule, f"shape {array.shape}")
        if any(isinstance(n, int) and n == 0 for n in array.shape[-1 - self.nd :]):
            rule = "must have elements along all axes but the batch's"
            raise fail(self.name, argument, rule, f"shape {array.shape}")
        return array

    def window(
        self,
        x: ArrayLike,
        kernel_size: Ints,
        stride: Ints | None,
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
        one: bool = True,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The input, and the window in the arguments of `jaxpool`."""
        array = self.array(x)
        kernel = self.ints("kernel_size", kernel_size, 1, one)
        absent = stride is None or (is_sequence(stride) and not len(cast(Any, stride)))
        strides = kernel if absent else self.ints("stride", stride, 1, True)
        pads = self.ints("padding", padding, 0, True)
        if any(p > k // 2 for p, k in zip(pads, kernel, strict=True)):
            rule = f"must be at most half of `kernel_size`, {kernel}, rounded down"
            raise fail(self.name, "padding", rule, padding)
        spec = {
            "window_shape": kernel,
            "strides": strides,
            "padding": pads,
            "window_dilation": self.ints("dilation", dilation, 1, True),
            "ceil_mode": self.flag("ceil_mode", ceil_mode),
            "axis": self.axes,
        }
        window = Window.of(self.name, **spec)
        try:
            Geometry.of(window, array.shape)
        except ValueError:
            rule = (
                f"must fit into the input, of size {array.shape[-self.nd :]} with "
                f"padding {pads}, at dilation {window.dilation}"
            )
            raise fail(self.name, "kernel_size", rule, kernel_size) from None
        return array, spec


def _in_dimensions(doc: str, nd: int) -> str:
    """A docstring with its example, which is written for 2 dimensions, in `nd`."""
    text, mark, example = doc.partition("Example:")
    example = re.sub(r"\b(\d+), \1\b", ", ".join([r"\1"] * nd), example)
    return text + mark + example.replace("2d", f"{nd}d")


Functions = tuple[Callable[P, R], Callable[P, R], Callable[P, R]]


def _each(
    name: str, fn: Callable[Concatenate[Caller, P], R], dimensions: str = "123"
) -> Functions[P, R]:
    """The functions for 1, 2 and 3 dimensions, made of one that is told its caller."""
    return tuple(_one(name, fn, int(d)) for d in dimensions)  # pyright: ignore


def _one(name: str, fn: Callable[Concatenate[Caller, P], R], nd: int) -> Callable[P, R]:
    caller = Caller(name.format(nd), nd)
    _, *rest = inspect.signature(fn).parameters.values()
    signature = inspect.signature(fn).replace(parameters=rest)

    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"`{caller.name}`: {error}.") from None
        return fn(caller, *args, **kwargs)

    function.__name__ = function.__qualname__ = caller.name
    function.__doc__ = _in_dimensions(fn.__doc__ or "", nd)
    setattr(function, "__signature__", signature)  # noqa: B010
    return function


def _max_pool_with_indices(
    caller: Caller,
    input: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pair:
    """The largest element of each window and its index.

    As `max_pool` of the same dimensions with `return_indices=True`, whatever that is.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> values, indices = F.max_pool2d_with_indices(jnp.ones((2, 3, 8, 8)), 2)
      >>> values.shape, indices.shape
      ((2, 3, 4, 4), (2, 3, 4, 4))
    """
    del return_indices
    x, spec = caller.window(input, kernel_size, stride, padding, dilation, ceil_mode)
    return jaxpool.max_pool_with_argmax(x, **spec)


def _max_pool(
    caller: Caller,
    input: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window: :func:`jaxpool.max_pool`.

    Args:
      input: `(N, C, *sizes)` or `(C, *sizes)`.
      kernel_size: the window's size, one int or one for each pooled axis.
      stride: step between windows, by default `kernel_size`.
      padding: at most half of `kernel_size`, on both sides; it never wins.
      dilation: distance between neighbouring elements of a window.
      ceil_mode: round the output size up instead of down.
      return_indices: whether to return indices too.

    Returns:
      `(N, C, *out)` or `(C, *out)`, or a pair of it and int32 indices of that shape:
      positions in the unpadded input, in row-major order over the pooled axes.

    Raises:
      ValueError, TypeError: for arguments that PyTorch refuses.

    Example:
      Strides are the kernel's size unless they are given:

      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x = jnp.ones((2, 3, 9, 9))
      >>> F.max_pool2d(x, 3, stride=2, padding=1).shape
      (2, 3, 5, 5)
      >>> F.max_pool2d(x, 2).shape, F.max_pool2d(x, 2, ceil_mode=True).shape
      ((2, 3, 4, 4), (2, 3, 5, 5))
    """
    x, spec = caller.window(input, kernel_size, stride, padding, dilation, ceil_mode)
    op = jaxpool.max_pool_with_argmax if return_indices else jaxpool.max_pool
    return op(x, **spec)


def _avg_pool(
    caller: Caller,
    input: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> jax.Array:
    """The mean of each window: :func:`jaxpool.avg_pool`.

    Args:
      input, kernel_size, stride, padding, ceil_mode: as in `max_pool`.
      count_include_pad: whether the mean counts the padding, as zeros.
      divisor_override: an int other than 0 to divide every sum by instead.

    Returns:
      `(N, C, *out)` or `(C, *out)`.

    Raises:
      ValueError, TypeError: for arguments that PyTorch refuses.

    Example:
      Padding counts, as zeros, unless it is told not to:

      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x = jnp.ones((2, 3, 8, 8))
      >>> y = F.avg_pool2d(x, 2, padding=1)
      >>> y.shape, bool(y.min() < 1)
      ((2, 3, 5, 5), True)
      >>> F.avg_pool2d(x, 2, padding=1, count_include_pad=False).min().item()
      1.0
    """
    x, spec = caller.window(input, kernel_size, stride, padding, 1, ceil_mode)
    _refuse_wide(caller, x, spec["window_shape"])
    count = caller.flag("count_include_pad", count_include_pad)
    if divisor_override is not None:
        as_int(caller.name, "divisor_override", divisor_override, -(2**63))
        if divisor_override == 0:
            rule = "must not be 0"
            raise fail(caller.name, "divisor_override", rule, divisor_override)
    return jaxpool.avg_pool(
        x, count_include_pad=count, divisor_override=divisor_override, **spec
    )


def _refuse_wide(caller: Caller, x: jax.Array, kernel: tuple[int, ...]) -> None:
    """Raises for windows larger than the input, which 3-D means are not taken of."""
    sizes = x.shape[-caller.nd :]
    pairs = zip(sizes, kernel, strict=True)
    if caller.nd == 3 and any(isinstance(n, int) and n < k for n, k in pairs):
        rule = f"must be at most the input's size, {sizes}, without padding"
        raise fail(caller.name, "kernel_size", rule, kernel)


def _avg_pool_without_divisor(
    caller: Caller,
    input: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> jax.Array:
    """The mean of each window: `avg_pool2d` without `divisor_override`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x = jnp.array([[[1.0, 3.0, 5.0, 7.0]]])
      >>> F.avg_pool1d(x, 2)
      Array([[[2., 6.]]], dtype=float32)
      >>> F.avg_pool1d(x, 2, padding=1, count_include_pad=False)
      Array([[[1., 4., 7.]]], dtype=float32)
    """
    window = (kernel_size, stride, padding, ceil_mode)
    return _avg_pool(caller, input, *window, count_include_pad)


def _lp_pool(
    caller: Caller,
    input: ArrayLike,
    norm_type: float,
    kernel_size: Ints,
    stride: Ints | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """The norm of each window: :func:`jaxpool.lp_pool`.

    Args:
      input, kernel_size, stride, ceil_mode: as in `max_pool`.
      norm_type: the order, greater than 0. `inf` is the largest magnitude, `-inf` the
        smallest.

    Returns:
      `(N, C, *out)` or `(C, *out)`.

    Raises:
      ValueError, TypeError: for arguments that PyTorch refuses, and for a negative
        order.

    Example:
      >>> import math
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x = jnp.ones((2, 3, 9, 9))
      >>> F.lp_pool2d(x, 2, 3).shape
      (2, 3, 3, 3)
      >>> F.lp_pool2d(x, math.inf, 3, stride=1).shape  # the largest magnitudes
      (2, 3, 7, 7)
    """
    if caller.nd == 1 and is_sequence(kernel_size):
        raise fail(caller.name, "kernel_size", "must be an int", kernel_size, TypeError)
    x, spec = caller.window(input, kernel_size, stride, ceil_mode=ceil_mode, one=False)
    if isinstance(norm_type, bool | str) or norm_type is None:
        raise fail(caller.name, "norm_type", "must be a number", norm_type, TypeError)
    if isinstance(norm_type, int | float):
        if norm_type == -math.inf:
            return jaxpool.min_pool(jnp.abs(x), **spec)
        if not norm_type > 0:
            rule = "must be greater than 0, or -inf"
            raise fail(caller.name, "norm_type", rule, norm_type)
    if not (isinstance(norm_type, float) and norm_type == math.inf):
        _refuse_wide(caller, x, spec["window_shape"])  # its powers are averaged there
    return jaxpool.lp_pool(x, p=norm_type, **spec)


def _bins(
    caller: Caller, input: ArrayLike, output_size: Any
) -> tuple[jax.Array, tuple[int | None, ...]]:
    """The input and the output's sizes of an adaptive pool; None keeps the input's."""
    x = caller.array(input)
    if caller.nd == 1 or not is_sequence(output_size):
        return x, caller.ints("output_size", output_size, 1, caller.nd == 1)
    # Ones stand for what is kept.
    caller.ints("output_size", [1 if n is None else n for n in output_size], 1)
    return x, tuple(output_size)


def _adaptive_max_pool_with_indices(
    caller: Caller,
    input: ArrayLike,
    output_size: Any,
    return_indices: bool = False,
) -> Pair:
    """The largest element of each bin and its index.

    As `adaptive_max_pool` of the same dimensions with `return_indices=True`, whatever
    that is.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x = jnp.ones((2, 3, 8, 8))
      >>> values, indices = F.adaptive_max_pool2d_with_indices(x, 5)
      >>> values.shape, indices.shape
      ((2, 3, 5, 5), (2, 3, 5, 5))
    """
    del return_indices
    x, sizes = _bins(caller, input, output_size)
    return jaxpool.adaptive_max_pool_with_argmax(x, sizes, axis=caller.axes)


def _adaptive_max_pool(
    caller: Caller,
    input: ArrayLike,
    output_size: Any,
    return_indices: bool = False,
) -> Any:
    """The largest element of each bin: :func:`jaxpool.adaptive_max_pool`.

    Args:
      input: as in `max_pool`.
      output_size: the output's size, one int or one for each pooled axis; None keeps
        an axis in 2 and 3 dimensions.
      return_indices: whether to return indices too, as `max_pool` does.

    Returns:
      `(N, C, *output_size)` or `(C, *output_size)`, or a pair of it and indices.

    Raises:
      ValueError, TypeError: for arguments that PyTorch refuses.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> F.adaptive_max_pool2d(jnp.ones((2, 3, 8, 8)), 5).shape
      (2, 3, 5, 5)
    """
    x, sizes = _bins(caller, input, output_size)
    with_argmax = jaxpool.adaptive_max_pool_with_argmax
    op = with_argmax if return_indices else jaxpool.adaptive_max_pool
    return op(x, sizes, axis=caller.axes)


def _adaptive_avg_pool(caller: Caller, input: ArrayLike, output_size: Any) -> jax.Array:
    """The mean of each bin: :func:`jaxpool.adaptive_avg_pool`.

    Arguments and errors as in `adaptive_max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> F.adaptive_avg_pool2d(jnp.ones((2, 3, 8, 8)), 1).shape
      (2, 3, 1, 1)
    """
    x, sizes = _bins(caller, input, output_size)
    return jaxpool.adaptive_avg_pool(x, sizes, axis=caller.axes)


def _fractional_max_pool_with_indices(
    caller: Caller,
    input: ArrayLike,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
) -> Pair:
    """The largest element of each of randomly placed windows, and its index.

    As `fractional_max_pool` of the same dimensions with `return_indices=True`, whatever
    that is.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x, key = jnp.ones((2, 3, 9, 9)), jax.random.key(0)
      >>> values, indices = F.fractional_max_pool2d_with_indices(x, 2, 6, key=key)
      >>> values.shape, indices.shape
      ((2, 3, 6, 6), (2, 3, 6, 6))
    """
    del return_indices
    x, spec = _fractional(
        caller, input, kernel_size, output_size, output_ratio, _random_samples, key
    )
    return jaxpool.fractional_max_pool_with_argmax(x, **spec)


def _fractional_max_pool(
    caller: Caller,
    input: ArrayLike,
    kernel_size: Ints,
    output_size: Ints | None = None,
    output_ratio: float | Sequence[float] | None = None,
    return_indices: bool = False,
    _random_samples: ArrayLike | None = None,
    *,
    key: jax.Array | None = None,
) -> Any:
    """The largest element of each of randomly placed windows.

    :func:`jaxpool.fractional_max_pool` with a window of its own for every example and
    channel.

    Args:
      input: as in `max_pool`.
      kernel_size: the window's size, one int or one for each pooled axis.
      output_size: the output's size, one int or one for each pooled axis.
      output_ratio: the output's size as a fraction of the input's instead, one number
        or one for each pooled axis. `output_size` goes before it.
      return_indices: whether to return indices too, as `max_pool` does.
      _random_samples: numbers in [0, 1) that place the windows, `(N, C, D)` for `D`
        pooled axes (`N` is 1 without a batch), in the dtype of the input. Of two axes
        the last comes first, as in PyTorch.
      key: the key to draw them with, if they are not given.

    Returns:
      `(N, C, *output_size)` or `(C, *output_size)`, or a pair of it and indices.

    Raises:
      ValueError, TypeError: for arguments that PyTorch refuses, and without a key.

    Example:
      The same key draws the same windows:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x, key = jax.random.normal(jax.random.key(0), (2, 3, 9, 9)), jax.random.key(1)
      >>> y = F.fractional_max_pool2d(x, 2, output_ratio=0.7, key=key)
      >>> again = F.fractional_max_pool2d(x, 2, output_size=6, key=key)
      >>> y.shape, bool((y == again).all())
      ((2, 3, 6, 6), True)
    """
    x, spec = _fractional(
        caller, input, kernel_size, output_size, output_ratio, _random_samples, key
    )
    with_argmax = jaxpool.fractional_max_pool_with_argmax
    op = with_argmax if return_indices else jaxpool.fractional_max_pool
    return op(x, **spec)


def _fractional(
    caller: Caller,
    input: ArrayLike,
    kernel_size: Ints,
    output_size: Ints | None,
    output_ratio: float | Sequence[float] | None,
    samples: ArrayLike | None,
    key: jax.Array | None,
) -> tuple[jax.Array, dict[str, Any]]:
    """The input, and how to pool it in the arguments of `jaxpool`."""
    x = caller.array(input)
    sizes = x.shape[-caller.nd :]
    kernel = caller.ints("kernel_size", kernel_size, 1)
    argument, given = "output_size", output_size
    if output_size is None:
        argument, given = "output_ratio", output_ratio
        if output_ratio is None:
            rule = "or `output_ratio` must be given"
            raise fail(caller.name, "output_size", rule, None)
        output_size = _scaled(caller, sizes, output_ratio)
    out = caller.ints(argument, output_size, 1)
    # PyTorch wants one element more in 3 dimensions.
    room = [n - k + (caller.nd < 3) for n, k in zip(sizes, kernel, strict=True)]
    if any(o > r for o, r in zip(out, room, strict=True)):
        rule = (
            f"must give at most {room} windows of {kernel} in an input of size {sizes}"
        )
        raise fail(caller.name, argument, rule, given)
    spec = {
        "output_shape": out,
        "window_shape": kernel,
        "shared": False,
        "axis": caller.axes,
    }
    if samples is None:
        if key is None:
            rule = "is needed to sample: pass `key=jax.random.key(seed)`"
            raise fail(caller.name, "key", rule, key)
        return x, {**spec, "key": key}
    return x, {**spec, "samples": _samples(caller, x, samples)}


def _scaled(
    caller: Caller, sizes: Sequence[int], ratio: float | Sequence[float]
) -> tuple[int, ...]:
    """The output's sizes as fractions of the input's."""
    ratios = ratio if is_sequence(ratio) else [ratio] * caller.nd
    ratios = list(cast(Sequence[float], ratios))
    if len(ratios) != caller.nd:
        rule = f"must be a number, or {caller.nd}, one for each pooled axis"
        raise fail(caller.name, "output_ratio", rule, ratio)
    for r in ratios:
        if isinstance(r, bool) or not isinstance(r, int | float):
            rule = "must be made of numbers"
            raise fail(caller.name, "output_ratio", rule, ratio, TypeError)
    out = tuple(int(n * r) for n, r in zip(sizes, ratios, strict=True))
    if min(out) < 1:
        rule = f"must leave something of the input's size {tuple(sizes)}"
        raise fail(caller.name, "output_ratio", rule, ratio)
    return out


def _samples(caller: Caller, x: jax.Array, samples: ArrayLike) -> jax.Array:
    """PyTorch's samples as `jaxpool`'s: for each plane, in the order of the axes."""
    array, nd = as_array(caller.name, samples, "_random_samples"), caller.nd
    if array.dtype != x.dtype:
        rule = f"must have the dtype of `input`, {x.dtype}"
        raise fail(caller.name, "_random_samples", rule, array.dtype, TypeError)
    batch = (*x.shape[: -nd - 1], 1)[0]
    wanted = (batch, x.shape[-nd - 1], nd)
    if array.ndim != 3 or array.shape[0] < batch or array.shape[1:] != wanted[1:]:
        rule = f"must have the shape {wanted}"
        raise fail(caller.name, "_random_samples", rule, array.shape)
    array = array[:batch] if x.ndim == nd + 2 else array[0]
    return array[..., ::-1] if nd == 2 else array


def _max_unpool(
    caller: Caller,
    input: ArrayLike,
    indices: ArrayLike,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> jax.Array:
    """Writes maxima back to where they came from: :func:`jaxpool.max_unpool`.

    Args:
      input: the maxima, `(N, C, *sizes)` or `(C, *sizes)`.
      indices: integers of the same shape, as `max_pool` returns them.
      kernel_size, stride, padding: those of the pooling.
      output_size: the result's sizes, those of the pooled axes or of all four or five;
        by default `(size - 1) * stride - 2 * padding + kernel_size` along each pooled
        axis, from which it may differ by less than a stride.

    Returns:
      `(N, C, *output_size)` or `(C, *output_size)`, with 0 where nothing is written.

    Raises:
      ValueError, TypeError: for arguments that PyTorch refuses.

    Example:
      The size that the pooling rounded down comes from `output_size`:

      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.torch as F
      >>> x = jnp.ones((2, 3, 9, 9))
      >>> values, indices = F.max_pool2d(x, 2, return_indices=True)
      >>> F.max_unpool2d(values, indices, 2, output_size=x.shape).shape
      (2, 3, 9, 9)
    """
    values = caller.array(input)
    index = as_integers(caller.name, indices, "indices")
    if index.shape != values.shape:
        rule = f"must have the shape of `input`, {values.shape}"
        raise fail(caller.name, "indices", rule, index.shape)
    kernel = caller.ints("kernel_size", kernel_size, 1)
    strides = kernel if stride is None else caller.ints("stride", stride, 1)
    pads = caller.ints("padding", padding, 0)
    windows = zip(values.shape[-caller.nd :], kernel, strides, pads, strict=True)
    out = default = tuple((n - 1) * s - 2 * p + k for n, k, s, p in windows)
    if output_size is not None:
        lengths = (caller.nd, caller.nd + 2)
        rule = f"must be a sequence of {lengths[0]} or {lengths[1]} ints"
        if not is_sequence(output_size):
            raise fail(caller.name, "output_size", rule, output_size, TypeError)
        entries = tuple(output_size)
        if len(entries) not in lengths:
            raise fail(caller.name, "output_size", rule, output_size)
        out = caller.ints("output_size", entries[-caller.nd :], 0)
        triples = zip(out, default, strides, strict=True)
        if any(abs(o - d) >= s for o, d, s in triples):
            rule = f"must differ from {default} by less than the stride, {strides}"
            raise fail(caller.name, "output_size", rule, output_size)
    if min(out) < 1:
        rule = f"must leave something to write to, but the result's size is {out}"
        at_call = output_size is not None
        argument, given = ("output_size", output_size) if at_call else ("padding", pads)
        raise fail(caller.name, argument, rule, given)
    return jaxpool.max_unpool(values, index, out, axis=caller.axes)


max_pool1d, max_pool2d, max_pool3d = _each("max_pool{}d", _max_pool)
(
    max_pool1d_with_indices,
    max_pool2d_with_indices,
    max_pool3d_with_indices,
) = _each("max_pool{}d_with_indices", _max_pool_with_indices)
avg_pool1d = _one("avg_pool{}d", _avg_pool_without_divisor, 1)
avg_pool2d = _one("avg_pool{}d", _avg_pool, 2)
avg_pool3d = _one("avg_pool{}d", _avg_pool, 3)
lp_pool1d, lp_pool2d, lp_pool3d = _each("lp_pool{}d", _lp_pool)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = _each(
    "adaptive_max_pool{}d", _adaptive_max_pool
)
(
    adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d_with_indices,
) = _each("adaptive_max_pool{}d_with_indices", _adaptive_max_pool_with_indices)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = _each(
    "adaptive_avg_pool{}d", _adaptive_avg_pool
)
fractional_max_pool2d = _one("fractional_max_pool{}d", _fractional_max_pool, 2)
fractional_max_pool3d = _one("fractional_max_pool{}d", _fractional_max_pool, 3)
fractional_max_pool2d_with_indices = _one(
    "fractional_max_pool{}d_with_indices", _fractional_max_pool_with_indices, 2
)
fractional_max_pool3d_with_indices = _one(
    "fractional_max_pool{}d_with_indices", _fractional_max_pool_with_indices, 3
)
max_unpool1d, max_unpool2d, max_unpool3d = _each("max_unpool{}d", _max_unpool)
