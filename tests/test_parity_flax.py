"""The pooling functions of Flax, and those of jaxpool in their place."""

import functools
import inspect
import itertools
import math
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import pooling
from jax import lax

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Sums in another order, of numbers around 1: a few float32 roundings of the largest.
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
equal = np.testing.assert_array_equal


@pytest.fixture(autouse=True)
def usual_promotion():
    """Flax divides by a NumPy integer, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole_numbers(shape, seed=0):
    """Few different numbers: many ties, and sums that are exact in any order."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def value_and_pullback(fn, x, cotangent):
    @jax.jit
    def run(x, cotangent):
        y, pullback = jax.vjp(fn, x)
        return y, pullback(cotangent)[0]

    return run(x, cotangent(jax.eval_shape(fn, x).shape))


# The same call, the same numbers.


@pytest.mark.parametrize("name", ["max_pool", "min_pool", "avg_pool", "pool"])
def test_positional_arguments_are_those_of_flax(name):
    theirs = list(inspect.signature(getattr(pooling, name)).parameters.values())
    parameters = inspect.signature(getattr(jaxpool, name)).parameters.values()
    ours = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in ours[1:]] == [p.name for p in theirs[1:]]
    for mine, other in zip(ours, theirs, strict=True):
        if other.default is not other.empty:
            assert mine.default == other.default, mine
    others = [p for p in parameters if p not in ours]
    assert all(p.kind is p.KEYWORD_ONLY for p in others)


CALLS = [
    # leading axes, size, then window, strides and padding as positional arguments
    ((2,), (9,), ((3,),)),
    ((2,), (9,), ((3,), (2,), "SAME")),
    ((2,), (6, 6), ((2, 2), (2, 2))),
    ((2,), (7, 8), ((3, 3), (2, 2), "SAME")),
    ((2,), (7, 8), ((3, 2), None, "SAME")),
    ((2,), (7, 8), ((3, 3), (2, 1), ((1, 1), (0, 2)))),
    ((2,), (7, 8), ((2, 3), (3, 3), [(0, 1), (2, 0)])),
    ((2,), (5, 4), ((5, 4), (1, 1), "VALID")),
    ((2,), (4, 5, 6), ((2, 2, 3), (2, 1, 2), "SAME")),
    ((), (7, 8), ((3, 3), (2, 2), "SAME")),
    ((), (7, 8), ((3, 3), (2, 2), ((1, 0), (1, 1)))),
    ((2, 3), (7, 8), ((3, 3), (2, 2), "SAME")),
    ((2, 1, 3), (7, 8), ((3, 2), (2, 1), "VALID")),
]


# Windows of nothing but padding: the identity of a maximum, 0 for a sum.
PADDED = [
    ((2,), (5,), ((2,), (1,), ((3, 4),))),
    ((2,), (5, 6), ((3, 3), (1, 1), ((4, 7), (1, 1)))),
    ((2,), (4, 6), ((2, 1), (2, 1), ((0, 3), (1, 2)))),
    ((), (3, 4), ((2, 2), (3, 2), ((2, 2), (5, 5)))),
]


@pytest.mark.parametrize("name", ["max_pool", "min_pool"])
@pytest.mark.parametrize("call", CALLS + PADDED, ids=str)
def test_extrema(name, call):
    """Ties too: the gradient of both goes to the first of equals."""
    leading, size, arguments = call
    x = whole_numbers((*leading, *size, 3))
    (y, gradient), (expected, their_gradient) = (
        value_and_pullback(lambda x, fn=fn: fn(x, *arguments), x, whole_numbers)
        for fn in (getattr(jaxpool, name), getattr(pooling, name))
    )
    equal(y, expected)
    equal(gradient, their_gradient)


@pytest.mark.parametrize(
    ("call", "count_include_pad"),
    [(call, counts) for call in CALLS for counts in (True, False)]
    + [(call, True) for call in PADDED],
    ids=str,
)
def test_means(call, count_include_pad):
    leading, size, arguments = call
    keywords = {"count_include_pad": count_include_pad}
    if len(arguments) == 3:  # it is the next positional argument
        arguments, keywords = (*arguments, count_include_pad), {}
    x = draw((*leading, *size, 3))
    (y, gradient), (expected, their_gradient) = (
        value_and_pullback(lambda x, fn=fn: fn(x, *arguments, **keywords), x, draw)
        for fn in (jaxpool.avg_pool, pooling.avg_pool)
    )
    close(y, expected)
    close(gradient, their_gradient)


@pytest.mark.parametrize(
    ("init", "reduce_fn", "has_gradient"),
    [
        (0.0, lax.add, True),
        (-jnp.inf, lax.max, True),
        (jnp.inf, lax.min, True),
        (1.0, lax.mul, False),  # Flax has none of these
        (0.0, jnp.logaddexp, False),  # not an identity: it counts, once a window
        (0.5, lax.max, False),
    ],
)
@pytest.mark.parametrize("call", [CALLS[5], CALLS[11], PADDED[1]], ids=str)
def test_any_monoid(init, reduce_fn, has_gradient, call):
    leading, size, arguments = call
    if reduce_fn is jnp.logaddexp:  # what enters once for each element of padding too
        arguments = (*arguments[:2], "VALID")
    x = draw((*leading, *size, 2))

    def run(fn):
        return jax.jit(lambda x: fn(x, init, reduce_fn, *arguments))(x)

    close(run(jaxpool.pool), run(pooling.pool), rtol=2e-6)
    if has_gradient:
        (_, gradient), (_, expected) = (
            value_and_pullback(
                lambda x, fn=fn: fn(x, init, reduce_fn, *arguments), x, draw
            )
            for fn in (jaxpool.pool, pooling.pool)
        )
        close(gradient, expected)


def reduce_window_calls():
    """The calls with which JAX tests the gradient of its `reduce_window`."""
    planes = itertools.product(
        [(4, 6)],
        [(2, 1), (1, 2)],
        [(1, 1), (2, 1), (1, 2)],
        ["VALID", "SAME", ((0, 3), (1, 2))],
        [(1, 1), (2, 3)],
        [(1, 1), (1, 2)],
    )
    batches = itertools.product(
        [(3, 2, 4, 6)],
        [(1, 1, 2, 1), (2, 1, 2, 1)],
        [(1, 2, 2, 1), (1, 1, 1, 1)],
        ["VALID", "SAME", ((0, 1), (1, 0), (2, 3), (0, 2))],
        [(1, 1, 1, 1), (2, 1, 3, 2)],
        [(1, 1, 1, 1), (1, 2, 2, 1)],
    )
    return [*planes, *batches]


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("init", "op"),
    [(0, lax.add), (-np.inf, lax.max), (np.inf, lax.min)],
    ids=["add", "max", "min"],
)
def test_what_jax_asks_of_reduce_window(init, op, every):
    """`pool` over all axes; what dilates the input is padding within."""
    for call in reduce_window_calls()[::every]:
        shape, window, strides, padding, within, dilation = call
        x = jnp.asarray(np.random.default_rng(0).permutation(math.prod(shape)))
        x = x.reshape(shape).astype(jnp.float32)

        if isinstance(padding, str):  # of the array before it is dilated
            extent = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
            padding = tuple(lax.padtype_to_pads(shape, extent, strides, padding))

        def ours(x, call=(window, strides, padding), dilation=dilation):
            rest = {"window_dilation": dilation, "axis": range(x.ndim)}
            return jaxpool.pool(x, init, op, *call, **rest)

        def dilated(x, within=within):
            return lax.pad(x, np.float32(init), [(0, 0, d - 1) for d in within])

        given = np.float32(init), op, window, strides, padding
        expected = lax.reduce_window(x, *given, within, dilation)
        y, pullback = jax.vjp(lambda x: ours(dilated(x)), x)
        equal(y, expected)
        if set(dilation) == {1} and set(within) == {1}:  # else JAX has no gradient
            theirs = jax.vjp(lambda x: lax.reduce_window(x, *given), x)[1]  # noqa: B023
            cotangent = whole_numbers(y.shape)
            equal(*(f(cotangent)[0] for f in (pullback, theirs)))


SYMBOLIC = {
    # of an input [b, h, w, 3]: window, strides and padding
    "whole": lambda h, w: ((h, w), (1, 1), "VALID"),
    "whole, strides alike": lambda h, w: ((h, w), (h, w), "VALID"),
    "whole, SAME": lambda h, w: ((h, w), (1, 1), "SAME"),
    "whole, padded": lambda h, w: ((h, w), (1, 1), ((1, 1), (0, 2))),
    "one axis": lambda h, w: ((h, 2), (1, 2), "VALID"),
    "one axis, padded": lambda h, w: ((h, 2), (1, 2), ((0, 0), (1, 1))),
    "strides": lambda h, w: ((2, 2), (h, w), "VALID"),
    "padding": lambda h, w: ((2, 2), (1, 1), ((h, 0), (0, 0))),
}


@pytest.mark.parametrize("window", SYMBOLIC)
def test_windows_of_symbolic_size(window):
    """Exported once, they give the same for inputs of any size."""
    b, h, w = jax.export.symbolic_shape("b, h, w")
    arguments, x = SYMBOLIC[window](h, w), whole_numbers((2, 6, 5, 3))

    def exported(pools):
        def results(x):
            y = [
                pools.max_pool(x, *arguments),
                pools.pool(x, np.inf, lax.min, *arguments),
                pools.pool(x, 1.0, lax.mul, *arguments),
                pools.avg_pool(x, *arguments),
            ]
            if "padded" not in window and window != "padding":
                y.append(pools.avg_pool(x, *arguments, count_include_pad=False))
            return y

        shape = jax.ShapeDtypeStruct((b, h, w, 3), jnp.float32)
        return jax.export.export(jax.jit(results))(shape)

    ours, theirs = exported(jaxpool), exported(pooling)
    assert str(ours.out_avals) == str(theirs.out_avals)
    for y, expected in zip(ours.call(x), theirs.call(x), strict=True):
        close(y, expected)


class SmallNet(nn.Module):
    """A model as users write it, with the namespace that its pools come from."""

    pooling: Any

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = self.pooling.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = self.pooling.avg_pool(x, (3, 3), (2, 2), "SAME", False)
        x = self.pooling.avg_pool(x, window_shape=x.shape[1:3], padding="VALID")
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_a_linen_model_on_jaxpool():
    x, target = draw((2, 10, 10, 2)), draw((2, 3), 1)
    parameters = jax.jit(SmallNet(pooling).init)(jax.random.key(0), x)

    def run(namespace):
        model = SmallNet(namespace)

        @jax.jit
        def loss_and_gradient(parameters, x):
            def loss(parameters, x):
                y = model.apply(parameters, x)
                return jnp.sum((y - target) ** 2), y

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(parameters, x)

        return loss_and_gradient(parameters, x)

    fields = ("max_pool", "avg_pool")
    ours = run(SimpleNamespace(**{f: getattr(jaxpool, f) for f in fields}))
    theirs = run(SimpleNamespace(**{f: getattr(pooling, f) for f in fields}))
    jax.tree.map(functools.partial(close, rtol=1e-5, atol=1e-5), ours, theirs)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(ours[1])) > 0.1


# What differs on purpose: means in half precision are those of float32, rounded once.


def ulps(y, exact):
    """Distance from the exact value in steps of `y`'s dtype there."""
    info = jnp.finfo(y.dtype)
    exponent = np.maximum(np.frexp(exact)[1] - 1, info.minexp)
    step = np.ldexp(1.0, exponent - info.nmant)
    return np.abs(np.asarray(y, np.float64) - exact) / step


def mean_by_hand(x, k, stride):
    views = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))
    return views[:, ::stride, ::stride].mean((-2, -1))


def mean_gradient_by_hand(cotangent, shape, k, stride):
    gradient = np.zeros(shape)
    for o, p in np.ndindex(*cotangent.shape[1:3]):
        window = (slice(None), *(slice(i * stride, i * stride + k) for i in (o, p)))
        gradient[window] += cotangent[:, o : o + 1, p : p + 1] / k**2
    return gradient


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 16, 32, 64])
@pytest.mark.parametrize("overlapping", [False, True])
def test_means_in_half_precision_are_rounded_once(k, dtype, overlapping):
    stride = max(k // 3, 1) if overlapping else k
    x = jnp.asarray(np.abs(draw((1, 64, 64, 2))) + 0.1, dtype)
    out = (64 - k) // stride + 1
    cotangent = jnp.asarray(np.abs(draw((1, out, out, 2), 1)) + 0.1, dtype)

    @jax.jit
    def run(x, cotangent):
        pool = functools.partial(
            jaxpool.avg_pool, window_shape=(k, k), strides=(stride, stride)
        )
        y, pullback = jax.vjp(pool, x)
        return y, pullback(cotangent)[0]

    y, gradient = run(x, cotangent)
    assert y.dtype == gradient.dtype == x.dtype
    wide, wide_cotangent = (np.asarray(a, np.float64) for a in (x, cotangent))
    assert ulps(y, mean_by_hand(wide, k, stride)).max() <= 1
    expected = mean_gradient_by_hand(wide_cotangent, x.shape, k, stride)
    assert ulps(gradient, expected).max() <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_mean_of_large_numbers_in_half_precision(dtype):
    """A sum of them has no place in the dtype, their mean has."""
    x = jnp.full((1, 64, 64, 1), 1000, dtype)
    assert jaxpool.avg_pool(x, (64, 64)).item() == 1000
    assert jaxpool.global_avg_pool(x).item() == 1000


# What differs on purpose: NaN is never lost, whatever XLA makes of the windows.

NAN = [
    # size, window, strides
    ((64, 64), (2, 2), (2, 2)),
    ((64, 64), (64, 64), (1, 1)),
    ((128, 128), (64, 64), (64, 64)),
    ((64, 64), (64, 64), (64, 64)),
    ((8192,), (2,), (2,)),
    ((8192,), (8192,), (1,)),
    ((8192,), (64,), (64,)),
    # Apart from each other, or apart along one axis alone.
    ((8192,), (3,), (5,)),
    ((64, 64), (2, 2), (3, 3)),
    ((64, 64), (2, 2), (2, 3)),
    ((64, 64), (2, 3), (2, 1)),
    ((64, 64), (3, 4), (1, 4)),
    ((64, 64), (64, 2), (1, 2)),
    ((64, 64), (1, 2), (1, 2)),
    ((64, 64), (1, 3), (2, 3)),
    ((64, 64), (3, 3), (2, 2)),
    ((64, 64), (3, 3), (1, 1)),
    ((16, 16, 16), (2, 2, 2), (2, 2, 2)),
]


def extrema_by_hand(x, window, strides):
    axes = tuple(range(1, x.ndim - 1))
    views = np.lib.stride_tricks.sliding_window_view(x, window, axes)
    views = views[(slice(None), *(slice(None, None, s) for s in strides))]
    taps = tuple(range(-len(window), 0))
    return views.max(taps), views.min(taps)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(c, "float32") for c in NAN] + [(c, "bfloat16") for c in NAN[:5]],
    ids=str,
)
def test_nan_is_kept_in_large_arrays(config, dtype):
    size, window, strides = config
    channels = 3
    x = jnp.asarray(draw((2, *size, channels)), dtype).astype(jnp.float32)
    x = np.array(x)
    rng = np.random.default_rng(1)
    for channel in range(channels - 1):  # the last one stays without
        for _ in range(4):
            x[(0, *(rng.integers(n) for n in size), channel)] = np.nan
    assert x.size >= 4096

    @jax.jit
    def run(x):
        largest, smallest = (
            op(x, window, strides) for op in (jaxpool.max_pool, jaxpool.min_pool)
        )
        return largest, smallest, jaxpool.global_max_pool(x), jaxpool.global_min_pool(x)

    axes = tuple(range(1, x.ndim - 1))
    expected = (*extrema_by_hand(x, window, strides), x.max(axes), x.min(axes))
    for y, by_hand in zip(run(jnp.asarray(x, dtype)), expected, strict=True):
        equal(np.asarray(y, np.float32), by_hand)
    assert np.isnan(expected[2]).sum() == channels - 1
