"""TensorFlow's pooling functions on jaxpool, for code that leaves `tf.nn`.

`pool`, `max_pool`, `avg_pool` and theirs for 1 to 3 axes, `max_pool_with_argmax`,
`fractional_max_pool` and `fractional_avg_pool` with the arguments, the layouts and the
numbers of `tf.nn`. `name` is taken and not used. Sampling takes `key=` beside `seed`.
"""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import jaxpool
from jaxpool._core.arguments import as_array
from jaxpool._core.window import as_int, as_ints, fail, is_sequence
from jaxpool.compat._words import Difference, speaking

__all__ = [
    "DIFFERENCES",
    "FractionalPool",
    "MaxPoolWithArgmax",
    "avg_pool",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "fractional_avg_pool",
    "fractional_max_pool",
    "max_pool",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_pool_with_argmax",
    "pool",
]

DIFFERENCES = (
    Difference(
        "NaN in `max_pool`, on the CPU",
        "on x86 it is passed over, which leaves the lowest finite value where there is "
        "nothing else; on ARM it is the maximum of the first floor(C / p) p of C "
        "channels, for p elements to a register (4 of float32, 2 of float64), and "
        "passed over in the rest",
        "is the maximum, for value, index and gradient, in every channel",
        "tensorflow#125965, #2501; x86 seen with 2.21.0",
    ),
    Difference(
        "NaN in `max_pool_with_argmax`, and in gradients of `max_pool`, on the CPU",
        "has value, index and gradient where it is its window's first element, and is "
        "passed over elsewhere: the gradient can be that of another element than the "
        "value",
        "is the maximum, as in `max_pool`",
        "seen with 2.21.0",
    ),
    Difference(
        "`avg_pool` of integers",
        "an error",
        "floats, as `jnp.mean`",
    ),
    Difference(
        "forward-mode derivatives of `avg_pool`",
        "no rule",
        "every mode and order",
        "tensorflow#62422",
    ),
    Difference(
        "explicit padding",
        "`max_pool` of 1 and 2 axes",
        "`max_pool` of 1 to 3 axes, smaller than the window",
    ),
    Difference(
        "a window over channels (`ksize=[1, 1, 1, k]`)",
        "`max_pool` of 2 axes, where strides equal it",
        "ValueError; `jaxpool.max_pool(x, k, k, axis=-1)`",
    ),
    Difference(
        "strides or padding SAME with dilations; strides larger than the window",
        "`pool` raises",
        "`pool` raises too; `jaxpool.max_pool` and `avg_pool` take them",
        "tensorflow#12681",
    ),
    Difference(
        "int64 indices and sequences",
        "always",
        "int32 unless `jax_enable_x64` is on; an input with too many elements for the "
        "index is refused",
    ),
    Difference(
        "`pooling_ratio` as [rows, columns]",
        "refused, though documented: first and last entry must be 1",
        "taken; [1, rows, columns, 1] too",
    ),
    Difference(
        "the size that a `pooling_ratio` gives",
        "floor(size / ratio) in float32",
        "the same in exact fractions",
    ),
    Difference(
        "fractional pools without seed (`seed=0`)",
        "drawn anew at every call",
        "ValueError that asks for `key`",
    ),
    Difference(
        "the numbers that a seed draws",
        "those of TensorFlow's generator",
        "those of `jax.random`, with the same distribution",
    ),
)
"""Where a program can tell the two apart."""

Entries = int | Sequence[int]
_LAST = {1: "NWC", 2: "NHWC", 3: "NDHWC"}
_FIRST = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


class MaxPoolWithArgmax(NamedTuple):
    """What :func:`max_pool_with_argmax` returns.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> y = tf.max_pool_with_argmax(jnp.ones((1, 4, 4, 3)), 2, 2, "VALID")
      >>> y.output.shape, y.argmax.shape
      ((1, 2, 2, 3), (1, 2, 2, 3))
    """

    output: jax.Array
    argmax: jax.Array


class FractionalPool(NamedTuple):
    """What the fractional pools return.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> y = tf.fractional_avg_pool(jnp.ones((1, 6, 9, 1)), [2.0, 1.5], seed=1)
      >>> y.row_pooling_sequence.shape, y.col_pooling_sequence.shape
      ((4,), (7,))
    """

    output: jax.Array
    row_pooling_sequence: jax.Array
    col_pooling_sequence: jax.Array


def pool(
    input: ArrayLike,
    window_shape: Sequence[int],
    pooling_type: str,
    strides: Sequence[int] | None = None,
    padding: str = "VALID",
    data_format: str | None = None,
    dilations: Sequence[int] | None = None,
    name: str | None = None,
) -> jax.Array:
    """`tf.nn.pool` by :func:`jaxpool.max_pool` and :func:`jaxpool.avg_pool`.

    Args:
      input: `[N, S..., C]`, or `[N, C, S...]` where `data_format` begins with "NC",
        with as many spatial axes, 1 to 3, as `window_shape` has entries.
      window_shape: window size for each spatial axis.
      pooling_type: `"MAX"` or `"AVG"`; padding does not count.
      strides: for each spatial axis, at most the window's size; None is 1.
      padding: `"VALID"` or `"SAME"`.
      data_format: `"NWC"`, `"NHWC"`, `"NDHWC"` (None), `"NCW"`, `"NCHW"`, `"NCDHW"`.
      dilations: distance between neighbouring elements of a window, for each spatial
        axis; None is 1, and other numbers need strides of 1 and padding `"VALID"`.
      name: not used.

    Returns:
      One element for each window, in the layout of `input`.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or windows larger
        than the input.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x = jnp.array([1.0, 5.0, 2.0, 0.0, 3.0]).reshape(1, 5, 1)
      >>> tf.pool(x, [2], "MAX", dilations=[2])[0, :, 0]
      Array([2., 5., 3.], dtype=float32)
    """
    if not is_sequence(window_shape) or not 1 <= len(window_shape) <= 3:
        rule = "must be a sequence of 1 to 3 ints"
        raise fail("pool", "window_shape", rule, window_shape)
    n = len(window_shape)
    window = as_ints("pool", "window_shape", window_shape, n, 1)
    steps = as_ints("pool", "strides", 1 if strides is None else strides, n, 1)
    apart = as_ints("pool", "dilations", 1 if dilations is None else dilations, n, 1)
    if pooling_type not in _OPS:
        raise fail("pool", "pooling_type", "must be 'MAX' or 'AVG'", pooling_type)
    if padding not in ("SAME", "VALID"):
        raise fail("pool", "padding", "must be 'SAME' or 'VALID'", padding)
    if max(apart) > 1 and max(steps) > 1:
        rule = "must be 1 where `dilations` are not"
        raise fail("pool", "strides", rule, strides)
    if max(apart) > 1 and padding == "SAME":
        rule = "must be 'VALID' where `dilations` are not 1"
        raise fail("pool", "padding", rule, padding)
    if any(s > k for s, k in zip(steps, window, strict=True)):
        rule = f"must not be larger than `window_shape` {window}"
        raise fail("pool", "strides", rule, strides)
    x, axis = _laid("pool", input, data_format, n)
    with speaking("pool", x="input", window_dilation="dilations"):
        op = _OPS[pooling_type]
        return op(x, window, steps, padding, window_dilation=apart, axis=axis)


def max_pool(
    input: ArrayLike,
    ksize: Entries,
    strides: Entries | None,
    padding: str | Sequence[Sequence[int]],
    data_format: str | None = None,
    name: str | None = None,
) -> jax.Array:
    """`tf.nn.max_pool` by :func:`jaxpool.max_pool`.

    Args:
      input: `[N, S..., C]` with 1 to 3 spatial axes, or `[N, C, S...]` where
        `data_format` begins with "NC".
      ksize: window size: an int, or 1, n or n + 2 entries for n spatial axes; those of
        the batch and the channels must be 1.
      strides: likewise; None is 1.
      padding: `"VALID"`, `"SAME"`, or a (low, high) pair for each axis of `input`,
        smaller than the window, and (0, 0) for batch and channels.
      data_format: `"NWC"`, `"NHWC"`, `"NDHWC"` (None), `"NCW"`, `"NCHW"`, `"NCDHW"`.
      name: not used.

    Returns:
      The largest element of each window, in the layout and the dtype of `input`.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or windows larger
        than the padded input.

    Example:
      Window and strides in all the forms that TensorFlow takes:

      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> tf.max_pool(x, 2, 2, "VALID")[0, ..., 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
      >>> tf.max_pool(x, [1, 2, 2, 1], [1, 2, 2, 1], "VALID").shape
      (1, 2, 2, 1)
    """
    return _windows("max_pool", "MAX", input, ksize, strides, padding, data_format)


def avg_pool(
    input: ArrayLike,
    ksize: Entries,
    strides: Entries | None,
    padding: str,
    data_format: str | None = None,
    name: str | None = None,
) -> jax.Array:
    """`tf.nn.avg_pool` by :func:`jaxpool.avg_pool`.

    Arguments and errors as in :func:`max_pool`, with `"VALID"` or `"SAME"` as padding,
    which does not count.

    Example:
      Padding does not count:

      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x = jnp.array([2.0, 4.0, 6.0]).reshape(1, 3, 1)
      >>> tf.avg_pool(x, 3, 1, "SAME")[0, :, 0]
      Array([3., 4., 5.], dtype=float32)
    """
    return _windows("avg_pool", "AVG", input, ksize, strides, padding, data_format)


def max_pool1d(input, ksize, strides, padding, data_format="NWC", name=None):
    """`tf.nn.max_pool1d`: :func:`max_pool` of `[N, W, C]` or `[N, C, W]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> tf.max_pool1d(jnp.ones((2, 9, 3)), 2, 2, "SAME").shape
      (2, 5, 3)
    """
    window = (input, ksize, strides, padding, data_format)
    return _windows("max_pool1d", "MAX", *window, n=1)


def max_pool2d(input, ksize, strides, padding, data_format="NHWC", name=None):
    """`tf.nn.max_pool2d`: :func:`max_pool` of `[N, H, W, C]` or `[N, C, H, W]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> tf.max_pool2d(jnp.ones((2, 3, 9, 9)), 2, 2, "VALID", data_format="NCHW").shape
      (2, 3, 4, 4)
    """
    window = (input, ksize, strides, padding, data_format)
    return _windows("max_pool2d", "MAX", *window, n=2)


def max_pool3d(input, ksize, strides, padding, data_format="NDHWC", name=None):
    """`tf.nn.max_pool3d`: :func:`max_pool` of 3 spatial axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> tf.max_pool3d(jnp.ones((2, 4, 9, 9, 3)), [1, 2, 2], [1, 2, 2], "SAME").shape
      (2, 4, 5, 5, 3)
    """
    window = (input, ksize, strides, padding, data_format)
    return _windows("max_pool3d", "MAX", *window, n=3)


def avg_pool1d(input, ksize, strides, padding, data_format="NWC", name=None):
    """`tf.nn.avg_pool1d`: :func:`avg_pool` of `[N, W, C]` or `[N, C, W]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x = jnp.array([1.0, 3.0, 5.0, 7.0]).reshape(1, 1, 4)
      >>> tf.avg_pool1d(x, 2, 2, "VALID", data_format="NCW")
      Array([[[2., 6.]]], dtype=float32)
    """
    window = (input, ksize, strides, padding, data_format)
    return _windows("avg_pool1d", "AVG", *window, n=1)


def avg_pool2d(input, ksize, strides, padding, data_format="NHWC", name=None):
    """`tf.nn.avg_pool2d`: :func:`avg_pool` of `[N, H, W, C]` or `[N, C, H, W]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
      >>> tf.avg_pool2d(x, 2, 2, "VALID")[0, ..., 0]
      Array([[ 2.5,  4.5],
             [10.5, 12.5]], dtype=float32)
    """
    window = (input, ksize, strides, padding, data_format)
    return _windows("avg_pool2d", "AVG", *window, n=2)


def avg_pool3d(input, ksize, strides, padding, data_format="NDHWC", name=None):
    """`tf.nn.avg_pool3d`: :func:`avg_pool` of 3 spatial axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> tf.avg_pool3d(jnp.ones((2, 4, 9, 9, 3)), 2, 2, "SAME").shape
      (2, 2, 5, 5, 3)
    """
    window = (input, ksize, strides, padding, data_format)
    return _windows("avg_pool3d", "AVG", *window, n=3)


def max_pool_with_argmax(
    input: ArrayLike,
    ksize: Entries,
    strides: Entries | None,
    padding: str,
    data_format: str = "NHWC",
    output_dtype: DTypeLike = "int64",
    include_batch_in_index: bool = False,
    name: str | None = None,
) -> MaxPoolWithArgmax:
    """`tf.nn.max_pool_with_argmax` by :func:`jaxpool.max_pool_with_argmax`.

    Args:
      input: `[N, H, W, C]`.
      ksize, strides: as in :func:`max_pool`.
      padding: `"VALID"` or `"SAME"`.
      data_format: `"NHWC"`.
      output_dtype: that of the indices, int32 or int64 (which is int32 unless
        `jax_enable_x64` is on).
      include_batch_in_index: whether an index counts the images before its own.
      name: not used.

    Returns:
      output: the largest element of each window, in the dtype of `input`.
      argmax: where it stands: `(h * W + w) * C + c`, or with the batch
        `((n * H + h) * W + w) * C + c`. No gradient.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`, and for an input with more elements
        than the index can count.

    Example:
      The second channel's maximum stands at (1, 0): (1 * 2 + 0) * 2 + 1 = 5.

      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x = jnp.array([[[9.0, 1.0], [2.0, 3.0]], [[4.0, 8.0], [6.0, 7.0]]])[None]
      >>> y = tf.max_pool_with_argmax(x, 2, 2, "VALID", output_dtype="int32")
      >>> y.output.ravel(), y.argmax.ravel()
      (Array([9., 8.], dtype=float32), Array([0, 5], dtype=int32))
    """
    caller = "max_pool_with_argmax"
    if data_format != "NHWC":
        raise fail(caller, "data_format", "must be 'NHWC'", data_format)
    if jnp.dtype(output_dtype) not in (jnp.int32, jnp.int64):
        raise fail(caller, "output_dtype", "must be int32 or int64", output_dtype)
    if not isinstance(padding, str):
        raise fail(caller, "padding", "must be 'SAME' or 'VALID'", padding)
    dtype = jax.dtypes.canonicalize_dtype(output_dtype)
    op = jaxpool.max_pool_with_argmax
    y, index = _windows(caller, op, input, ksize, strides, padding, data_format, n=2)
    target = "tf_batch" if include_batch_in_index else "tf"
    with speaking(caller, dtype="output_dtype"):
        argmax = jaxpool.convert_indices(
            index, jnp.shape(input)[1:3], target=target, dtype=dtype
        )
    return MaxPoolWithArgmax(y, argmax)


def fractional_max_pool(
    value: ArrayLike,
    pooling_ratio: float | Sequence[float],
    pseudo_random: bool = False,
    overlapping: bool = False,
    seed: int = 0,
    name: str | None = None,
    *,
    key: Any = None,
) -> FractionalPool:
    """`tf.nn.fractional_max_pool` by :func:`jaxpool.fractional_max_pool`.

    Args:
      value: `[N, H, W, C]`.
      pooling_ratio: input size over output size, at least 1: a number, [rows, columns]
        or [1, rows, columns, 1].
      pseudo_random: whether regions are pseudo-random or a shuffle of their sizes.
      overlapping: whether a region has the first element of the next one too.
      seed: not 0: stands for `key=jax.random.key(seed)`.
      name: not used.
      key: a PRNG key; the same key draws the same regions. Either it or `seed`.

    Returns:
      output: the largest element of each region, in the dtype of `value`.
      row_pooling_sequence, col_pooling_sequence: where regions begin, and the input's
        size at last.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      Rows at a ratio of 2, columns at one of 1.5:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x, key = jnp.ones((1, 6, 9, 1)), jax.random.key(0)
      >>> y = tf.fractional_max_pool(x, [1, 2.0, 1.5, 1], pseudo_random=True, key=key)
      >>> y.output.shape, y.row_pooling_sequence
      ((1, 3, 6, 1), Array([0, 2, 4, 6], dtype=int32))
    """
    arguments = (value, pooling_ratio, pseudo_random, overlapping, seed, key)
    return _fractional("fractional_max_pool", *arguments)


def fractional_avg_pool(
    value: ArrayLike,
    pooling_ratio: float | Sequence[float],
    pseudo_random: bool = False,
    overlapping: bool = False,
    seed: int = 0,
    name: str | None = None,
    *,
    key: Any = None,
) -> FractionalPool:
    """`tf.nn.fractional_avg_pool` by :func:`jaxpool.fractional_avg_pool`.

    Arguments, returns and errors as in :func:`fractional_max_pool`, with the mean of
    each region.

    Example:
      A seed stands for the key of that number:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import tf
      >>> x = jnp.arange(36.0).reshape(1, 6, 6, 1)
      >>> y = tf.fractional_avg_pool(x, 1.5, seed=3)
      >>> again = tf.fractional_avg_pool(x, 1.5, key=jax.random.key(3))
      >>> y.output.shape, bool((y.output == again.output).all())
      ((1, 4, 4, 1), True)
    """
    arguments = (value, pooling_ratio, pseudo_random, overlapping, seed, key)
    return _fractional("fractional_avg_pool", *arguments)


_OPS: dict[str, Callable[..., Any]] = {
    "MAX": jaxpool.max_pool,
    "AVG": functools.partial(jaxpool.avg_pool, count_include_pad=False),
}


def _windows(
    caller: str,
    op: str | Callable[..., Any],
    input: Any,
    ksize: Any,
    strides: Any,
    padding: Any,
    data_format: Any,
    n: int | None = None,
) -> Any:
    x, axis = _laid(caller, input, data_format, n)
    window = _entries(caller, "ksize", ksize, x.ndim, axis)
    steps = _entries(caller, "strides", 1 if strides is None else strides, x.ndim, axis)
    if op == "AVG" or isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise fail(caller, "padding", "must be 'SAME' or 'VALID'", padding)
    else:
        pads = _pads(caller, padding, x.ndim, axis)
        if any(max(pair) >= k for pair, k in zip(pads, window, strict=True)):
            rule = f"must be less than `ksize`, {window}"
            raise fail(caller, "padding", rule, padding)
        padding = pads
    with speaking(caller, x="input", window_shape="ksize"):
        return (_OPS[op] if isinstance(op, str) else op)(
            x, window, steps, padding, axis=axis
        )


def _laid(
    caller: str, input: Any, data_format: Any, n: int | None
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns the array and its spatial axes, of which there are `n`."""
    x = as_array(caller, input, "input")
    if x.ndim - 2 not in ((1, 2, 3) if n is None else (n,)):
        rule = f"must have {'3 to 5' if n is None else n + 2} axes"
        raise fail(caller, "input", rule, x.shape)
    n = x.ndim - 2
    if data_format not in (None, _LAST[n], _FIRST[n]):
        rule = f"must be '{_LAST[n]}' or '{_FIRST[n]}'"
        raise fail(caller, "data_format", rule, data_format)
    first = 2 if data_format == _FIRST[n] else 1
    return x, tuple(range(first, first + n))


def _entries(
    caller: str, argument: str, value: Any, ndim: int, axis: Sequence[int]
) -> tuple[int, ...]:
    """Returns one int for each of `axis`, from 1, as many, or one for every axis."""
    entries = tuple(value) if is_sequence(value) else (value,)
    n = len(axis)
    if len(entries) not in (1, n, ndim):
        rule = f"must have 1, {n} or {ndim} entries"
        raise fail(caller, argument, rule, value)
    if len(entries) == ndim:
        others = [entries[a] for a in range(ndim) if a not in axis]
        if any(as_int(caller, argument, entry, 1) != 1 for entry in others):
            raise fail(caller, argument, "must be 1 for batch and channels", value)
        entries = tuple(entries[a] for a in axis)
    return as_ints(caller, argument, entries * (n if len(entries) == 1 else 1), n, 1)


def _pads(
    caller: str, value: Any, ndim: int, axis: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    rule = f"must be 'SAME', 'VALID' or {ndim} pairs (low, high)"
    if not is_sequence(value) or len(value) != ndim:
        raise fail(caller, "padding", rule, value)
    pairs = tuple(as_ints(caller, "padding", p, 2, 0) for p in value if is_sequence(p))
    if len(pairs) != ndim:
        raise fail(caller, "padding", rule, value)
    if any(any(pair) for a, pair in enumerate(pairs) if a not in axis):
        rule = "must be (0, 0) for batch and channels"
        raise fail(caller, "padding", rule, value)
    return tuple(pairs[a] for a in axis)


def _fractional(
    name: str,
    value: Any,
    pooling_ratio: Any,
    pseudo_random: bool,
    overlapping: bool,
    seed: int,
    key: Any,
) -> FractionalPool:
    x = as_array(name, value, "value")
    if x.ndim != 4:
        raise fail(name, "value", "must have 4 axes", x.shape)
    ratios = tuple(pooling_ratio) if is_sequence(pooling_ratio) else (pooling_ratio,)
    if len(ratios) not in (1, 2, 4) or not all(
        isinstance(r, numbers.Real) for r in ratios
    ):
        rule = "must be a number, [rows, columns] or [1, rows, columns, 1]"
        raise fail(name, "pooling_ratio", rule, pooling_ratio)
    if len(ratios) == 4:
        if (ratios[0], ratios[3]) != (1, 1):
            rule = "must be 1 for batch and channels"
            raise fail(name, "pooling_ratio", rule, pooling_ratio)
        ratios = ratios[1:3]
    seed = as_int(name, "seed", seed, -(2**63))
    if seed and key is not None:
        raise fail(name, "seed", "must be 0 where `key` is given", seed)
    if not seed and key is None:
        rule = "is needed to draw regions, unless there is a `seed` other than 0"
        raise fail(name, "key", f"{rule}: pass `key=jax.random.key(seed)`", key)
    if seed:
        key = jax.random.key(seed)
    mode = "pseudorandom" if pseudo_random else "random"
    rules: dict[str, Any] = {
        "ratio": ratios * (2 if len(ratios) == 1 else 1),
        "key": key,
        "mode": mode,
        "overlapping": overlapping,
    }
    with speaking(name, x="value", ratio="pooling_ratio"):
        y = getattr(jaxpool, name)(x, **rules)
        bounds = jaxpool.fractional_boundaries(x.shape, **rules)
    ends = zip(bounds, x.shape[1:3], strict=True)
    return FractionalPool(
        y, *(jnp.append(start, jnp.asarray(n, start.dtype)) for (start, _), n in ends)
    )
