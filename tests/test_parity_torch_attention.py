"""CLIP's attention pool against the call that it is in CLIP: PyTorch's own attention.

Tolerance: both compute in float32, whose sums over tens of terms round differently.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool as jp

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick_compilation")
F = torch.nn.functional
CLOSE = dict(rtol=2e-5, atol=2e-6)


def drawn(seed, features, embed, out, cells):
    rng = np.random.default_rng(seed)
    shapes = {
        "positions": (cells + 1, features),
        **{f"{n}_kernel": (features, embed) for n in "qkv"},
        **{f"{n}_bias": (embed,) for n in "qkv"},
        "out_kernel": (embed, out),
        "out_bias": (out,),
    }
    return {n: rng.normal(size=s).astype(np.float32) / 2 for n, s in shapes.items()}


def clip_head(x, w, heads, positions):
    """CLIP's head: the first result of self-attention over mean and tokens."""
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + positions[:, None]
    weights = {f"{n}_proj_weight": w[f"{n}_kernel"].T for n in "qkv"}
    y, _ = F.multi_head_attention_forward(
        query=x,
        key=x,
        value=x,
        embed_dim_to_check=x.shape[-1],
        num_heads=heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([w[f"{n}_bias"] for n in "qkv"]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=w["out_kernel"].T,
        out_proj_bias=w["out_bias"],
        use_separate_proj_weight=True,
        need_weights=False,
        **weights,
    )
    return y[0]


@pytest.mark.parametrize("seed", range(8))
def test_clip(seed):
    rng = np.random.default_rng(seed)
    # PyTorch 2.13 resamples maps to a width of 1 with all their rows the same.
    heads, height, width = (int(n) for n in rng.integers((1, 1, 2), 5))
    features, out = heads * int(rng.integers(1, 4)), int(rng.integers(1, 6))
    old = tuple(int(n) for n in rng.integers(1, 6, 2)) if seed % 2 else (height, width)
    params = drawn(seed, features, features, out, old[0] * old[1])
    x = rng.normal(size=(2, features, height, width)).astype(np.float32)
    ct = rng.normal(size=(2, out)).astype(np.float32)

    w = {n: torch.tensor(a, requires_grad=True) for n, a in params.items()}
    tx = torch.tensor(x, requires_grad=True)
    grid = w["positions"][1:].T.reshape(1, features, *old)
    if old != (height, width):  # as in timm's resampling
        grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True)
    positions = torch.cat([w["positions"][:1], grid.flatten(2)[0].T])
    expected = clip_head(tx, w, heads, positions)
    (expected * torch.tensor(ct)).sum().backward()

    def pooled(x, params):
        y = jp.clip_attention_pool(
            x, params, num_heads=heads, position_shape=old, axis=(-2, -1)
        )
        return jnp.sum(y * ct), y

    gradients = jax.jit(jax.value_and_grad(pooled, (0, 1), has_aux=True))
    (_, y), (gx, gw) = gradients(x, params)
    np.testing.assert_allclose(y, expected.detach(), **CLOSE)
    np.testing.assert_allclose(gx, tx.grad, **CLOSE)
    for name in params:
        np.testing.assert_allclose(gw[name], w[name].grad, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked):
    rng = np.random.default_rng(3)
    layer = torch.nn.MultiheadAttention(6, 3, batch_first=True)
    with torch.no_grad():
        layer.in_proj_bias.normal_()
        layer.out_proj.bias.normal_()
    x = rng.normal(size=(4, 5, 6)).astype(np.float32)
    query = rng.normal(size=(2, 6)).astype(np.float32)
    where = rng.random((4, 5)) > 0.5
    where[:, 2] = True
    hidden = torch.tensor(~where) if masked else None
    tx = torch.tensor(x, requires_grad=True)
    tq = torch.tensor(query).expand(4, 2, 6)
    expected, _ = layer(tq, tx, tx, key_padding_mask=hidden)
    expected.pow(2).sum().backward()
    params = {
        "query": query,
        "qkv_kernel": layer.in_proj_weight.detach().numpy().T,
        "qkv_bias": layer.in_proj_bias.detach().numpy(),
        "out_kernel": layer.out_proj.weight.detach().numpy().T,
        "out_bias": layer.out_proj.bias.detach().numpy(),
    }

    def pooled(x):
        return jp.attention_pool(
            x, params, num_heads=3, where=where if masked else None
        )

    np.testing.assert_allclose(jax.jit(pooled)(x), expected.detach(), **CLOSE)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(pooled(x) ** 2)))(x)
    np.testing.assert_allclose(gradient, tx.grad, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("old", "new"), [((7, 7), (9, 12)), ((7, 5), (3, 6)), ((1, 4), (3, 1))]
)
def test_positions_are_resampled_as_antialiased_bicubic(old, new):
    grid = np.random.default_rng(0).normal(size=(*old, 4)).astype(np.float32)
    expected = F.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None],
        new,
        mode="bicubic",
        antialias=True,
    )[0].permute(1, 2, 0)
    positions = np.concatenate([np.zeros((1, 4), np.float32), grid.reshape(-1, 4)])

    def at(mask):
        x = np.zeros((*new, 4), np.float32)
        return jp.clip_attention_pool(
            x, {"positions": positions}, num_heads=1, position_shape=old, where=mask
        )

    # The query is 0, so that the first token, 0 too, has half of the attention, and the
    # one that the mask shows, which is its position, the other.
    shown = np.eye(new[0] * new[1], dtype=bool).reshape(-1, *new)
    y = 2 * jax.jit(jax.vmap(at))(shown).reshape(*new, 4)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=2e-6)
