"""Polyphase pools move with their input, exactly, and can be learned."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpool
import jaxpool.linen
import jaxpool.nnx

pytestmark = pytest.mark.usefixtures("quick_compilation")
STRIDES = (2, 3)
CLOSE = dict(rtol=1e-5, atol=1e-5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def arrays(channels=2, hidden=5, seed=1):
    return {
        "conv_kernel": normal(3, 3, channels, hidden, seed=seed),
        "conv_bias": normal(hidden, seed=seed + 1),
        "out_kernel": normal(hidden, seed=seed + 2),
    }


def learned(x, **kwargs):
    kwargs = {"deterministic": True, **kwargs}
    return jaxpool.learned_polyphase_pool(x, arrays(), STRIDES, **kwargs)


POOLS = {
    **{
        f"norm {norm}": lambda x, norm=norm: jaxpool.polyphase_pool(
            x, STRIDES, norm=norm
        )
        for norm in (1, 2, math.inf)
    },
    "learned": learned,
}


@pytest.mark.parametrize("name", POOLS)
def test_moves_with_every_circular_shift(name):
    x, pool = normal(4, 4, 6, 2), jax.jit(POOLS[name])
    base, index = pool(x)
    number = np.argmax(index, -1) if name == "learned" else np.asarray(index)
    assert len(set(number.tolist())) > 1
    for shift in np.ndindex(4, 6):
        y, index = pool(np.roll(x, shift, (1, 2)))
        if name == "learned":
            index = np.argmax(index, -1)
        for n in range(len(x)):
            start = np.unravel_index(number[n], STRIDES)
            moved = np.add(start, shift)
            np.testing.assert_array_equal(
                y[n], np.roll(base[n], moved // STRIDES, (0, 1))
            )
            assert index[n] == np.ravel_multi_index(moved % STRIDES, STRIDES)


@pytest.mark.parametrize("name", POOLS)
def test_gradient_goes_to_the_chosen_component(name):
    x, pool = jnp.asarray(normal(1, 4, 6, 2)), POOLS[name]
    y, index = pool(x)
    number = int(np.argmax(index)) if name == "learned" else int(index[0])
    gradient = jax.grad(lambda x: jnp.sum(pool(x)[0] ** 2))(x)
    a, b = np.unravel_index(number, STRIDES)
    expected = np.zeros(x.shape)
    expected[:, a::2, b::3] = 2 * np.asarray(y)
    np.testing.assert_allclose(gradient, expected, **CLOSE)


def test_index_is_that_of_the_other_branch():
    x, other = normal(3, 4, 6, 2), normal(3, 4, 6, 5, seed=1)
    _, index = jaxpool.polyphase_pool(x, STRIDES)
    y, same = jaxpool.polyphase_pool(other, STRIDES, index=index)
    np.testing.assert_array_equal(same, index)
    for n in range(3):
        a, b = np.unravel_index(int(index[n]), STRIDES)
        np.testing.assert_array_equal(y[n], other[n, a::2, b::3])
    one_hot = jax.nn.one_hot(index, 6)
    blend, weights = jaxpool.polyphase_pool(other, STRIDES, index=one_hot)
    np.testing.assert_array_equal(blend, y)
    np.testing.assert_array_equal(weights, one_hot)
    everywhere, _ = jaxpool.polyphase_pool(other, STRIDES, index=4)
    np.testing.assert_array_equal(everywhere, other[:, 1::2, 1::3])
    drawn = jaxpool.learned_polyphase_pool(x, arrays(), STRIDES, key=jax.random.key(0))
    again = jaxpool.polyphase_pool(x, STRIDES, index=drawn[1])
    np.testing.assert_allclose(again[0], drawn[0], **CLOSE)


def test_any_layout_with_the_index_of_each_sample():
    x = normal(3, 4, 6, 2)
    y, index = jaxpool.polyphase_pool(x, STRIDES)
    moved = jaxpool.polyphase_pool(np.moveaxis(x, -1, 1), STRIDES, axis=(-2, -1))
    np.testing.assert_array_equal(moved[0], np.moveaxis(y, -1, 1))
    np.testing.assert_array_equal(moved[1], index)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_norms_do_not_overflow(scale):
    x = normal(3, 4, 6, 2)
    index = jaxpool.polyphase_pool(x, STRIDES)[1]
    np.testing.assert_array_equal(jaxpool.polyphase_pool(x * scale, STRIDES)[1], index)


@pytest.mark.parametrize("name", [*POOLS, "training"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_halves_stay_finite(name, dtype):
    def pool(x):
        if name == "training":
            return learned(x, deterministic=False, key=jax.random.key(0))[0]
        return POOLS[name](x)[0]

    x = jnp.asarray(1e4 * np.sign(normal(2, 4, 6, 2)), dtype)
    gradient = jax.grad(lambda x: pool(x).astype(jnp.float32).sum())(x)
    assert pool(x).dtype == x.dtype
    assert np.isfinite(pool(x)).all()
    assert np.isfinite(gradient).all()


def test_training_blends_and_cools_down():
    x, key = normal(2, 4, 6, 2), jax.random.key(0)
    y, weights = learned(x, deterministic=False, key=key)
    assert np.all(weights > 0)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    parts = [x[:, a::2, b::3] for a, b in np.ndindex(*STRIDES)]
    expected = sum(
        np.asarray(weights)[:, i, None, None, None] * part
        for i, part in enumerate(parts)
    )
    np.testing.assert_allclose(y, expected, **CLOSE)
    # Cold, a component is drawn, with the probabilities of the softmax of the scores:
    # the noise is the same for all temperatures, so the ratios are known.
    tau = 1e-4
    draw = jax.jit(
        jax.vmap(
            lambda key: learned(x, deterministic=False, key=key, temperature=tau)[1]
        )
    )
    drawn = draw(jax.random.split(key, 4096))
    assert np.mean(np.max(drawn, -1)) > 0.999
    scores = jax.vmap(
        lambda key: learned(x, deterministic=False, key=key, temperature=1.0)[1]
    )(key[None])[0]
    noise = jax.random.gumbel(key, scores.shape)
    expected = jax.nn.softmax(jnp.log(scores) - noise, -1)
    error = np.sqrt(expected * (1 - expected) / 4096)
    assert np.all(np.abs(drawn.mean(0) - expected) < 4 * error + 1e-3)
    best = learned(x)[1]
    np.testing.assert_array_equal(np.argmax(best, -1), np.argmax(expected, -1))


def test_learns_in_a_residual_network():
    class CNN(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), padding="CIRCULAR", rngs=rngs)
            self.pool = jaxpool.nnx.LearnedPolyphasePool(4, (2, 2), rngs=rngs)
            self.skip = jaxpool.nnx.PolyphasePool((2, 2))
            self.head = nnx.Linear(7, 2, rngs=rngs)

        def __call__(self, x):
            y, weights = self.pool(nnx.relu(self.conv(x)))
            x, _ = self.skip(x, index=weights)
            return self.head(jnp.concatenate([x, y], -1).mean((1, 2)))

    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        x, model = normal(4, 8, 8, 3), CNN(nnx.Rngs(0))
        gradient = nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model)
        model.eval()
        y = model(x)
        moved = model(np.roll(x, (3, 1), (1, 2)))
        linen = jaxpool.linen.LearnedPolyphasePool(3, (2, 2))
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        drawn, _ = linen.init_with_output(keys, x, deterministic=False)
    finally:
        jax.config.update("jax_numpy_rank_promotion", "raise")
    for name in ("conv_kernel", "conv_bias", "out_kernel"):
        assert np.abs(getattr(gradient.pool, name)[...]).max() > 1e-6
    np.testing.assert_allclose(moved, y, **CLOSE)  # invariant as a whole
    assert drawn[0].shape == (4, 4, 4, 3)


@pytest.mark.parametrize("name", [*POOLS, "training"])
def test_temporaries(name):
    def pool(x):
        if name == "training":
            return learned(x, deterministic=False, key=jax.random.key(0))[0]
        return POOLS[name](x)[0]

    x = jax.ShapeDtypeStruct((2, 24, 24, 2), np.float32)
    compiled = jax.jit(pool).lower(x).compile()
    # A hidden channel is as large as one of the input's.
    hidden = 5 / 2 if name in ("learned", "training") else 1
    needed = compiled.memory_analysis().temp_size_in_bytes
    assert needed <= (1 + hidden) * 4 * 2 * 24 * 24 * 2
