"""Which form a window is computed in: one rule, and a way to overrule it."""

import contextlib
import contextvars
from collections.abc import Iterator

from jaxpool._core.geometry import Geometry
from jaxpool._core.window import fail

__all__ = ["chosen_form", "lowering"]

FORMS = ("auto", "stages", "reduce_window")

_asked = contextvars.ContextVar("jaxpool_lowering", default="auto")


@contextlib.contextmanager
def lowering(form: str) -> Iterator[None]:
    """Within this context, windows are computed in the form asked for.

    For experiments, and to compare with XLA's own code. The form is chosen when a
    function is traced: a function that `jax.jit` has already compiled keeps its own.

    Args:
      form: "auto", as everywhere else; "stages", slices of whole arrays; or
        "reduce_window", XLA's operation, with derivatives by gather and scatter.

    Raises:
      ValueError: for anything else.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool
      >>> with jaxpool.lowering("reduce_window"):
      ...     y = jaxpool.max_pool(jnp.ones((4, 4, 1)), (2, 2))
    """
    if form not in FORMS:
        raise fail("lowering", "form", f"must be one of {', '.join(FORMS)}", form)
    token = _asked.set(form)
    try:
        yield
    finally:
        _asked.reset(token)


def chosen_form(geometry: Geometry) -> str:
    """The form in which to compute this window, "stages" or "reduce_window"."""
    asked = _asked.get()
    if geometry.symbolic:
        return "stages" if geometry.whole else "reduce_window"
    return "stages" if asked == "auto" else asked
