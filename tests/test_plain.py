"""Formulas traced for runtimes that are not XLA: the same numbers, no trace left."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool
from jaxpool._core.plain import plain, plainly

FAMILIES = ("average", "extremum", "power")
WINDOWS = ["planes", "reduce_window"]
# Both as planes, and not: one axis, neighbours, apart, in front, three, four.
AXES = [
    ((-1,), (3,), (2, 7)),
    ((1, 2), (2, 3), (2, 5, 6, 3)),
    ((0, 2), (2, 3), (5, 4, 6)),
    ((0, 1, 3), (2, 2, 2), (4, 5, 3, 4)),
    ((1, 2, 3, 4), (2, 1, 2, 2), (2, 4, 3, 4, 5, 2)),
]


def check(functions, inputs, windows):
    """Compares the functions, all in one program, traced plainly and as usual."""

    def program(inputs):
        return [f(x) for f, x in zip(functions, inputs, strict=True)]

    expected = jax.tree.leaves(jax.jit(program)(inputs))
    with plainly(windows):
        actual = jax.tree.leaves(jax.jit(lambda inputs: program(inputs))(inputs))
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        scale = max(float(np.max(np.abs(e))), 1.0)
        np.testing.assert_allclose(a, e, rtol=2e-6, atol=2e-6 * scale)


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers(family, windows, request, quick_compilation):
    cases = [c for c in contract.CASES if c.op.family == family]
    if not request.config.getoption("full"):
        cases = [c for c in cases if "ceil_mode" in c.kwargs or len(c.sizes) == 2][::3]
    check([c.function() for c in cases], [c.input() for c in cases], windows)


@pytest.mark.full
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("case", contract.typical(), ids=str)
def test_same_numbers_of_each_op(case, windows):
    check([case.function()], [case.input()], windows)


def test_any_axes_as_planes(quick_compilation):
    functions, inputs = [], []
    for axis, window, shape in AXES:
        for padding in ("VALID", "SAME", "SAME_LOWER"):
            for pool in (jaxpool.max_pool, jaxpool.avg_pool, jaxpool.sum_pool):
                functions.append(
                    lambda x, given=(window, 2, padding), axis=axis, pool=pool: pool(
                        x, *given, axis=axis
                    )
                )
                inputs.append(np.random.default_rng(0).normal(size=shape).astype("f4"))
    check(functions, inputs, "planes")


@pytest.mark.parametrize("pool", [jaxpool.max_pool, jaxpool.avg_pool])
def test_planes_are_four_axes(pool):
    for axis, window, shape in AXES:
        f = lambda x: pool(x, window, 2, axis=axis)  # noqa: B023, E731
        with plainly("planes"):
            program = jax.make_jaxpr(f)(jnp.ones(shape))
        found = [v.aval.ndim for v in _operands(program.jaxpr, "reduce_window")]
        assert set(found) - {0} == {4}


def _operands(jaxpr, name):
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith(name):
            yield from equation.invars
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _operands(inner, name)


def test_leaves_no_trace():
    pool = jax.jit(lambda x: jaxpool.max_pool(x, (2, 2), (2, 2)))
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(jnp.nan)
    before = pool.lower(x).as_text()
    with plainly("planes"):
        assert plain()
        inside = pool.lower(x).as_text()
    assert not plain()
    assert pool.lower(x).as_text() == before != inside
    assert np.isnan(pool(x)[0, 0, 0, 0])


def test_guards_are_gone():
    x = jnp.ones((1, 4, 4, 2))
    guards = ("bitcast", "optimization_barrier")
    for pool in (jaxpool.lp_pool, jaxpool.avg_pool, jaxpool.gem_pool):
        f = lambda x: pool(x, (3, 3))  # noqa: B023, E731
        with plainly("reduce_window"):
            program = jax.jit(f).lower(x).as_text()
        assert not any(guard in program for guard in guards)
        program = jax.jit(f).lower(x).as_text()
        assert any(guard in program for guard in guards)
