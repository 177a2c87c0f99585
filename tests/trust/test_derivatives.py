"""Derivatives of every op under every transform, beside those in float64.

Those are compared with central differences of the values.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms
from cells import (
    CASES,
    CELL,
    FIRST,
    INTEGERS,
    SECOND,
    SOME,
    USERS,
    Cells,
    cells,
    compiled,
    exact,
    points,
    refusal,
    rows,
    typed,
)

pytestmark = pytest.mark.usefixtures("width")

BOUNDS = {"hessian": SECOND, "hvp": SECOND, "third order": SECOND}
ONE = {"batch": (1,), "channels": 1}

every_op = pytest.mark.parametrize(
    CELL, rows(lambda op, *_: op in SOME, dtypes=["float64"])
)


@functools.lru_cache(maxsize=4)
def reference(name, narrow):
    """Derivatives at a point that bfloat16 or a float8 holds, for all wider types."""
    case = CASES[name]
    return transforms.Reference(case.differentiable, *points(case, narrow, **ONE))


@cells
def test_derivatives(name, dtype, wide, record):
    case, found = CASES[name], Cells(record, name, dtype, wide)
    table = dict(transforms.DERIVATIVES)
    if case.op.family in ("extremum", "average"):
        table |= transforms.THIRD
    f = case.differentiable
    if dtype in INTEGERS:
        x = jnp.asarray(exact(case, dtype)).astype(dtype)
        with pytest.raises(TypeError, match="requires real- or complex-valued inputs"):
            jax.grad(lambda x: f(x).sum())(x)
        for transform in table:
            found.cannot(transform, "integers have no derivative")
        return
    if case.op.integer:
        for transform in table:
            found.cannot(transform, refusal(case, dtype))
        return
    expected = reference(name, dtype if "float8" in dtype else "bfloat16")
    x, v = typed((expected.x, expected.z), dtype)
    results = compiled(
        lambda x, v: {n: t(f, x, v) for n, (_, t) in table.items()},
        as_users_do=(dtype, wide) in USERS,
    )(x, v)
    assert results["grad"].dtype == dtype
    for transform, (what, _) in table.items():
        bound = BOUNDS.get(transform, FIRST)
        scale = max(1.0, expected.moves.get(what, 0.0))
        largest = max(1.0, np.abs(expected[what]).max())
        if scale > 1e3 * largest:  # jumps, at a tie: to be broken as in float64
            scale = 1.0
        found.hold(transform, results[transform], expected[what], bound, scale)
    found.judge()


@every_op
def test_derivatives_are_those_of_the_values(name, dtype, wide):
    """By central differences of what is one order lower, for every element."""
    if CASES[name].op.integer:
        return
    expected = reference(name, "bfloat16")
    for what, slopes in expected.differences().items():
        scale = max(np.abs(slopes).max(), 1)
        assert np.abs(slopes - expected[what]).max() <= 1e-8 * scale, what
