"""PyTorch's fractional max-pooling: values, indices and gradients of equal samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

# A maximum is an element, and whole cotangents add up exactly: nothing rounds.
equal = np.testing.assert_array_equal


def draw(rng, spatial):
    """(sizes, window, output size) that both accept: 3-d PyTorch needs one more."""
    size = rng.integers(4, 9 if spatial == 3 else 15, spatial)
    k = np.minimum(rng.integers(1, 4, spatial), size - 1)
    out = rng.integers(1, size - k + 1 + (spatial == 2))
    return tuple(tuple(int(n) for n in row) for row in (size, k, out))


def theirs(x, k, out, u, cotangent):
    """PyTorch's (values, indices, gradient), channels last."""
    spatial = len(k)
    first, last = (lambda a: np.moveaxis(a, -1, 1)), (lambda a: np.moveaxis(a, 1, -1))
    given = torch.from_numpy(first(x).copy()).requires_grad_()
    # In 2-d, but not in 3-d, samples come in the order W, H.
    u = np.ascontiguousarray(u[..., ::-1] if spatial == 2 else u)
    op = getattr(F, f"fractional_max_pool{spatial}d")
    y, index = op(
        given, k, out, _random_samples=torch.from_numpy(u), return_indices=True
    )
    y.backward(torch.from_numpy(first(cotangent).copy()))
    return [last(a.detach().numpy()) for a in (y, index, given.grad)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def ours(x, k, out, u, cotangent):
    def pool(x):
        return jaxpool.fractional_max_pool_with_argmax(
            x, out, window_shape=k, samples=u
        )

    y, pullback, index = jax.vjp(pool, x, has_aux=True)
    return y, index, pullback(cotangent)[0]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spatial", [2, 3])
def test_with_the_same_samples(spatial, seed):
    rng = np.random.default_rng([spatial, seed])
    size, k, out = draw(rng, spatial)
    n, c = 2, 3
    x = rng.integers(-3, 4, (n, *size, c)).astype(np.float32)  # many ties
    if seed % 3 == 0:
        x[0] = rng.standard_normal(x[0].shape)
        x[1] = np.where(rng.random(x[1].shape) < 0.5, -np.inf, x[1])
    u = rng.random((n, c, spatial), np.float32)
    cotangent = rng.integers(-8, 9, (n, *out, c)).astype(np.float32)
    pairs = zip(
        ours(x, k, out, u, cotangent), theirs(x, k, out, u, cotangent), strict=True
    )
    for actual, expected in pairs:
        equal(actual, expected, err_msg=str((size, k, out)))


def starts_of_torch(size, k, out, u):
    """Where windows of PyTorch start: a rising row's maximum is its window's last."""
    x = torch.arange(float(size), dtype=u.dtype).expand(1, u.shape[0], 1, size)
    samples = torch.stack([u, torch.zeros_like(u)], -1)[None]
    _, index = F.fractional_max_pool2d(
        x, (1, k), (1, out), _random_samples=samples, return_indices=True
    )
    return index.numpy()[0, :, 0] - k + 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("size", "k", "out"), [(10, 2, 7), (13, 3, 6), (25, 2, 18), (97, 3, 60), (9, 2, 1)]
)
def test_starts_to_the_last_bit(size, k, out, dtype, x64):
    rng = np.random.default_rng(size)
    # Those of few digits meet whole numbers, where rounding shows.
    u = np.concatenate([rng.random(400), np.arange(64) / 64, np.arange(100) / 100])
    u = u.astype(dtype)
    ((start, end),) = jaxpool.fractional_boundaries(
        (len(u), size, 1), (out,), window_shape=k, samples=u[:, None, None]
    )
    equal(start[:, 0], starts_of_torch(size, k, out, torch.from_numpy(u)))
    equal(end, start + k)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    half = getattr(torch, dtype)
    u = torch.from_numpy(np.random.default_rng(0).random(300, np.float32)).to(half)
    u = u[u < 1]
    x = np.random.default_rng(1).standard_normal((1, 1, 40, len(u))).astype(np.float32)
    given = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(half)
    samples = torch.stack([u, torch.zeros_like(u)], -1)[None]
    try:
        y, index = F.fractional_max_pool2d(
            given, (1, 3), (1, 23), _random_samples=samples, return_indices=True
        )
    except (RuntimeError, NotImplementedError):
        pytest.skip("this PyTorch has none for half precision")
    values, indices = jax.jit(
        lambda x, u: jaxpool.fractional_max_pool_with_argmax(
            x, (1, 23), window_shape=(1, 3), samples=u
        )
    )(
        jnp.asarray(x, dtype),
        jnp.asarray(samples.flip(-1).float().numpy()).astype(dtype),
    )
    assert values.dtype == dtype
    equal(np.asarray(values, np.float32), np.moveaxis(y.float().numpy(), 1, -1))
    equal(indices, np.moveaxis(index.numpy(), 1, -1))


def test_a_single_nan_wins_in_both():
    x = np.random.default_rng(2).standard_normal((1, 7, 8, 1)).astype(np.float32)
    x[0, 3, 4] = np.nan
    u = np.full((1, 1, 2), 0.4, np.float32)
    cotangent = np.ones((1, 4, 5, 1), np.float32)
    arguments = ((2, 3), (4, 5), u, cotangent)
    for actual, expected in zip(
        ours(x, *arguments), theirs(x, *arguments), strict=True
    ):
        equal(actual, expected)
    assert np.isnan(ours(x, *arguments)[0]).any()


def test_an_output_that_just_fits():
    """Output + window - 1 == input: taken in every rank; by PyTorch in 2-d alone."""
    x = np.arange(5.0, dtype=np.float32)
    two, three = x.reshape(1, 1, 5), x.reshape(1, 1, 1, 5)
    u = torch.zeros(1, 1, 2)
    expected = F.fractional_max_pool2d(
        torch.from_numpy(two), (1, 3), (1, 3), _random_samples=u
    )
    for plane in (two, three):
        ones = (1,) * (plane.ndim - 2)
        y = jaxpool.fractional_max_pool(
            plane[..., None],
            (*ones, 3),
            window_shape=(*ones, 3),
            samples=(0.0,) * (plane.ndim - 1),
            axis=tuple(range(1, plane.ndim)),
        )
        equal(np.ravel(y), np.ravel(expected))
    with pytest.raises(RuntimeError, match="too large relative to input"):
        F.fractional_max_pool3d(
            torch.from_numpy(three), (1, 1, 3), (1, 1, 3), _random_samples=u[..., :1]
        )
