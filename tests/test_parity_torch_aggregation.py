"""Aggregation and probes against the same, put together of PyTorch's own parts.

Tolerance: both compute in float32, whose sums over tens of terms round differently.
"""

import jax
import numpy as np
import pytest

import jaxpool as jp

torch = pytest.importorskip("torch")
F = torch.nn.functional
CLOSE = dict(rtol=5e-5, atol=5e-6)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def agree(ours, theirs, x):
    """Compares results, and gradients of their products with random numbers."""
    y, vjp = jax.vjp(jax.jit(ours), x)
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf)
    np.testing.assert_allclose(y, expected.detach(), **CLOSE)
    cotangent = drawn(*y.shape, seed=9)
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(vjp(cotangent)[0], leaf.grad, **CLOSE)


@pytest.mark.parametrize("correction", [0, 1])
def test_statistics(correction):
    def theirs(x):
        return torch.cat([x.mean(1), x.std(1, correction=correction)], -1)

    x = drawn(2, 7, 3)
    agree(lambda x: jp.statistics_pool(x, correction=correction), theirs, x)


def test_covariance():
    def theirs(x):
        roots = []
        for tokens in x:
            values, vectors = torch.linalg.eigh(torch.cov(tokens.T, correction=0))
            roots.append(vectors @ torch.diag(values.sqrt()) @ vectors.T)
        return torch.stack(roots)

    def ours(x):
        return jp.covariance_pool(x, iterations=15, vectorize=False)

    agree(ours, theirs, drawn(2, 20, 3))


@pytest.mark.parametrize("authors", [False, True])
def test_set_attention(authors):
    """The authors scale by all channels, PyTorch by those of a head."""
    c, d, heads = 5, 6, 2
    shapes = {"query": (3, d)} | {f"{n}_bias": (d,) for n in ("q", "k", "v", "ffn")}
    shapes |= {"q_kernel": (d, d), "k_kernel": (c, d), "v_kernel": (c, d)}
    shapes |= {"ffn_kernel": (d, d)}
    shapes |= {f"{n}_norm_scale": (d,) for n in ("attended", "ffn")}
    shapes |= {f"{n}_norm_bias": (d,) for n in ("attended", "ffn")}
    params = {n: drawn(*s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    w = {n: torch.tensor(a) for n, a in params.items()}
    scale = d**-0.5 if authors else None

    def theirs(x):
        q = w["query"] @ w["q_kernel"] + w["q_bias"]
        k, v = (x @ w[f"{n}_kernel"] + w[f"{n}_bias"] for n in "kv")
        q, k, v = (
            a.reshape(*a.shape[:-1], heads, -1).transpose(-2, -3)
            for a in (q.expand(len(x), -1, -1), k, v)
        )
        y = q + F.scaled_dot_product_attention(q, k, v, scale=scale)
        y = y.transpose(-2, -3).flatten(-2)
        names = [f"{n}_norm" for n in ("attended", "ffn")]
        norms = [(w[f"{n}_scale"], w[f"{n}_bias"]) for n in names]
        y = F.layer_norm(y, (d,), *norms[0])
        y = y + F.relu(y @ w["ffn_kernel"] + w["ffn_bias"])
        return F.layer_norm(y, (d,), *norms[1])

    def ours(x):
        return jp.set_attention_pool(x, params, num_heads=heads, scale=scale)

    agree(ours, theirs, drawn(2, 7, c, seed=20))


@pytest.mark.parametrize("projected", [False, True])
def test_efficient_probe(projected):
    params = {"query": drawn(2, 4, seed=1)}
    if projected:
        params |= {"v_kernel": drawn(4, 6, seed=2), "v_bias": drawn(6, seed=3)}
    w = {n: torch.tensor(a) for n, a in params.items()}

    def theirs(x):
        v = x @ w["v_kernel"] + w["v_bias"] if projected else x
        v = v.reshape(*v.shape[:-1], 2, -1).transpose(-2, -3)
        q = w["query"][:, None].expand(len(x), -1, -1, -1)
        k = x[:, None].expand(-1, 2, -1, -1)
        return F.scaled_dot_product_attention(q, k, v).flatten(1)

    agree(lambda x: jp.efficient_probe_pool(x, params), theirs, drawn(2, 7, 4))


def test_vlad():
    params = {"centroids": drawn(4, 3), "assign_bias": drawn(4, seed=1)}
    c = torch.tensor(params["centroids"])

    def theirs(x):
        scores = torch.tensor(params["assign_bias"]) - 2 * torch.cdist(x, c) ** 2
        a = scores.softmax(-1)[..., None]
        y = (a * (x[:, :, None] - c)).sum(1)
        return F.normalize(F.normalize(y, dim=-1).flatten(1), dim=-1)

    agree(lambda x: jp.vlad_pool(x, params, alpha=2.0), theirs, drawn(2, 7, 3, seed=2))
