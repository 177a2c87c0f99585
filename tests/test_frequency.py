"""Pools by frequency against Fourier transforms, and at their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import jaxpool
import jaxpool.nnx

pytestmark = pytest.mark.usefixtures("quick_compilation")
CLOSE = dict(rtol=1e-5, atol=1e-5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def middle(x, starts, sizes):
    """A crop of the sorted frequencies of `[H, W, C]`, transformed back."""
    spectrum = np.fft.fftshift(np.fft.fft2(x, axes=(0, 1), norm="forward"), (0, 1))
    rows, columns = (slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
    crop = np.fft.ifftshift(spectrum[rows, columns], (0, 1))
    return np.fft.ifft2(crop, axes=(0, 1), norm="forward")


def test_odd_sizes_are_the_complex_crop():
    x = normal(8, 9, 2)
    expected = middle(x, (2, 3), (5, 3))
    assert np.abs(expected.imag).max() < 1e-6
    y = jaxpool.spectral_pool(x, (5, 3))
    np.testing.assert_allclose(y, expected.real, **CLOSE)


def test_even_sizes_average_over_the_signs_of_the_last_frequency():
    x = normal(8, 8, 2)
    # Turned around both ways, the last frequency of a crop has each of its signs.
    flips = [(), (0,), (1,), (0, 1)]
    crops = [
        np.roll(np.flip(x, f), [1 if a in f else 0 for a in (0, 1)], (0, 1))
        for f in flips
    ]
    crops = [middle(crop, (2, 2), (4, 4)) for crop in crops]
    back = [
        np.flip(np.roll(y, [-1 if a in f else 0 for a in (0, 1)], (0, 1)), f)
        for y, f in zip(crops, flips, strict=True)
    ]
    expected = np.mean(back, 0)
    assert np.abs(expected.imag).max() < 1e-6
    np.testing.assert_allclose(jaxpool.spectral_pool(x, (4, 4)), expected.real, **CLOSE)
    assert np.abs(back[0].real - expected.real).max() > 1e-3  # at the corner alone


def test_flc_keeps_the_middle_half():
    x = normal(8, 1, 2) + normal(1, 12, 2, seed=1)  # which has nothing at the corner
    expected = middle(x, (2, 3), (4, 6)).real
    np.testing.assert_allclose(jaxpool.flc_pool(x[None])[0], expected, **CLOSE)
    for size in (1, 2, 5, 6):
        assert jaxpool.flc_pool(normal(1, size, 3)).shape == (1, -(-size // 2), 3)


@pytest.mark.parametrize("size", [1, 4, 5, 8, 11])
def test_spectral_keeps_constants_and_interpolates(size):
    constant = jaxpool.spectral_pool(np.full((8, 1), 3.0, np.float32), (size,))
    np.testing.assert_allclose(constant, np.full((size, 1), 3.0), **CLOSE)
    if size >= 8:
        x = normal(7, 2)
        again = jaxpool.spectral_pool(jaxpool.spectral_pool(x, (size,)), (7,))
        np.testing.assert_allclose(again, x, **CLOSE)


def test_diffstride_limits():
    x = normal(2, 8, 9, 3)
    np.testing.assert_allclose(jaxpool.diffstride_pool(x, (1.0, 1)), x, **CLOSE)
    pooled = jaxpool.diffstride_pool(x, (100.0, 100.0), smoothness=0.5)
    mean = np.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)
    np.testing.assert_allclose(pooled, mean, **CLOSE)
    below = jax.jit(jaxpool.diffstride_pool)(x, jnp.array([-1.0, 0.0]))
    np.testing.assert_allclose(below, x, **CLOSE)
    one = jaxpool.diffstride_pool(x, 2.5, axis=(2, 1))
    each = jaxpool.diffstride_pool(x, (2.5, 2.5))
    np.testing.assert_allclose(one, each, **CLOSE)
    other = jaxpool.diffstride_pool(x, (1.5, 3.0), axis=(2, 1))
    each = jaxpool.diffstride_pool(x, (3.0, 1.5))
    np.testing.assert_allclose(other, each, **CLOSE)


def test_diffstride_weighs_each_wave():
    i = np.arange(16)
    for k, gain in ((0, 1.0), (2, 1.0), (4, 0.6), (5, 0.2), (6, 0.0), (8, 0.0)):
        wave = np.cos(2 * np.pi * k * i / 16 + 0.3).astype(np.float32)[:, None]
        # The gain falls from 1 at 16 / (2 * 8 / 3) = 3 to 0 at 5.5.
        y = jaxpool.diffstride_pool(wave, (8 / 3,), smoothness=2.5)
        np.testing.assert_allclose(y, gain * wave, **CLOSE)
        half = jaxpool.diffstride_pool(
            wave, (8 / 3,), smoothness=2.5, output_shape=(12,)
        )
        longer = np.cos(2 * np.pi * k * np.arange(12) / 12 + 0.3)[:, None]
        np.testing.assert_allclose(half, gain * longer, **CLOSE)


def test_diffstride_has_a_gradient_in_its_strides(x64):
    x = jnp.asarray(np.float64(normal(6, 7, 2)))

    def f(x, strides):
        return jaxpool.diffstride_pool(x, strides, smoothness=2.5)

    args = (x, jnp.array([1.75, 2.3]))
    check_grads(f, args, order=2, eps=1e-4, rtol=1e-3, atol=1e-3)


def test_diffstride_learns():
    class CNN(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.pool = jaxpool.nnx.DiffStridePool((2.0, 2.0), output_shape=(4, 4))
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.pool(self.conv(x)))
            assert x.shape[1:3] == (4, 4)
            return self.head(x.mean((1, 2)))

    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        model = CNN(nnx.Rngs(0))
        gradient = nnx.grad(lambda m: jnp.sum(m(normal(2, 8, 8, 3)) ** 2))(model)
    finally:
        jax.config.update("jax_numpy_rank_promotion", "raise")
    assert gradient.pool.strides[...].shape == (2,)
    assert np.all(np.abs(gradient.pool.strides[...]) > 1e-6)


@pytest.mark.parametrize("axis", [(1,), (1, 2), (1, 3), (0, 1, 3)])
def test_haar_is_inverted(axis):
    x = normal(4, 6, 2, 8)
    y = jaxpool.haar_pool(x, bands="all", axis=axis)
    np.testing.assert_allclose(jaxpool.haar_unpool(y, axis=axis), x, **CLOSE)
    np.testing.assert_allclose((y**2).sum(), (x**2).sum(), rtol=1e-5)
    low = jaxpool.haar_pool(x, axis=axis)
    n, channel = len(axis), 2 if 3 in axis else 3
    mean = jaxpool.avg_pool(x, (2,) * n, (2,) * n, axis=axis)
    np.testing.assert_allclose(low, mean * 2 ** (n / 2), **CLOSE)
    np.testing.assert_allclose(jnp.split(y, 2**n, channel)[0], low, **CLOSE)


CALLS = {
    "spectral": lambda x: jaxpool.spectral_pool(x, (4, 4)),
    "flc": jaxpool.flc_pool,
    "diffstride": lambda x: jaxpool.diffstride_pool(x, (2.0, 2.0)),
    "haar": jaxpool.haar_pool,
    "haar_all": lambda x: jaxpool.haar_pool(x, bands="all"),
    "haar_unpool": jaxpool.haar_unpool,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_halves_stay_finite(name, dtype):
    x = jnp.asarray(1e4 * np.sign(normal(2, 8, 8, 4)), dtype)
    y, gradient = jax.value_and_grad(
        lambda x: CALLS[name](x).astype(jnp.float32).sum()
    )(x)
    assert np.isfinite(y)
    assert np.isfinite(CALLS[name](x)).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", CALLS)
def test_temporaries(name):
    x = jax.ShapeDtypeStruct((2, 24, 24, 32), np.float32)
    compiled = jax.jit(CALLS[name]).lower(x).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes
    assert needed <= 2 * 4 * 2 * 24 * 24 * 32
