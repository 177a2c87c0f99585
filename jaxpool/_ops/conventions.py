"""Flat indices as other frameworks count them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes, lax
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_integers, output_axes
from jaxpool._core.window import Ints, fail, is_name

__all__ = ["convert_indices"]

# The axes that a flat index counts, slowest first: the batch, the pooled ones in
# ascending order ("reversed": the other way round), and the channels.
CONVENTIONS = {
    "plane": ("pooled",),
    "tf": ("pooled", "channels"),
    "tf_batch": ("batch", "pooled", "channels"),
    "onnx": ("batch", "channels", "pooled"),
    "onnx_column_major": ("batch", "channels", "reversed"),
}


def convert_indices(
    indices: ArrayLike,
    input_shape: Ints,
    *,
    source: str = "plane",
    target: str = "plane",
    axis: Ints | None = None,
    dtype: Any = None,
) -> jax.Array:
    r"""Flat indices of elements, counted as another framework counts them.

    .. math:: i = \sum_k c_k \prod_{l > k} n_l

    for an element at coordinates :math:`c` along the axes of sizes :math:`n` that a
    convention counts, slowest first:

    =====================  ============================  ==========================
    convention             axes                          whose
    =====================  ============================  ==========================
    "plane"                pooled                        jaxpool, PyTorch
    "tf"                   pooled, channels              TensorFlow
    "tf_batch"             batch, pooled, channels       TensorFlow,
                                                         `include_batch_in_index`
    "onnx"                 batch, channels, pooled       ONNX `storage_order=0`
    "onnx_column_major"    batch, channels, and pooled   ONNX `storage_order=1`
                           from the last to the first
    =====================  ============================  ==========================

    Channels are the last axis that is not pooled, and batch those before it. Indices
    are integers: they have no gradient.

    Args:
      indices: integers `[B..., O..., C]`, as :func:`max_pool_with_argmax` returns them;
        what names no element (-1, or too large) becomes -1.
      input_shape: sizes of the pooled axes of the array that they point into, without
        padding; an int only with `axis=`.
      source, target: the convention of the argument, and of the result.
      axis: the pooled axes, by default those before a trailing channel axis.
      dtype: of the result, int32 by default; int64 needs `jax_enable_x64`. Unsigned
        types have their largest number in place of -1.

    Returns:
      Integers of the shape of `indices`. Those of "plane" are what
      :func:`max_unpool` takes.

    Raises:
      ValueError, TypeError: for unknown conventions, for arguments that do not fit
        together, and where a result would not fit into `dtype`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> indices = jnp.array([[3, 0], [2, 1]])[:, :, None]  # [2, 2, 1]
      >>> jp.convert_indices(indices, (4, 4), target="onnx_column_major")[..., 0]
      Array([[12,  0],
             [ 8,  4]], dtype=int32)
    """
    caller = "convert_indices"
    indices = as_integers(caller, indices, "indices")
    for name, convention in (("source", source), ("target", target)):
        if not is_name(convention, CONVENTIONS):
            rule = f"must be one of {', '.join(CONVENTIONS)}"
            raise fail(caller, name, rule, convention)
    axes, sizes = output_axes(
        caller,
        input_shape,
        axis,
        indices.ndim,
        argument="input_shape",
        most=2**63 - 1,
    )
    try:
        wanted = jnp.dtype(jnp.int32 if dtype is None else dtype)
    except Exception:  # NumPy's own, of several kinds
        rule = "must be an integer type"
        raise fail(caller, "dtype", rule, dtype, TypeError) from None
    if not jnp.issubdtype(wanted, jnp.integer):
        raise fail(caller, "dtype", "must be an integer type", dtype, TypeError)
    if dtypes.canonicalize_dtype(wanted) != wanted:
        raise fail(caller, "dtype", "needs `jax_enable_x64`", dtype)
    shape = [*indices.shape]
    for a, size in zip(axes, sizes, strict=True):
        shape[a] = size
    counted = _counted(target, axes, indices.ndim)
    known = (shape[a] for a in counted if isinstance(shape[a], int))
    largest = math.prod(known) - 1
    none = np.array(-1).astype(wanted)
    if largest > jnp.iinfo(wanted).max or largest == int(none):
        rule = f"must hold indices up to {largest}, and another for no element"
        raise fail(caller, "dtype", rule, wanted)
    # The widest there is: every index of whatever dtype fits.
    wide = dtypes.canonicalize_dtype(np.uint64)
    named, coordinates = indices >= 0, {}
    rest = jnp.where(named, indices, 0).astype(wide)
    for a in _counted(source, axes, indices.ndim):
        rest, coordinates[a] = jnp.divmod(rest, jnp.asarray(shape[a], wide))
    named &= rest == 0
    result, place = jnp.zeros_like(rest), 1
    for a in counted:
        here = lax.broadcasted_iota(wide, rest.shape, rest.ndim + a)
        result += jnp.asarray(place, wide) * coordinates.get(a, here)
        place *= shape[a]
    return jnp.where(named, result.astype(wanted), none)


def _counted(convention: str, pooled: Sequence[int], ndim: int) -> list[int]:
    """The (negative) axes that an index of this convention counts, fastest first."""
    others = [a for a in range(-ndim, 0) if a not in pooled]
    parts = {
        "pooled": list(pooled),
        "reversed": list(pooled)[::-1],
        "batch": others[:-1],
        "channels": others[-1:],
    }
    return [a for part in CONVENTIONS[convention] for a in parts[part]][::-1]
