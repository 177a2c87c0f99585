"""Attention pools against timm's modules, with timm's weights.

Tolerance: both compute in float32, whose sums over tens of terms round differently.
"""

import functools

import jax
import numpy as np
import pytest

import jaxpool as jp

torch = pytest.importorskip("torch")
layers = pytest.importorskip("timm.layers")
CLOSE = dict(rtol=5e-5, atol=5e-6)
NAMES = {
    "pos_embed": "positions",
    "cls_token": "cls_token",
    "latent": "query",
    "norm": "norm",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
    "proj": "out",
    **{name: name for name in ("q", "k", "v", "kv", "qkv")},
}


def weights(module, **names):
    """The module's weights, drawn anew, by our names and in our layout."""
    params, names = {}, {**NAMES, **names}
    for name, value in module.named_parameters():
        torch.nn.init.normal_(value, std=0.5)
        array = value.detach().numpy()
        owner, _, kind = name.rpartition(".")
        if kind in ("weight", "bias"):
            part = "bias" if kind == "bias" else ("", "scale", "kernel")[array.ndim]
            params[f"{names[owner]}_{part}"] = array.T
        else:
            squeezed = {"cls_token": (-1,), "latent": array.shape[1:]}
            params[names[kind]] = array.reshape(squeezed.get(kind, array.shape))
    return params


def agree(module, f, shape, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype(np.float32)
    tx = torch.tensor(x, requires_grad=True)
    expected = module(tx)
    ct = rng.normal(size=expected.shape).astype(np.float32)
    (expected * torch.tensor(ct)).sum().backward()

    @jax.jit
    def both(x, ct):
        y, vjp = jax.vjp(f, x)
        return y, vjp(ct)[0]

    y, gradient = both(x, ct)
    np.testing.assert_allclose(y, expected.detach(), **CLOSE)
    np.testing.assert_allclose(gradient, tx.grad, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_separate": True, "out_features": 5},
        {"pool_type": "", "class_token": True},
        {"out_features": 0},
    ],
    ids=str,
)
def test_maps(rotary, options):
    kind = layers.RotAttentionPool2d if rotary else layers.AttentionPool2d
    size = {"ref_feat_size" if rotary else "feat_size": (3, 4)}
    module = kind(8, num_heads=2, **size, **options)
    params = weights(module)
    op = jp.rotary_attention_pool if rotary else jp.clip_attention_pool
    size = {"reference_shape" if rotary else "position_shape": (3, 4)}
    pool_type = options.get("pool_type", "token")

    def pooled(x):
        size_ = {**size, "pool_type": pool_type, "axis": (-2, -1)}
        return op(x, params, num_heads=2, **size_)

    for seed, (height, width) in enumerate([(3, 4), (6, 2)]):
        agree(module, pooled, (2, 8, height, width), seed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"latent_len": 3, "pool_type": "avg", "qk_norm": True},
        {"latent_len": 2, "latent_dim": 5, "pool_type": "", "out_features": 6},
        {"q_proj": False, "out_features": 0, "qkv_bias": False},
        {"pos_embed": "abs", "feat_size": 7, "norm_layer": torch.nn.LayerNorm},
        {"act_layer": functools.partial(torch.nn.GELU, "tanh")},
    ],
    ids=str,
)
def test_latent(options):
    module = layers.AttentionPoolLatent(8, num_heads=2, **options)
    params = weights(module)
    pool_type = options.get("pool_type", "token")

    def pooled(x):
        return jp.latent_attention_pool(
            x,
            params,
            num_heads=2,
            pool_type=pool_type,
            approximate="act_layer" in options,
        )

    agree(module, pooled, (3, 7, 8), 0)


@pytest.mark.parametrize("gamma", [None, 1.25, 2.0, 5.0])
@pytest.mark.parametrize("heads", [1, 2])
def test_simpool(gamma, heads):
    options = {"qk_norm": heads == 2, "qkv_bias": heads == 2}
    module = layers.SimPool1d(6, num_heads=heads, gamma=gamma, **options)
    params = weights(module, norm="token_norm")

    def pooled(x):
        return jp.sim_pool(x, params, num_heads=heads, gamma=gamma)

    agree(module, pooled, (3, 7, 6), 0)


@pytest.mark.parametrize(
    "options",
    [{}, {"pre_norm": True, "pool_type": "avg"}, {"pre_norm": True, "post_norm": True}],
    ids=str,
)
def test_prr(options):
    module = layers.AttentionPoolPrr(8, num_heads=2, **options)
    params = weights(module, pre_norm="token_norm", post_norm="norm")
    pool_type = options.get("pool_type", "token")

    def pooled(x):
        return jp.prr_attention_pool(x, params, num_heads=2, pool_type=pool_type)

    agree(module, pooled, (3, 7, 8), 0)
