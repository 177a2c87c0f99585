"""Whether formulas are traced for runtimes that are not XLA.

What guards a formula from XLA's rewriting, or scales by bits of exponents so that
nothing overflows, is in the way of converters: they look for a pool, a sum over its
number of elements, a root of a mean. Traced plainly, formulas are those.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

__all__ = ["plain", "plain_windows", "plainly"]

_windows = contextvars.ContextVar("jaxpool_plain", default="")


@contextlib.contextmanager
def plainly(windows: str) -> Iterator[None]:
    """Within this context, formulas are traced as textbooks have them.

    Values are the same within rounding, up to what the guards are for: NaN, sums of
    powers that overflow, and derivatives of what does. All that JAX has compiled is
    forgotten before and after, since what was traced is kept by `jax.jit`.

    Args:
      windows: the form of windows: "reduce_window", or "planes": `lax.reduce_window` of
        two adjacent axes of four, without dilation, and slices where that is no form.
    """
    jax.clear_caches()
    token = _windows.set(windows)
    try:
        yield
    finally:
        _windows.reset(token)
        jax.clear_caches()


def plain() -> bool:
    """Whether formulas are traced plainly."""
    return bool(_windows.get())


def plain_windows() -> str:
    """The form of windows that was asked for, or nothing."""
    return _windows.get()
