"""What the contract table does not ask of attention pools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import typical
from flax import linen as nn

import jaxpool as jp

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLOSE = dict(rtol=5e-6, atol=5e-6)


def test_samples_do_not_meet():
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    pooled = jax.jit(lambda x: jp.sim_pool(x, {}, gamma=3.0))
    np.testing.assert_allclose(pooled(x), [pooled(s) for s in x], **CLOSE)


@pytest.mark.parametrize(
    "case", [c for c in typical() if "num_heads" in c.arguments], ids=str
)
def test_the_number_of_heads_may_be_an_array(case):
    """Arithmetic on one, under `jit`, would trace it."""
    heads = case.arguments["num_heads"]
    y, same = (
        jax.jit(lambda x, n=n: case.op.fn(x, **{**case.arguments, "num_heads": n}))(
            case.input()
        )
        for n in (heads, jnp.array(heads))
    )
    np.testing.assert_array_equal(y, same)


def test_tokens_of_unknown_number():
    (batch, length) = jax.export.symbolic_shape("batch, length")
    params = {"query": np.ones(4, np.float32)}

    def pooled(x):
        return jp.attention_pool(x, params, num_heads=2)

    spec = jax.ShapeDtypeStruct((batch, length, 4), np.float32)
    exported = jax.export.export(jax.jit(pooled))(spec)
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(exported.call(x), jax.jit(pooled)(x), **CLOSE)


class MAPHead(nn.Module):
    """The head of big_vision, of Flax's own layers."""

    @nn.compact
    def __call__(self, x, mask=None):
        glorot = nn.initializers.xavier_uniform()
        probe = self.param("probe", glorot, (1, 1, x.shape[-1]))
        probe = jnp.tile(probe, [x.shape[0], 1, 1])
        if mask is not None:
            mask = mask[:, None, None, :]
        y = nn.MultiHeadDotProductAttention(2, kernel_init=glorot)(probe, x, mask=mask)
        hidden = nn.gelu(nn.Dense(5)(nn.LayerNorm()(y)))
        return (y + nn.Dense(x.shape[-1])(hidden))[:, 0]


@pytest.mark.parametrize("masked", [False, True])
def test_map_pool_is_the_head_of_flax_layers(masked):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 4)).astype(np.float32)
    mask = rng.random((3, 7)) > 0.4
    mask[:, 3] = True
    mask = mask if masked else None
    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        variables = MAPHead().init(jax.random.key(0), x)
        variables = jax.tree.map(
            lambda a: rng.normal(size=a.shape).astype(np.float32), variables
        )
        expected, vjp = jax.vjp(lambda x: MAPHead().apply(variables, x, mask), x)
        gradient = vjp(expected)[0]
    finally:
        jax.config.update("jax_numpy_rank_promotion", "raise")
    w = variables["params"]
    attention = w["MultiHeadDotProductAttention_0"]
    parts = {
        "q": attention["query"],
        "k": attention["key"],
        "v": attention["value"],
        "out": attention["out"],
        "norm": w["LayerNorm_0"],
        "mlp_in": w["Dense_0"],
        "mlp_out": w["Dense_1"],
    }
    shapes = {"out_kernel": (4, 4), "mlp_in_kernel": (4, 5), "mlp_out_kernel": (5, 4)}
    params = {"query": w["probe"].reshape(-1)}
    for name, part in parts.items():
        for kind, array in part.items():
            flat = (4, 4) if kind == "kernel" else (-1,)
            params[f"{name}_{kind}"] = array.reshape(shapes.get(f"{name}_{kind}", flat))

    @jax.jit
    def both(x, ct):
        y, vjp = jax.vjp(lambda x: jp.map_pool(x, params, num_heads=2, where=mask), x)
        return y, vjp(ct)[0]

    y, ours = both(x, expected)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(ours, gradient, rtol=1e-4, atol=1e-4)
