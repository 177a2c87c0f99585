"""One case with its numbers: what every contestant is given and must return."""

import math
import os
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxpool.bench.shapes import Case

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "NUMBERS",
    "Problem",
    "channels_first",
    "channels_last",
    "itemsize",
    "memory",
]

LAYOUTS = ("channels_last", "channels_first")

DTYPES = {"f32": 2e-5, "bf16": 1e-2, "f16": 2e-3}
"""How far results may lie apart, in units of the largest, by the name of the dtype.

A few roundings: sums in another order pass, sums rounded after every step do not where
windows are large.
"""

NUMBERS = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
"""JAX's dtypes by their short names."""


def itemsize(dtype: str) -> int:
    """Returns the bytes of one number of a key of `DTYPES`."""
    return jnp.dtype(NUMBERS[dtype]).itemsize


def memory() -> int:
    """Returns the bytes of memory of the device that JAX uses.

    Of a machine's main memory at most 12.5 GiB count, which holds inputs to 25 MiB:
    the C library takes buffers above 32 MiB from the system anew for every call, and
    every contestant would time page faults.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows does not tell
        installed = 8 * 2**30
    return min(installed, 25 * 2**29)


def channels_first(x):
    """Returns an array of NumPy or JAX with its last axis in second place."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def channels_last(x):
    """Returns an array of NumPy or JAX with its second axis in last place."""
    return x.transpose(0, *range(2, x.ndim), 1)


class Problem:
    """Inputs of one case, from random normals.

    Attributes:
      case: window and shape.
      dtype: a key of `DTYPES`.
      layout: where the user's channels are; a contestant without it uses its own.
      x: the input, channels last.
      g: a cotangent of the result, channels last.
    """

    def __init__(self, case: Case, dtype: str, layout: str):
        """Draws the numbers."""
        self.case, self.dtype, self.layout = case, dtype, layout
        rng = np.random.default_rng(0)

        def draw(shape):
            return rng.standard_normal(shape, np.float32).astype(NUMBERS[dtype])

        self.x, self.g = draw(case.shape), draw(case.out_shape)

    def arrays(self, layout: str) -> tuple[jax.Array, jax.Array]:
        """Returns `x` and `g` on JAX's device; contestants of a layout share them."""
        return self._last if layout == "channels_last" else self._first

    @cached_property
    def _last(self) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.x), jnp.asarray(self.g)

    @cached_property
    def _first(self) -> tuple[jax.Array, jax.Array]:
        x, g = map(channels_first, (self.x, self.g))
        return jnp.asarray(x.copy()), jnp.asarray(g.copy())

    @property
    def outputs(self) -> int:
        """Number of elements of the result."""
        return math.prod(self.case.out_shape)
