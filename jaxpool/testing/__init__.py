"""Tests for pooling functions that are not jaxpool's: `check_pool_op`."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from jaxpool._core.op import PoolOp
from jaxpool._core.window import fail
from jaxpool.testing import questions as ask
from jaxpool.testing.cases import Case, shared_cases

__all__ = ["check_pool_op"]

NEEDED = {
    "window": {"window_shape", "strides", "padding"},
    "global": set(),
    "adaptive": {"output_shape"},
}
"""For each kind of op, the arguments that it has besides `x`."""


def check_pool_op(
    fn: Callable[..., Any],
    oracle: Callable[..., Any],
    *,
    kind: Literal["window", "global", "adaptive"] = "window",
    arguments: Mapping[str, Any] | None = None,
    integers: Literal["keep", "sum", "mean"] | None = None,
    linear: bool = False,
    monotone: bool = False,
    skip: Iterable[str] = (),
) -> tuple[str, ...]:
    """Asks a pooling function what jaxpool's own tests ask of every op.

    Values are compared with the oracle's: 1 to 3 pooled axes, windows that overlap, are
    padded, dilated or cut off, as far as the function has arguments for them; ties, NaN
    and infinities; dtypes. The rest is compared with the function itself (`jit`,
    `vmap`, batch axes, layouts) or with finite differences (first and second
    derivatives in both modes). JAX is as strict about dtypes and ranks meanwhile as it
    can be.

    Args:
      fn: `fn(x, window_shape, strides, padding, ...)` of `x` `[B..., S..., C]`, or
        `fn(x, output_shape, ...)` (adaptive), or `fn(x, ...)` (global). Which of
        jaxpool's further arguments it has (`window_dilation`, `ceil_mode`, `axis`,
        `where`) is read off its signature.
      oracle: `oracle(elements, positions, pad)` of one window: its elements in
        row-major order as a float64 array `[n]`, without padding and without what a
        mask hides (n can be 0); their flat positions in the pooled axes; and how many
        places of the window are padding. It gives a number.
      kind: what decides the size of the output.
      arguments: more keyword arguments for `fn`, such as a fixed `key`.
      integers: whether integers keep their dtype, or promote as `jnp.sum` or `jnp.mean`
        do; None where `fn` is for floats alone.
      linear: whether y(ax + bz) = a y(x) + b y(z): asked in both directions.
      monotone: whether x <= z everywhere implies y(x) <= y(z): asked if it is said.
      skip: names of questions that make no sense for `fn`.

    Returns:
      The names of the questions that were asked, each of them answered rightly.

    Raises:
      AssertionError: names each question with a wrong answer, the arguments of the
        call, and the first lines of what was wrong.
      ValueError: for a `kind` or a question that there is not.
      TypeError: for an `fn` without the arguments of its kind.

    Example:
      >>> import jaxpool as jp
      >>> from jaxpool.testing import check_pool_op
      >>> def range_pool(x, window_shape, strides=None, padding="VALID"):
      ...     window = window_shape, strides, padding
      ...     return jp.max_pool(x, *window) - jp.min_pool(x, *window)
      >>> def spread(elements, positions, pad):
      ...     return elements.max() - elements.min()
      >>> asked = check_pool_op(range_pool, spread, skip=["nan_and_infinity"])
      >>> "gradient_of_every_case" in asked, "mask" in asked
      (True, False)
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    if kind not in NEEDED:
        raise fail("check_pool_op", "kind", f"must be one of {', '.join(NEEDED)}", kind)
    missing = NEEDED[kind] - inspect.signature(fn).parameters.keys()
    if missing:
        rule = f"must have the arguments {', '.join(sorted(missing))}"
        raise fail("check_pool_op", "fn", rule, fn, TypeError)
    op = PoolOp(name, fn, "", kind, linear=linear, monotone=monotone)
    cases = shared_cases(op, oracle, dict(arguments or {}))
    asked = _questions(cases, integers)
    for question in skip:
        rule = f"must be made of questions: {', '.join(asked)}"
        if question not in asked:
            raise fail("check_pool_op", "skip", rule, question)
    skipped, wrong = set(skip), []
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for question, calls in asked.items():
            for case, call in calls if question not in skipped else []:
                try:
                    call()
                except Exception as error:
                    text = " ".join(str(error).split())[:300]
                    wrong.append(f"{question}: {case}: {type(error).__name__}: {text}")
    if wrong:
        raise AssertionError(f"`{name}`:\n" + "\n".join(wrong))
    return tuple(question for question in asked if question not in skipped)


def _questions(cases: list[Case], integers: str | None) -> dict[str, list]:
    """What to ask: for each question, the cases with the calls that ask it."""
    # Overlapping windows of two axes, padded where the op can pad.
    planes = [case for case in cases if len(case.sizes) == 2]
    padded = [c for c in planes if c.kwargs.get("padding") == ((1, 1), (2, 0))]
    typical = (padded or planes)[0]

    def each(question, argument, values):
        return [(typical, partial(question, typical, **{argument: v})) for v in values]

    def once(question, of=(typical,)):
        return [(case, partial(question, case)) for case in of]

    wide = None if integers == "keep" else integers
    table = {
        "equals_the_oracle": once(ask.equals_the_oracle, cases),
        "is_what_its_row_says": once(ask.is_what_its_row_says),
        "any_layout": once(ask.any_layout),
        "any_number_of_batch_axes": each(
            ask.any_number_of_batch_axes, "batch", [(), (0,), (2, 1, 3)]
        ),
        "no_channels": once(ask.no_channels),
        "jit_and_vmap_change_nothing": once(ask.jit_and_vmap_change_nothing),
        "gradient_of_every_case": once(in_float64(ask.gradient_of_every_case), cases),
        "second_derivative": once(in_float64(ask.second_derivative)),
        "half_precision": each(ask.half_precision, "dtype", ["bfloat16", "float16"]),
        "integers": each(
            partial(ask.integers, wide=wide), "dtype", ["int8", "uint8", "int32"]
        ),
        "nan_and_infinity": each(
            ask.nan_and_infinity, "special", [np.nan, np.inf, -np.inf]
        ),
        "ties": once(ask.ties),
        "mask": once(ask.mask),
    }
    has = inspect.signature(typical.op.fn).parameters
    needs = {"any_layout": "axis" in has, "mask": "where" in has}
    needs["integers"] = integers is not None
    return {name: calls for name, calls in table.items() if needs.get(name, True)}


def in_float64(question: Callable[[Case], None]) -> Callable[[Case], None]:
    """The question, asked with 64-bit types."""

    def asked(case: Case) -> None:
        before = jax.config.read("jax_enable_x64")
        jax.config.update("jax_enable_x64", True)
        try:
            question(case)
        finally:
            jax.config.update("jax_enable_x64", before)

    return asked
