"""Structuring elements that are not flat: their places, and what learns them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_grads

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool._core.geometry import Geometry
from jaxpool._core.window import Window

pytestmark = pytest.mark.usefixtures("quick_compilation")

POOLS = {"dilate": (jaxpool.dilate_pool, 1), "erode": (jaxpool.erode_pool, -1)}
both = pytest.mark.parametrize(("pool", "sign"), POOLS.values(), ids=POOLS)
WINDOWS = [
    ((9,), ((4,), (3,), ((2, 1),), 1, True)),
    ((6, 7), ((3, 2), (2, 1), "SAME")),
    ((7, 7), ((3, 2), None, 1, (2, 3))),
    ((6, 7), ((4, 3), (3, 2), "SAME_LOWER")),
    ((4, 3, 5), ((2, 3, 2), (2, 1, 1), ((1, 0), 1, (0, 1)))),
    ((6, 7), ((6, 7),)),
]
NAMES = ("window_shape", "strides", "padding", "window_dilation", "ceil_mode")


def slowly(x, e, sign, where, spec):
    """Value and winner, as (place in x, place in e), of every window."""
    window = Window.of("slowly", *spec)
    axes = Geometry.of(window, x.shape).axes
    n = len(axes)
    y = np.full((*x.shape[: -1 - n], *(a.out for a in axes), x.shape[-1]), -np.inf)
    winners = {}
    for at in np.ndindex(y.shape):
        batch, outs, c = at[: -1 - n], at[-1 - n : -1], at[-1]
        for k in itertools.product(*(range(a.window) for a in axes)):
            place = tuple(
                o * a.stride - a.low + i * a.dilation
                for o, i, a in zip(outs, k, axes, strict=True)
            )
            if any(not 0 <= p < a.size for p, a in zip(place, axes, strict=True)):
                continue
            place = (*batch, *place, c)
            if where is not None and not where[place]:
                continue
            value = sign * x[place] + e[(*k, c)]
            first = at not in winners or (value != value and y[at] == y[at])
            if first or value > y[at]:
                y[at], winners[at] = value, (place, (*k, c))
    return sign * y, winners


def value_and_derivatives(f, *args):
    """The result, and the products of small integers with its derivatives."""

    @jax.jit
    def both_of(*args):
        y, vjp = jax.vjp(f, *args)
        return y, vjp(integers(y.shape))

    return both_of(*args)


def integers(shape):
    """Sums of these are exact in any order."""
    return jnp.asarray(np.arange(np.prod(shape)) % 7 - 3.0, np.float32).reshape(shape)


@both
@pytest.mark.parametrize(("sizes", "spec"), WINDOWS, ids=str)
def test_value_and_gradient(pool, sign, sizes, spec):
    rng = np.random.default_rng(0)
    # Few different values: ties in every window, which the first wins.
    x = rng.integers(-2, 3, (2, *sizes, 2)).astype(np.float32)
    e = rng.integers(-2, 3, (*spec[0], 2)).astype(np.float32)
    x.flat[::7], x.flat[::23] = -np.inf, np.nan
    window = dict(zip(NAMES, spec, strict=False))
    for where in (None, rng.random(x.shape) > 0.5):
        expected, winners = slowly(x, e, sign, where, spec)
        f = functools.partial(pool, **window, where=where)
        y, gradients = value_and_derivatives(lambda x, e, f=f: f(x, element=e), x, e)
        np.testing.assert_array_equal(y, expected)
        g = np.asarray(integers(y.shape))
        gx, ge = np.zeros_like(x), np.zeros_like(e)
        for at, (place, entry) in winners.items():
            gx[place] += g[at]
            ge[entry] += sign * g[at]
        for actual, wanted in zip(gradients, (gx, ge), strict=True):
            np.testing.assert_array_equal(actual, wanted)


@both
@pytest.mark.parametrize(("sizes", "spec"), WINDOWS[1::2], ids=str)
def test_a_flat_element_of_zeros_changes_nothing(pool, sign, sizes, spec):
    plain = jaxpool.max_pool if sign > 0 else jaxpool.min_pool
    window = dict(zip(NAMES, spec, strict=False))
    x = np.random.default_rng(0).integers(-3, 3, (2, *sizes, 3)).astype(np.float32)
    x.flat[::5], x.flat[::11] = np.inf, np.nan
    expected = value_and_derivatives(functools.partial(plain, **window), x)
    for channels in ((), (3,)):
        e = np.zeros((*spec[0], *channels), np.float32)
        f = functools.partial(pool, **window, element=e)
        actual = value_and_derivatives(f, x)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@both
def test_second_derivatives(pool, sign, x64):
    rng = np.random.default_rng(0)
    x, e = rng.normal(size=(7, 1)), rng.normal(size=(3,))

    def f(x, e):
        return pool(x**2, (3,), (2,), "SAME", element=e**3)

    check_grads(jax.jit(f), (x, e), order=2, eps=1e-4, rtol=1e-3, atol=1e-3)


@both
def test_shapes_of_elements(pool, sign):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    e = rng.normal(size=(2, 3, 1)).astype(np.float32)
    expected = pool(x, (2, 3), element=e)
    for same in (e[..., 0], np.repeat(e, 3, -1), e[..., 0].tolist()):
        np.testing.assert_array_equal(pool(x, (2, 3), element=same), expected)
    # One value a channel moves the result of each.
    shift = np.array([1.0, -2.0, 4.0], np.float32)
    plain = jaxpool.max_pool if sign > 0 else jaxpool.min_pool
    np.testing.assert_array_equal(
        pool(x, (2, 3), element=np.broadcast_to(shift, (2, 3, 3))),
        np.add(plain(x, (2, 3)), sign * shift),
    )
    # Axes in any order, without batch and channels, and channels first.
    swapped = pool(x, (3, 2), axis=(2, 1), element=e[..., 0].T)
    np.testing.assert_array_equal(swapped, expected)
    plane = pool(x[0, ..., 0], (2, 3), axis=(0, 1), element=e[..., 0])
    np.testing.assert_array_equal(plane, expected[0, ..., 0])
    per_channel = rng.normal(size=(2, 3, 3)).astype(np.float32)
    first = pool(x.transpose(0, 3, 1, 2), (2, 3), axis=(-2, -1), element=per_channel)
    last = pool(x, (2, 3), element=per_channel)
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)


def test_left_out_places_and_many_of_them():
    x = np.random.default_rng(0).normal(size=(1, 20, 20, 2)).astype(np.float32)
    cross = np.where(np.eye(3)[::-1] + np.eye(3), 0, -np.inf)
    shifted = [x[:, i : i + 18, j : j + 18] for i in range(3) for j in range(3)]
    expected = np.max([s for s, k in zip(shifted, cross.flat, strict=True) if not k], 0)
    np.testing.assert_array_equal(
        jaxpool.dilate_pool(x, (3, 3), element=cross), expected
    )
    large = jaxpool.dilate_pool(x, (15, 15), element=np.zeros((15, 15)))
    np.testing.assert_array_equal(large, jaxpool.max_pool(x, (15, 15)))
    with pytest.raises(ValueError, match="must have at most 254 elements, or be the"):
        jaxpool.dilate_pool(x, (16, 16), element=np.zeros((16, 16)))


def test_adjunction():
    """Erosion is the largest image whose dilation by the reflected element fits."""
    rng = np.random.default_rng(0)
    x, e = rng.integers(-9, 9, (1, 8, 8, 1)) * 1.0, rng.integers(-3, 3, (3, 3)) * 1.0
    same = {"window_shape": (3, 3), "padding": "SAME"}
    eroded = jaxpool.erode_pool(x, **same, element=e)
    opened = jaxpool.dilate_pool(eroded, **same, element=e[::-1, ::-1])
    assert np.all(opened <= x)
    again = jaxpool.erode_pool(opened, **same, element=e)
    np.testing.assert_array_equal(again, eroded)


def test_equals_kornia():
    torch = pytest.importorskip("torch")
    morphology = pytest.importorskip("kornia.morphology")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 8, 9)).astype(np.float32)
    for shape in ((3, 3), (2, 4), (5, 2)):
        e = rng.normal(size=shape).astype(np.float32)
        given = torch.tensor(x), torch.ones(shape)
        same = {"window_shape": shape, "axis": (-2, -1)}
        for pool, theirs, ours, padding in (
            (jaxpool.dilate_pool, morphology.dilation, e[::-1, ::-1], "SAME"),
            (jaxpool.erode_pool, morphology.erosion, e, "SAME_LOWER"),
        ):
            expected = theirs(*given, structuring_element=torch.tensor(e))
            actual = pool(x, **same, padding=padding, element=ours)
            np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["DilatePool", "ErodePool"])
def test_modules_learn_a_shape(name):
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    x = np.random.default_rng(0).normal(size=(4, 9, 9, 2)).astype(np.float32)
    given = {"window_shape": (3, 3), "strides": (2, 2), "padding": "SAME"}
    truth = np.random.default_rng(1).normal(size=(3, 3, 2)).astype(np.float32)
    module = getattr(jaxpool.nnx, name)(**given, features=2, rngs=nnx.Rngs(0))
    wanted = module._op.fn(x, **given, element=truth)

    def loss(module):
        return jnp.mean((module(x) - wanted) ** 2)

    optimizer = nnx.Optimizer(module, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        value, gradient = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradient)
        return value, gradient

    first, gradient = step(module, optimizer)
    last = first
    assert np.all(np.asarray(jax.tree.leaves(gradient)[0]) != 0)
    for _ in range(150):
        last, _ = step(module, optimizer)
    assert last < 0.02 * first
    in_linen = getattr(jaxpool.linen, name)(**given)
    variables = in_linen.init(jax.random.key(0), x)
    assert variables["params"]["element"].shape == (3, 3)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
