"""Weighted windows and their hand-written derivatives, against the plain formulas.

In float64, over geometries that take each of the ways windows are read: overlapping,
with gaps, padded, along one axis after the other, and whole.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool._core.arguments import laid
from jaxpool._core.engine import window_pad, window_taps
from jaxpool._core.weighted import (
    gathers,
    window_lse,
    window_power_mean,
    window_soft,
    window_softmax,
)

SIZES = 2, 7, 8, 3
GEOMETRIES = {
    "overlapping": ((3, 3), (2, 2), ((1, 1), (1, 1))),
    "uneven": ((3, 2), (2, 3), ((0, 1), (1, 0))),
    "axis by axis": ((4, 5), (2, 2), ((1, 2), (3, 0))),
    "whole": ((7, 8), (1, 1), "VALID"),
}


pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")


@pytest.fixture(params=GEOMETRIES)
def geometry(request):
    spec = (*GEOMETRIES[request.param], 1, False, None)
    return laid("test", jnp.zeros(SIZES), None, spec)[1]


def draw(seed, positive=False, shape=SIZES):
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.5, 2, shape) if positive else rng.normal(0, 2, shape)
    return jnp.asarray(values)


def elements(x, geometry, outside):
    """The elements of each window, stacked, with padding as a given value."""
    return jnp.stack(window_taps(*window_pad(x, geometry, None, outside)[:2]))


def assert_is(f, plain, *args):
    """Same values, gradients, and products with second derivatives, also batched."""
    places = tuple(range(len(args)))

    def question(f):
        gradient = jax.grad(lambda *a: jnp.sin(f(*a)).sum(), places)
        return jax.jvp(f, args, args), jax.vjp(gradient, *args)[1](args)

    for ours, expected in zip(
        jax.tree.leaves(jax.jit(question, static_argnums=0)(f)),
        jax.tree.leaves(jax.jit(question, static_argnums=0)(plain)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-11)
    batched = jax.vmap(f, (0, *[None] * (len(args) - 1)))(args[0][None], *args[1:])
    np.testing.assert_allclose(batched[0], f(*args), rtol=1e-12, atol=1e-13)


def test_softmax(geometry):
    def plain(x, logits):
        e = jnp.exp(elements(logits, geometry, -1e300))
        return (e * elements(x, geometry, 0)).sum(0) / e.sum(0)

    assert_is(lambda *a: window_softmax(*a, geometry), plain, draw(0), draw(1))


def test_soft(geometry):
    def plain(x, beta):
        e = jnp.exp(elements(beta * x, geometry, -1e300))
        return (e * elements(x, geometry, 0)).sum(0) / e.sum(0)

    beta = draw(1, True, (1, 1, 1, 3))
    assert_is(lambda *a: window_soft(*a, geometry), plain, draw(0), beta)


def test_lse(geometry):
    count = jnp.full((1, 1, 1, 1), 3.0)

    def plain(x, r):
        return jnp.log(jnp.exp(elements(r * x, geometry, -1e300)).sum(0) / 3) / r

    r = draw(1, True, (1, 1, 1, 3))
    assert_is(lambda x, r: window_lse(x, r, count, geometry), plain, draw(0), r)


@pytest.mark.parametrize("p", [1, 2, 3, None])
def test_power_mean(geometry, p):
    if not gathers(geometry):
        pytest.skip("is a sum of windows there, in `_ops/power.py`")
    count = jnp.full((1, 1, 1, 1), 3.0)

    def plain(x, p=p):
        parts = elements(x, geometry, 0)
        inside, factor = parts > 0, p if isinstance(p, int) else p[None]
        logs = jnp.log(jnp.where(inside, parts, 1))
        powers = jnp.where(inside, jnp.exp(factor * logs), 0)
        return (powers.sum(0) / 3) ** (1 / p)

    args = (draw(0, True), *([] if p else [draw(1, True, (1, 1, 1, 3))]))
    f = lambda x, p=p: window_power_mean(x, p, count, geometry)  # noqa: E731
    assert_is(f, plain, *args)
