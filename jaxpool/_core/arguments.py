"""Arguments at the door: arrays, masks, keys and parameters, checked and in shape."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.export import is_symbolic_dim
from jax.typing import ArrayLike

from jaxpool._core.geometry import Geometry, adaptive_axis, static_size
from jaxpool._core.numerics import accumulation_dtype
from jaxpool._core.sharding import split_alike, vary_as_tangent
from jaxpool._core.window import (
    Ints,
    Padding,
    Window,
    as_entries,
    as_flag,
    as_int,
    fail,
    is_name,
    is_sequence,
    resolve_axes,
)

__all__ = [
    "adaptive_bins",
    "as_array",
    "as_integers",
    "as_key",
    "as_mask",
    "as_modes",
    "as_parameter",
    "channel_axis",
    "check_padding",
    "check_whole",
    "countable",
    "int32_of",
    "kernel_shape",
    "kernel_taps",
    "laid",
    "output_axes",
    "over",
    "reduced",
    "whole",
]

# (window_shape, strides, padding, window_dilation, ceil_mode, axis)
Spec = tuple[Ints | None, Ints | None, Padding, Ints, bool, Ints | None]


def laid(
    caller: str,
    x: ArrayLike,
    where: ArrayLike | None,
    spec: Spec,
    *,
    ordered: bool = False,
    reduction: bool = False,
) -> tuple[jax.Array, Geometry, jax.Array | None]:
    """Returns the array, the window laid over it, and the mask, of a windowed op.

    A plain `reduction` takes the windows of `lax.reduce_window`: they may be symbolic,
    and hold nothing but padding.
    """
    x = as_array(caller, x, ordered=ordered)
    geometry = Geometry.of(Window.of(caller, *spec), x.shape)
    if not reduction:
        _check_known(caller, geometry, spec[2])
        check_padding(caller, geometry, spec[2])
    check_whole(caller, x, geometry.pooled)
    return x, geometry, _as_mask(caller, where, x, geometry.pooled)


def _check_known(caller: str, geometry: Geometry, padding: Padding) -> None:
    """Raises where a window is symbolic, unless it is the whole extent."""
    axes = geometry.axes
    given = {
        "window_shape": [a.window for a in axes if a.window != a.size],
        "strides": [a.stride for a in axes],
        "window_dilation": [a.dilation for a in axes],
        "padding": padding,
    }
    for name, sizes in given.items():
        for size in filter(is_symbolic_dim, jax.tree.leaves(sizes)):
            rule = "must be made of ints (a symbolic window is the whole extent alone)"
            raise fail(caller, name, rule, size)


def check_padding(caller: str, geometry: Geometry, padding: Padding) -> None:
    """Raises where a window holds nothing but padding, or may for some symbols."""
    for a in geometry.axes if not isinstance(padding, str) else ():
        extent = (a.window - 1) * a.dilation + 1
        if a.symbolic:
            fits = _less(a.low, extent) and _less(a.counted_high, extent)
        else:
            begin = (a.out - 1) * a.stride - a.low  # of the last window
            fits = a.low < extent and begin < a.size
        if not fits:
            rule = (
                f"must be less than the window's extent, here {extent}, or a window "
                "holds nothing else"
            )
            raise fail(caller, "padding", rule, padding)


def _less(a: Any, b: Any) -> bool:
    """Whether a < b, whatever their symbols stand for."""
    try:
        return bool(a < b)
    except Exception:  # an error of JAX's own where they leave it open
        return False


def whole(
    caller: str,
    x: ArrayLike,
    where: ArrayLike | None,
    axis: Ints | None,
    *,
    ordered: bool = False,
) -> tuple[jax.Array, Geometry, jax.Array | None]:
    """As `laid`, for one window over the whole extent of `axis`.

    By default that is all axes but the first (batch) and the last (channels).
    """
    x = as_array(caller, x, ordered=ordered)
    if axis is None:
        if x.ndim < 3:
            rule = "must be given for an array without axes between the first and last"
            raise fail(caller, "axis", rule, axis)
        axis = tuple(range(1, x.ndim - 1))
    spec = (None, None, "VALID", 1, False, axis)
    return laid(caller, x, where, spec, ordered=ordered)


def output_axes(
    caller: str,
    output_shape: Any,
    axis: Ints | None,
    ndim: int,
    sizes: Sequence[int] | None = None,
    argument: str = "output_shape",
    most: int = 2**31 - 1,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the pooled axes (negative, ascending) and the output's size on each.

    With the input's `sizes`, all of them, an entry of None keeps the input's.
    `argument` is what errors call `output_shape`, and `most` its largest entry.
    """
    if axis is not None:
        axes = resolve_axes(caller, axis, ndim)
        alone = not is_sequence(output_shape)
        given = [output_shape] * len(axes) if alone else output_shape
        entries = as_entries(caller, argument, given)
    elif is_sequence(output_shape):
        entries = as_entries(caller, argument, output_shape)
        axes = tuple(range(-1 - len(entries), -1))
    else:
        rule = "must be a sequence with one int for each pooled axis, unless `axis=`"
        raise fail(caller, argument, f"{rule} is given", output_shape)
    if len(entries) != len(axes):
        rule = f"must have {len(axes)} entries, one for each pooled axis"
        raise fail(caller, argument, rule, output_shape)
    if not entries or ndim <= len(entries) - (axis is not None):
        rule = f"must have between 1 and {ndim - 1} entries to fit the array's axes"
        raise fail(caller, argument, rule, output_shape)
    wanted = {}
    for a, entry in zip(axes, entries, strict=True):
        if sizes is not None:  # of the input, which has to have elements
            size = static_size(caller, sizes[a])
            as_int(caller, "x.shape", size, 1)
            entry = size if entry is None else entry
        wanted[a] = as_int(caller, argument, entry, 1, most)
    return tuple(sorted(wanted)), tuple(wanted[a] for a in sorted(wanted))


def adaptive_bins(
    caller: str,
    x: jax.Array,
    output_shape: Any,
    axis: Ints | None,
    argument: str = "output_shape",
) -> Geometry:
    """The bins of adaptive pooling to an output of the given size."""
    axes, sizes = output_axes(caller, output_shape, axis, x.ndim, x.shape, argument)
    check_whole(caller, x, axes)
    countable(caller, sizes, argument)
    pairs = zip(axes, sizes, strict=True)
    return Geometry(tuple(adaptive_axis(a, x.shape[a], size) for a, size in pairs))


def reduced(caller: str, y: jax.Array, geometry: Geometry, keepdims: bool) -> jax.Array:
    """A global pool's result, with the axes that it is asked for."""
    if as_flag(caller, "keepdims", keepdims):
        return y
    return jnp.squeeze(y, geometry.pooled)


def channel_axis(ndim: int, pooled: Sequence[int]) -> int:
    """The last axis that is not pooled."""
    return max(set(range(-ndim, 0)) - set(pooled))


def countable(caller: str, sizes: Sequence[Any], argument: str = "x") -> None:
    """Raises where an int32 cannot count the elements of a plane of these sizes."""
    known = math.prod(n for n in sizes if isinstance(n, int))
    if known >= 2**31:
        rule = "must have fewer than 2**31 elements in a plane, to be counted in int32"
        raise fail(caller, argument, rule, tuple(sizes))


def as_array(
    caller: str, x: ArrayLike, name: str = "x", *, ordered: bool = False
) -> jax.Array:
    """Returns `x` as a JAX array of numbers; if `ordered`, complex ones are refused."""
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError, OverflowError):
        rule = "must be an array of numbers"
        raise fail(caller, name, rule, type(x), TypeError) from None
    _check_fits(caller, name, x, array.dtype)
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != jnp.bool_:
        rule = "must be an array of numbers"
        raise fail(caller, name, rule, array.dtype, TypeError)
    if ordered and jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise fail(
            caller, name, "must be real, to have an order", array.dtype, TypeError
        )
    return vary_as_tangent(array)


def as_integers(caller: str, value: ArrayLike, name: str) -> jax.Array:
    """Returns an array of integers as a JAX array; others are refused."""
    array = as_array(caller, value, name)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise fail(caller, name, "must be integers", array.dtype, TypeError)
    return array


def int32_of(x: jax.Array) -> jax.Array:
    """Returns integers as int32, what is too large or too small as the nearest limit.

    Sizes and indices are compared in int32: a narrower dtype may not hold the size, and
    of a wider one, or an unsigned one, the upper half would wrap around.
    """
    own, wanted = jnp.iinfo(x.dtype), np.iinfo(np.int32)
    low, high = max(own.min, wanted.min), min(own.max, wanted.max)
    if (low, high) != (own.min, own.max):
        x = lax.clamp(np.array(low, x.dtype), x, np.array(high, x.dtype))
    return x.astype(np.int32)


def _check_fits(caller: str, name: str, x: Any, dtype: np.dtype) -> None:
    """Raises where integers lose their upper half, of which JAX says nothing."""
    if isinstance(x, jax.Array) or not hasattr(x, "__array__"):
        return
    if not jnp.issubdtype(dtype, jnp.integer) or hasattr(x, "__jax_array__"):
        return
    x = np.asarray(x)  # of NumPy, or another framework's tensor
    if x.dtype == dtype or not x.size:
        return
    limits = jnp.iinfo(dtype)
    for value in (int(np.min(x)), int(np.max(x))):
        if not limits.min <= value <= limits.max:
            rule = f"must hold integers of {dtype} (see `jax_enable_x64`)"
            raise fail(caller, name, rule, value)


def check_whole(
    caller: str, x: jax.Array, axes: Iterable[int], name: str = "x"
) -> None:
    """Raises where explicit sharding splits `x` along axes that the op reads as one.

    What a window across two devices makes is sharded in no one way, so JAX asks for
    the user's word. (Automatic sharding finds a way, and shows no sharding here.)
    """
    spec = jax.typeof(x).sharding.spec
    if any(spec[a] is not None for a in axes):
        rule = (
            f"must not be sharded explicitly along axes {tuple(sorted(axes))}: pool "
            "it by `jaxpool.sharded`, under `jax.sharding.auto_axes`, or after "
            "`jax.sharding.reshard`"
        )
        raise fail(caller, name, rule, spec)


def _as_mask(
    caller: str, where: ArrayLike | None, x: jax.Array, pooled: Sequence[int]
) -> jax.Array | None:
    """Returns a mask of `x`'s rank, as large as `x` along the pooled axes only."""
    if where is None:
        return None
    return over(caller, "where", as_mask(caller, where), x, pooled)


def as_mask(caller: str, where: ArrayLike) -> jax.Array:
    """Returns a mask of any shape as a JAX array of booleans."""
    mask = as_array(caller, where, "where")
    if mask.dtype != jnp.bool_:
        raise fail(caller, "where", "must be boolean", mask.dtype, TypeError)
    return mask


def over(
    caller: str, name: str, values: jax.Array, x: jax.Array, pooled: Sequence[int]
) -> jax.Array:
    """Returns `values` with `x`'s rank, as large as `x` along the pooled axes only."""
    shape = (1,) * (x.ndim - values.ndim) + values.shape
    if len(shape) != x.ndim or any(
        m not in (1, n) for m, n in zip(shape, x.shape, strict=True)
    ):
        rule = f"must broadcast to `x`, whose shape is {x.shape}"
        raise fail(caller, name, rule, values.shape)
    wanted = list(shape)
    for a in pooled:
        wanted[a] = x.shape[a]
    values = jnp.broadcast_to(values.reshape(shape), wanted)
    return split_alike(values, x.shape, x)


def as_modes(caller: str, mode: Any, known: Iterable[str]) -> tuple[str, ...]:
    """Returns one mode, or a sequence of them, as a tuple of known names."""
    modes = as_entries(caller, "mode", mode) if is_sequence(mode) else (mode,)
    known = tuple(known)
    if not modes or not all(is_name(m, known) for m in modes):
        rule = f"must be one or several of {', '.join(known)}"
        raise fail(caller, "mode", rule, mode)
    return modes


def as_key(caller: str, key: Any) -> jax.Array:
    """Returns a PRNG key, or says how to get one."""
    if key is None:
        rule = (
            "is needed to sample: pass `key=jax.random.key(seed)`, or "
            "`deterministic=True` to do without"
        )
        raise fail(caller, "key", rule, key)
    dtype, rank = getattr(key, "dtype", None), getattr(key, "ndim", None)
    raw = dtype == jnp.uint32 and rank == 1 and key.shape == _raw_key_shape()
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not raw and not (typed and rank == 0):
        rule = "must be one PRNG key, such as `jax.random.key(seed)`"
        raise fail(caller, "key", rule, key, TypeError)
    return key


def _raw_key_shape() -> tuple[int, ...]:
    """The shape of a key in JAX's older form, for the generator in use."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def check_positive(caller: str, name: str, value: ArrayLike) -> None:
    """Raises for numbers that are known and not finite or not greater than 0."""
    if isinstance(value, Tracer):
        return
    numbers = np.asarray(value)
    if not np.all((numbers > 0) & np.isfinite(numbers)):
        raise fail(caller, name, "must be finite and greater than 0", value)


def as_parameter(
    caller: str,
    name: str,
    value: ArrayLike,
    x: jax.Array,
    pooled: Sequence[int],
    *,
    positive: bool = False,
    of_windows: bool = False,
) -> jax.Array:
    """Returns a parameter with `x`'s rank, in the dtype that `x` accumulates in.

    It is a scalar, one value a channel (a vector in every layout: channels are the last
    axis that is not pooled), or what broadcasts to `x` and is the same along pooled
    axes; unless it is `of_windows`, and `x` what they give.
    """
    given = as_array(caller, value, name, ordered=True)
    rest = [a for a in range(-x.ndim, 0) if a not in pooled]
    shape = given.shape
    if len(shape) == 1 and rest:
        shape = (*shape, *(1,) * (-1 - rest[-1]))
    missing = x.ndim - len(shape)
    if missing < 0 or any(
        m not in (1, n) for m, n in zip(shape, x.shape[missing:], strict=True)
    ):
        rule = f"must broadcast to {x.shape}"
        raise fail(caller, name, rule, given.shape)
    shape = (*(1,) * missing, *shape)
    if not of_windows and any(shape[a] != 1 for a in pooled):
        allowed = "a scalar or one value a channel" if rest else "a scalar"
        rule = f"must be {allowed}: the same along pooled axes"
        raise fail(caller, name, rule, given.shape)
    if positive:
        check_positive(caller, name, value)
    return given.astype(accumulation_dtype(x.dtype)).reshape(shape)


def kernel_shape(
    caller: str,
    window_shape: Ints | None,
    axis: Ints | None = None,
    features: int | None = None,
    lead: tuple[int, ...] = (),
) -> tuple[int, ...]:
    """The shape of an array with a value for each place of a window, for a module.

    That is `[*lead, *window]`, or `[*lead, *window, features]`.
    """
    shape = Window.of(caller, window_shape, axis=axis).shape
    if shape is None:
        rule = "must be given, as what is learned has a value for each place of it"
        raise fail(caller, "window_shape", rule, window_shape)
    channels = () if features is None else (as_int(caller, "features", features, 1),)
    return (*lead, *shape, *channels)


def kernel_taps(
    caller: str,
    name: str,
    values: ArrayLike,
    x: jax.Array,
    geometry: Geometry,
    axis: Ints | None,
    lead: tuple[int, ...] = (),
) -> jax.Array:
    """Returns an array with a value for each place of a window as `[*lead, taps, ...]`.

    Given is `[*lead, *window]`, the window's axes in the order of `axis`, or, with one
    value a channel, `[*lead, *window, C]`; channels are the last axis that is not
    pooled. Taps are in row-major order, as in `window_taps`. The axes after them are
    those of `x`, of size 1 but for channels; the dtype is what `x` accumulates in.
    """
    kernel = as_array(caller, values, name, ordered=True)
    given = geometry.pooled if axis is None else resolve_axes(caller, axis, x.ndim)
    size_of = {a.axis: a.window for a in geometry.axes}
    expected = (*lead, *(size_of[a] for a in given))
    channel = [a for a in range(-x.ndim, 0) if a not in given][-1:]
    n, shape = len(expected), [1] * x.ndim
    extra = kernel.shape[n:]
    known = ((), (1,) * len(channel), tuple(x.shape[a] for a in channel))
    if kernel.shape[:n] != expected or extra not in known:
        rule = f"must have the shape {expected}, or a channel axis behind it"
        raise fail(caller, name, rule, kernel.shape)
    for a, size in zip(channel, extra, strict=False):
        shape[a] = size
    order = [len(lead) + i for i in sorted(range(len(given)), key=given.__getitem__)]
    axes = (*range(len(lead)), *order, *range(n, kernel.ndim))
    kernel = jnp.transpose(kernel.astype(accumulation_dtype(x.dtype)), axes)
    return kernel.reshape(*lead, geometry.taps, *shape)
