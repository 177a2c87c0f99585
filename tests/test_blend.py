"""Blends: what their weights make of them at the ends of their range, and learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import jaxpool
import jaxpool.linen
import jaxpool.nnx

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = np.random.default_rng(0).normal(size=(2, 6, 7, 3)).astype(np.float32)
PADDED = dict(window_shape=(3, 2), strides=(2, 1), padding=((1, 1), (0, 1)))


def arrays(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_the_ends_of_each_blend():
    highest = jaxpool.max_pool(X, **PADDED)
    mean = jaxpool.avg_pool(X, **PADDED, count_include_pad=False)
    half = (highest + mean) / 2
    for alpha, expected in ((1.0, highest), (0.0, mean), (0.5, half)):
        close(jaxpool.mixed_pool(X, **PADDED, alpha=alpha), expected)
    for logit, expected in ((99.0, highest), (-99.0, mean), (0.0, half)):
        squashed = jaxpool.mixed_pool(X, **PADDED, alpha=logit, squash=True)
        close(squashed, expected)
    close(jaxpool.gated_pool(X, **PADDED, gate=np.zeros((3, 2))), half)
    positive = np.abs(X) + 1
    for sign, pool in ((99.0, jaxpool.max_pool), (-99.0, jaxpool.avg_pool)):
        gate = np.full((3, 2), sign)
        more = {} if sign > 0 else {"count_include_pad": False}
        close(
            jaxpool.gated_pool(positive, **PADDED, gate=gate),
            pool(positive, **PADDED, **more),
        )
    # A tree whose leaves are all the mean is the mean, whatever its gates.
    leaves, gates = np.full((4, 3, 2), 1 / 6), arrays(0, 3, 3, 2)
    tree = jaxpool.tree_pool(X, **PADDED, leaves=leaves, gates=gates)
    close(tree, jaxpool.avg_pool(X, **PADDED))


def test_alpha_of_each_region():
    highest = jaxpool.max_pool(X, **PADDED)
    mean = jaxpool.avg_pool(X, **PADDED, count_include_pad=False)
    alpha = arrays(0, *highest.shape[1:3], 1)
    y = jaxpool.mixed_pool(X, **PADDED, alpha=alpha)
    close(y, alpha[None] * highest + (1 - alpha[None]) * mean)
    with pytest.raises(ValueError, match="`alpha` must broadcast to"):
        jaxpool.mixed_pool(X, **PADDED, alpha=alpha[1:])
    with pytest.raises(TypeError, match="`squash` must be True or False; got 1"):
        jaxpool.mixed_pool(X, **PADDED, squash=1)
    module = jaxpool.nnx.MixedPool(**PADDED, alpha=np.asarray(alpha))
    linen = jaxpool.linen.MixedPool(**PADDED, alpha=np.asarray(alpha))
    np.testing.assert_array_equal(module(X), y)
    variables = linen.init(jax.random.key(0), X)
    np.testing.assert_array_equal(linen.apply(variables, X), y)
    gradient = nnx.grad(lambda m: m(X).sum())(module)
    close(gradient["alpha"][...], (highest - mean).sum((0, 3))[..., None])
    each = jaxpool.nnx.MixedPool(**PADDED, alpha=np.asarray(alpha), features=3)
    assert each.alpha.shape == highest.shape[1:]
    np.testing.assert_array_equal(each(X), y)


@pytest.mark.parametrize("op", ["gated_pool", "tree_pool"])
def test_a_kernel_follows_its_axes(op):
    """Weights of each channel, with the axes in any place and order."""

    def pool(x, window, *order, **more):
        names = {"gated_pool": [()], "tree_pool": [(2,), (1,)]}[op]
        kernels = [arrays(len(lead), *lead, 3, 2, 3) for lead in names]
        given = [jnp.moveaxis(k, (-3, -2), order) if order else k for k in kernels]
        keys = ["gate"] if op == "gated_pool" else ["leaves", "gates"]
        kwargs = dict(zip(keys, given, strict=True))
        return getattr(jaxpool, op)(x, window, **kwargs, **more)

    expected = pool(X, (3, 2))
    first = pool(np.moveaxis(X, -1, 1), (3, 2), axis=(-2, -1))
    close(jnp.moveaxis(first, 1, -1), expected)
    close(pool(X, (2, 3), -2, -3, axis=(2, 1)), expected)
    one = pool(X[:, :3, :2], (3, 2))
    whole = pool(X[:, :3, :2], None, axis=(1, 2))
    close(whole, one)


@pytest.mark.parametrize("window", [(2, 1), (3, 3)])  # a window, and all there is
def test_gradients_of_learned_arrays(window, x64):
    x = X[:1, :3, :3, :2].astype(np.float64)
    shape = (*window, 2)
    gate, leaves, gates = (
        arrays(i, *lead, *shape) / 4 for i, lead in enumerate(((), (2,), (1,)))
    )

    def gated(x, gate):
        return jaxpool.gated_pool(x, window, gate=gate)

    def tree(x, leaves, gates):
        return jaxpool.tree_pool(x, window, leaves=leaves, gates=gates)

    tolerance = {"eps": 1e-5, "rtol": 1e-5, "atol": 1e-5}
    doubles = [a.astype(jnp.float64) for a in (gate, leaves, gates)]
    check_grads(jax.jit(gated), (x, doubles[0]), 1, ("rev",), **tolerance)
    check_grads(jax.jit(tree), (x, *doubles[1:]), 1, ("rev",), **tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_large_values_in_half_precision(dtype):
    x = jnp.asarray(np.where(X > 0, 1e4, -1e4)).astype(dtype)
    gate, leaves = arrays(0, 2, 2), arrays(1, 2, 2, 2) / 16
    for f in (
        lambda x, w: jaxpool.gated_pool(x, (2, 2), gate=w),
        lambda x, w: jaxpool.tree_pool(x, (2, 2), leaves=leaves, gates=w[None]),
    ):
        y, pull = jax.vjp(f, x, gate)
        assert y.dtype == dtype
        for result in (y, *pull(jnp.ones_like(y))):
            assert np.isfinite(np.float32(result)).all()


def test_learned_blends_train_in_a_network():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), rngs=rngs),
        jaxpool.nnx.GatedPool((2, 2), features=4, rngs=rngs),
        jaxpool.nnx.TreePool((2, 2), depth=2, rngs=rngs),
        jaxpool.nnx.MixedPool((2, 2), alpha=0.0, squash=True),
        jaxpool.nnx.GlobalAvgPool(),
    )
    before = jax.tree.leaves(nnx.state(model, nnx.Param))
    target = jnp.asarray([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])

    @nnx.jit
    def step(model):
        loss, gradient = nnx.value_and_grad(
            lambda m: ((m(jnp.asarray(X)) - target) ** 2).mean()
        )(model)
        state = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda w, g: w - g * 0.1, state, gradient))
        return loss, gradient

    loss, gradient = step(model)
    assert all(np.any(g) for g in jax.tree.leaves(gradient))
    for _ in range(20):
        last, _ = step(model)
    assert last < 0.8 * loss
    shapes = [leaf.shape for leaf in before]
    assert {(2, 2, 4), (4, 2, 2), (3, 2, 2), ()} <= set(shapes)


def test_whole_windows_have_no_shape_to_learn():
    message = "`GatedPool`: `window_shape` must be given"
    with pytest.raises(ValueError, match=message):
        jaxpool.nnx.GatedPool(None, axis=(1, 2), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`TreePool`: `depth` must be at least 0"):
        jaxpool.linen.TreePool((2, 2), depth=-1)
