"""Segments in PyTorch: `scatter_reduce`, `index_add` and `segment_reduce`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool

torch = pytest.importorskip("torch")

# Sums in another order, of up to 40 numbers around 1: a few float32 roundings.
close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
equal = np.testing.assert_array_equal
CONFIGS = [
    (n, s, seed) for n, s in ((1, 1), (7, 3), (40, 5), (40, 64)) for seed in (0, 1)
]


@functools.partial(jax.jit, static_argnums=(3, 4))
def ours(x, ids, cotangent, count, mode):
    y, pullback = jax.vjp(lambda x: jaxpool.segment_pool(x, ids, count, mode=mode), x)
    return y, pullback(cotangent)[0]


def problem(n, count, seed):
    rng = np.random.default_rng([n, count, seed])
    x = rng.standard_normal((n, 3)).astype(np.float32)
    ids = rng.integers(0, count, n).astype(np.int32)
    cotangent = rng.integers(-8, 9, (count, 3)).astype(np.float32)
    return x, ids, cotangent


@pytest.mark.parametrize(("n", "count", "seed"), CONFIGS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "min"])
def test_scatter_reduce(n, count, seed, mode):
    x, ids, cotangent = problem(n, count, seed)
    if mode in ("max", "min"):  # among equals PyTorch shares the gradient
        assert np.unique(x).size == x.size
    y, gradient = ours(x, ids, cotangent, count, mode)
    leaf = torch.from_numpy(x).requires_grad_()
    reduce = {"max": "amax", "min": "amin"}.get(mode, mode)
    start = {"max": -np.inf, "min": np.inf}.get(mode, 0.0)
    index = torch.from_numpy(ids.astype(np.int64))[:, None].expand(-1, 3)
    theirs = torch.full((count, 3), start).scatter_reduce(
        0, index, leaf, reduce, include_self=mode not in ("mean",)
    )
    theirs.backward(torch.from_numpy(cotangent))
    compare = equal if mode in ("max", "min") else close
    compare(y, theirs.detach().numpy())
    compare(gradient, leaf.grad.numpy())


@pytest.mark.parametrize(("n", "count", "seed"), CONFIGS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "min"])
def test_segment_reduce(n, count, seed, mode):
    """Sorted rows, by their number in each segment; empty ones have what is ours."""
    x, ids, cotangent = problem(n, count, seed)
    ids = np.sort(ids)
    y, gradient = ours(x, ids, cotangent, count, mode)
    leaf = torch.from_numpy(x).requires_grad_()
    lengths = torch.from_numpy(np.bincount(ids, minlength=count))
    start = {"max": -np.inf, "min": np.inf}.get(mode, 0.0)
    theirs = torch.segment_reduce(leaf, mode, lengths=lengths, initial=start)
    theirs.backward(torch.from_numpy(cotangent))
    compare = equal if mode in ("max", "min") else close
    here = np.bincount(ids, minlength=count) > 0
    compare(np.asarray(y)[here], theirs.detach().numpy()[here])
    compare(gradient, leaf.grad.numpy())


@pytest.mark.parametrize(("n", "count", "seed"), CONFIGS)
@pytest.mark.parametrize("mode", ["var", "std"])
def test_variances(n, count, seed, mode):
    """Each segment's `var` and `std` without correction, where they are smooth."""
    x, ids, cotangent = problem(n, count, seed)
    y, gradient = ours(x, ids, cotangent, count, mode)
    leaf = torch.from_numpy(x).requires_grad_()
    rows = torch.from_numpy(ids.astype(np.int64))
    parts = []
    for s in range(count):
        mine = leaf[rows == s]
        parts.append(
            getattr(torch, mode)(mine, 0, correction=0)
            if len(mine) > 1
            else mine.sum(0) * 0
        )
    theirs = torch.stack(parts)
    theirs.backward(torch.from_numpy(cotangent))
    close(y, theirs.detach().numpy())
    # Derivatives of a square root divide by it: one more rounding of numbers to 100.
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_equals_share_in_pytorch_and_the_first_takes_all_here():
    x = np.array([[3.0], [3.0], [1.0]], np.float32)
    ids = np.zeros(3, np.int32)
    _, gradient = ours(x, ids, jnp.ones((1, 1)), 1, "max")
    leaf = torch.from_numpy(x).requires_grad_()
    index = torch.zeros(3, 1, dtype=torch.int64)
    torch.zeros(1, 1).scatter_reduce(0, index, leaf, "amax").sum().backward()
    equal(gradient[:, 0], [1, 0, 0])
    equal(leaf.grad.numpy()[:, 0], [0.5, 0.5, 0])
