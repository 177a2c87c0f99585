"""Which form a window is computed in: one table, and a way to overrule it."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxpool._core.geometry import Geometry
from jaxpool._core.plain import plain_windows
from jaxpool._core.stages import (
    MOST_IN_A_ROW,
    MOST_TAPS,
    axis_by_axis,
    large_and_whole,
)
from jaxpool._core.window import fail, is_name

__all__ = ["RULES", "Rule", "chosen_form", "lowering"]


@dataclass(frozen=True)
class Rule:
    """The form for windows to which no earlier rule applies, and why.

    `measured` is time against that of `lax.reduce_window` with JAX's own derivative
    (Flax's pools): forward, and forward with gradient; float32, channels last, 2 CPU
    cores, jax 0.10.2. No form has been timed on a GPU or a TPU: they get the same ones,
    which hold no scatter, and `lowering` to compare with.
    """

    when: str
    applies: Callable[[Geometry], bool]
    form: str
    measured: str


RULES = (
    Rule(
        "a pooled size is symbolic: there is nothing to slice by",
        lambda g: g.symbolic and not g.whole,
        "reduce_window",
        "not timed",
    ),
    Rule(
        "bins of different sizes: a stage an axis, rows read through a table",
        lambda g: g.binned,
        "stages",
        "Flax has none; max 10x10 to 7: 0.3 and 0.04 of the time of Keras",
    ),
    Rule(
        f"one window over everything, more than {MOST_TAPS} elements: a reduction, and "
        "the position of the first that equals it",
        large_and_whole,
        "stages",
        "mean over 7x7: as fast as Flax, which is the same reduction",
    ),
    Rule(
        "moves by one along the innermost axis: a stage an axis, the last one first; a "
        "sum of few elements is one stage",
        axis_by_axis,
        "stages",
        "max 3x3 channels first: 0.3 and 0.08; mean: 0.5 and 0.4",
    ),
    Rule(
        f"at most {MOST_TAPS} elements: one stage",
        lambda g: g.taps <= MOST_TAPS,
        "stages",
        "max 2x2 stride 2: 0.7 and 0.05; 3x3: 0.1 to 0.2 and 0.03 to 0.06",
    ),
    Rule(
        f"at most {MOST_IN_A_ROW} along each axis: a stage an axis, the last one first",
        lambda g: max(a.window for a in g.axes) <= MOST_IN_A_ROW,
        "stages",
        "max 5x5: 0.05 and 0.02",
    ),
    Rule(
        "more: along each axis windows of windows, of which a maximum may overlap",
        lambda g: True,
        "stages",
        "max 13x13: 0.01 and 0.01",
    ),
)

FORMS = ("auto", "stages", "reduce_window")

_asked = contextvars.ContextVar("jaxpool_lowering", default="auto")


@contextlib.contextmanager
def lowering(form: str) -> Iterator[None]:
    """Within this context, windows are computed in the form asked for.

    For experiments, and to compare with XLA's own code. The form is chosen when a
    function is traced: a function that `jax.jit` has already compiled keeps its own.

    Args:
      form: "auto", as everywhere else; "stages", slices of whole arrays, with
        derivatives that gather; or "reduce_window", XLA's operation, with derivatives
        by gather and scatter. Symbolic pooled sizes are "reduce_window" always, and
        adaptive pools whose bins differ in size "stages".

    Raises:
      ValueError: for anything else.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool
      >>> with jaxpool.lowering("reduce_window"):
      ...     y = jaxpool.max_pool(jnp.ones((4, 4, 1)), (2, 2))
    """
    if not is_name(form, FORMS):
        raise fail("lowering", "form", f"must be one of {', '.join(FORMS)}", form)
    token = _asked.set(form)
    try:
        yield
    finally:
        _asked.reset(token)


def chosen_form(geometry: Geometry) -> str:
    """The form in which to compute this window: "stages" or "reduce_window".

    Or "planes", where formulas are traced plainly.
    """
    rule = next(rule for rule in RULES if rule.applies(geometry))
    asked = plain_windows() or _asked.get()
    only = geometry.symbolic or (geometry.binned and asked != "planes")
    return rule.form if asked == "auto" or only else asked
