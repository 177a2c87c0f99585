"""Aggregation and probes against the same, put together of PyTorch's own parts.

Tolerance: both compute in float32, whose sums over tens of terms round differently.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxpool as jp
import jaxpool.linen
import jaxpool.nnx

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick_compilation")
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


class AttentiveStatistics(torch.nn.Module):
    """SpeechBrain's layer of ECAPA-TDNN, by its formula; `x` is `[N, C, L]`."""

    def __init__(self, channels, attention_channels, global_context):
        super().__init__()
        self.global_context = global_context
        inputs = channels * (3 if global_context else 1)
        self.conv_in = torch.nn.Conv1d(inputs, attention_channels, 1)
        self.norm = torch.nn.BatchNorm1d(attention_channels)
        self.conv = torch.nn.Conv1d(attention_channels, channels, 1)

    def forward(self, x, mask):
        def statistics(weights):
            mean = (weights * x).sum(-1, keepdim=True)
            variance = (weights * (x - mean) ** 2).sum(-1, keepdim=True)
            return mean, variance.clamp(1e-12).sqrt()

        context = statistics(mask / mask.sum(-1, keepdim=True))
        tokens = [x, *(c.expand_as(x) for c in context if self.global_context)]
        hidden = self.norm(F.relu(self.conv_in(torch.cat(tokens, 1))))
        scores = self.conv(torch.tanh(hidden))
        weights = scores.masked_fill(mask == 0, -torch.inf).softmax(-1)
        return torch.cat(statistics(weights), 1)[..., 0]


def arrays_of(theirs):
    """Its weights under jaxpool's names, and those of the norm under Flax's."""
    state = {n: a.detach().numpy().copy() for n, a in theirs.state_dict().items()}
    blocks = np.split(
        state["conv_in.weight"][..., 0].T, 3 if theirs.global_context else 1
    )
    names = ("hidden_kernel", "mean_kernel", "std_kernel")
    params = dict(zip(names, blocks, strict=False))
    params["hidden_bias"] = state["conv_in.bias"]
    params["score_kernel"] = state["conv.weight"][..., 0].T
    names = {"weight": "scale", "bias": "bias"}
    names |= {"running_mean": "mean", "running_var": "var"}
    return params, {ours: state[f"norm.{n}"] for n, ours in names.items()}


@pytest.fixture
def flax_promotes():
    """Flax itself mixes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("flax_promotes")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("api", ["function", "nnx", "linen"])
def test_attentive_statistics_of_ecapa(api, context, training):
    c, m = 4, 6
    torch.manual_seed(0)
    theirs = AttentiveStatistics(c, m, context)
    for array in theirs.norm.buffers():
        if array.ndim:
            array.copy_(torch.rand(m) + 0.5)
    torch.nn.init.uniform_(theirs.norm.weight, 0.5, 2)
    torch.nn.init.uniform_(theirs.norm.bias, -1, 1)
    params, norm = arrays_of(theirs)
    x = drawn(3, 9, c)
    # A batch's statistics are those of all tokens, of which a mask hides none here.
    lengths = np.array([9, 9, 9] if training else [9, 5, 2])
    where = np.arange(9) < lengths[:, None]
    theirs.train(training)
    mask = torch.tensor(where[:, None].astype(np.float32))
    expected = theirs(torch.tensor(np.moveaxis(x, 1, -1)), mask).detach().numpy()
    sizes = {"hidden_features": m, "global_context": context}
    running = None
    if api == "function":
        if training:
            pytest.skip("a function has no running statistics")

        def f(h):
            scale = norm["scale"] / np.sqrt(norm["var"] + np.float32(1e-5))
            return (jax.nn.relu(h) - norm["mean"]) * scale + norm["bias"]

        y = jp.attentive_statistics_pool(x, params, hidden_fn=f, where=where)
    elif api == "nnx":
        rngs = nnx.Rngs(0)
        batch_norm = nnx.BatchNorm(m, momentum=0.9, rngs=rngs)
        f = nnx.Sequential(nnx.relu, batch_norm)
        pool = jp.nnx.AttentiveStatisticsPool(c, **sizes, hidden_fn=f, rngs=rngs)
        for name, array in params.items():
            getattr(pool, name)[...] = jnp.asarray(array)
        for name, array in norm.items():
            getattr(batch_norm, name)[...] = jnp.asarray(array)
        pool.train() if training else pool.eval()
        y = nnx.jit(lambda pool, x: pool(x, where=where))(pool, x)
        running = {n: getattr(batch_norm, n)[...] for n in ("mean", "var")}
    else:
        batch_norm = nn.BatchNorm(use_running_average=not training, momentum=0.9)
        f = nn.Sequential([nn.relu, batch_norm])
        pool = jp.linen.AttentiveStatisticsPool(c, **sizes, hidden_fn=f)
        shapes = jax.eval_shape(pool.init, jax.random.key(0), x)
        learned = {n: norm[n] for n in ("scale", "bias")}
        moving = {n: norm[n] for n in ("mean", "var")}
        variables = {
            "params": params | {"hidden_fn": {"layers_1": learned}},
            "batch_stats": {"hidden_fn": {"layers_1": moving}},
        }
        assert jax.tree.structure(shapes) == jax.tree.structure(variables)
        y, updated = pool.apply(variables, x, where=where, mutable=["batch_stats"])
        running = updated["batch_stats"]["hidden_fn"]["layers_1"]
    np.testing.assert_allclose(y, expected, **CLOSE)
    if running is not None:
        np.testing.assert_allclose(running["mean"], theirs.norm.running_mean, **CLOSE)
        # Of a batch of n, PyTorch keeps the variance with n - 1 below.
        kept = 0.9 * norm["var"] if training else 0
        ratio = 27 / 26 if training else 1
        np.testing.assert_allclose(
            (running["var"] - kept) * np.float32(ratio) + kept,
            theirs.norm.running_var,
            **CLOSE,
        )
