"""Pyramids beside PyTorch, and what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool
import jaxpool.nnx

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = np.random.default_rng(0).normal(size=(2, 9, 13, 3)).astype(np.float32)


def torch_functions():
    torch = pytest.importorskip("torch")
    return torch, torch.nn.functional


@pytest.mark.parametrize("op", ["max", "avg"])
def test_spatial_pyramid_equals_torch(op):
    torch, functional = torch_functions()
    x = torch.tensor(X.transpose(0, 3, 1, 2))
    pool = getattr(functional, f"adaptive_{op}_pool2d")
    parts = [pool(x, n).permute(0, 2, 3, 1).flatten(1) for n in (1, 2, 4)]
    expected = torch.cat(parts, 1).numpy()
    for given, axis in ((X, None), (X.transpose(0, 3, 1, 2), (2, 3))):
        y = jaxpool.spatial_pyramid_pool(given, (1, 2, 4), op=op, axis=axis)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    small = jaxpool.spatial_pyramid_pool(X[:, :5, :4], (1, 2, 4), op=op)
    assert small.shape == y.shape  # whatever the image


def test_pyramid_equals_torch():
    torch, functional = torch_functions()
    x = torch.tensor(X.transpose(0, 3, 1, 2), requires_grad=True)
    up = {"size": X.shape[1:3], "mode": "bilinear", "align_corners": True}
    levels = [functional.adaptive_avg_pool2d(x, n) for n in (1, 2, 3, 6)]
    expected = torch.cat([x, *(functional.interpolate(y, **up) for y in levels)], 1)
    y = jaxpool.pyramid_pool(X)
    wanted = expected.detach().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    g = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    expected.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
    gradient = jax.vjp(jaxpool.pyramid_pool, X)[1](g)[0]
    theirs = x.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(gradient, theirs, rtol=1e-4, atol=1e-5)


def test_constants_stay():
    x = np.full((1, 7, 11, 2), 3.0, np.float32)
    np.testing.assert_allclose(jaxpool.pyramid_pool(x), 3.0, rtol=1e-6)
    np.testing.assert_array_equal(jaxpool.spatial_pyramid_pool(x, (1, 2, 3)), 3.0)
    np.testing.assert_array_equal(jaxpool.sppf(x, (5, 5)), 3.0)
    np.testing.assert_array_equal(jaxpool.strip_pool(x), 6.0)


def test_fast_pyramid_is_the_pyramid():
    windows = [jaxpool.max_pool(X, (k, k), padding="SAME") for k in (5, 9, 13)]
    expected = jnp.concatenate([X, *windows], -1)
    np.testing.assert_array_equal(jaxpool.sppf(X, (5, 5)), expected)
    first = jaxpool.sppf(X.transpose(0, 3, 1, 2), 5, axis=(2, 3))
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), expected)
    np.testing.assert_array_equal(jaxpool.nnx.SPPF((5, 5))(X), expected)


def test_strips_are_rows_and_columns():
    y = jaxpool.strip_pool(X)
    expected = X.mean(1, keepdims=True) + X.mean(2, keepdims=True)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_a_nan_stays_where_it_is_read():
    x = X.copy()
    x[0, 0, 0, 0] = np.nan
    y = np.asarray(jaxpool.pyramid_pool(x, (3,)))[..., 3:]
    assert np.isnan(y[0, :4, :6, 0]).all()
    assert np.isfinite(y[0, 4:, :, 0]).all()
    assert np.isfinite(y[0, :, 6:, 0]).all()
    assert np.isfinite(y[1]).all()
