"""Quantization-aware training by qwix: jaxpool's pools count as Flax's do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool.deploy.qwix import register

qwix = pytest.importorskip("qwix")
pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # qwix's own
]
RULES = [qwix.QuantizationRule(weight_qtype=jnp.int8, act_qtype=jnp.int8)]
MAX = dict(window_shape=(2, 2), strides=(2, 2))
AVG = dict(window_shape=(3, 3), strides=(2, 2), padding="SAME")
POOLS = {
    "Flax's": (
        lambda: lambda x: nn.max_pool(x, **MAX),
        lambda: lambda x: nn.avg_pool(x, **AVG),
    ),
    "functions": (
        lambda: lambda x: jaxpool.max_pool(x, **MAX),
        lambda: lambda x: jaxpool.avg_pool(x, **AVG),
    ),
    "linen": (
        lambda: jaxpool.linen.MaxPool(**MAX),
        lambda: jaxpool.linen.AvgPool(**AVG),
    ),
    "nnx": (lambda: jaxpool.nnx.MaxPool(**MAX), lambda: jaxpool.nnx.AvgPool(**AVG)),
}
X = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))


@pytest.fixture(autouse=True)
def usual_promotion():
    """qwix promotes dtypes and ranks as NumPy does."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


class Linen(nn.Module):
    pools: str

    @nn.compact
    def __call__(self, x):
        largest, mean = POOLS[self.pools]
        x = largest()(nn.relu(nn.Conv(4, (3, 3))(x)))
        x = mean()(nn.relu(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class NNX(nnx.Module):
    def __init__(self, pools, rngs):
        self.largest, self.mean = (make() for make in POOLS[pools])
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.largest(nnx.relu(self.first(x)))
        x = self.mean(nnx.relu(self.second(x)))
        return self.head(x.reshape(x.shape[0], -1))


def provider(pools):
    made = qwix.OdmlQatProvider(RULES)
    return made if pools == "Flax's" else register(made)


def of_pools(tree):
    """What a tree of statistics holds of the two pools, without modules' paths."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for pool in ("max_pool0", "avg_pool0"):
            _, name, after = jax.tree_util.keystr(path).partition(pool)
            if name:
                found[name + after] = leaf
    return found


def in_linen(pools):
    """Outputs, gradients and the pools' statistics, of one step."""
    model = qwix.quantize_model(Linen(pools), provider(pools))
    variables = model.init(jax.random.key(1), X)

    def loss(params):
        given = {**variables, "params": params}
        y, state = model.apply(given, X, mutable=["quant_stats"])
        return jnp.sum(y**2), (y, state)

    gradients, (y, state) = jax.grad(loss, has_aux=True)(variables["params"])
    return y, gradients, of_pools(state)


def in_nnx(pools):
    """The same of an NNX model."""
    model = qwix.quantize_model(NNX(pools, nnx.Rngs(1)), provider(pools), X)

    def loss(model):
        y = model(X)
        return jnp.sum(y**2), y

    (_, y), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
    statistics = nnx.to_pure_dict(nnx.state(model, qwix.QuantStat))
    return y, nnx.to_pure_dict(gradients), of_pools(statistics)


@pytest.mark.parametrize(
    ("step", "pools"),
    [
        pytest.param(in_linen, "functions", marks=pytest.mark.full),
        (in_linen, "linen"),
        pytest.param(in_nnx, "functions", marks=pytest.mark.full),
        (in_nnx, "nnx"),
    ],
)
def test_as_flax(step, pools):
    y, gradients, statistics = step(pools)
    expected, theirs, their_statistics = step("Flax's")
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    close(y, expected)
    jax.tree.map(close, gradients, theirs)
    assert len(statistics) >= 4
    jax.tree.map(close, statistics, their_statistics)


def test_unseen_without():
    pools = "functions"
    model = qwix.quantize_model(Linen(pools), qwix.OdmlQatProvider(RULES))
    seen = model.init(jax.random.key(1), X)["quant_stats"]
    assert not any(name.startswith("max_pool") for name in seen)
    model = qwix.quantize_model(Linen(pools), provider(pools))
    seen = model.init(jax.random.key(1), X)["quant_stats"]
    assert {"max_pool0", "avg_pool0"} <= seen.keys()


def test_other_ops_get_a_scale():
    class Lp(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = jaxpool.lp_pool(x, (2, 2), (2, 2), normalize=True)
            return nn.Conv(4, (3, 3))(x)

    model = qwix.quantize_model(Lp(), register(qwix.OdmlQatProvider(RULES)))
    variables = model.init(jax.random.key(1), X)
    assert "lp_pool0" in variables["quant_stats"]
    exact = Lp().apply({"params": variables["params"]}, X)
    near = model.apply(variables, X, mutable=["quant_stats"])[0]
    # On average: qwix clips an array's peaks, at the mean over the batch's examples.
    assert 0 < jnp.mean(jnp.abs(near - exact)) < 0.02 * jnp.max(jnp.abs(exact))


def test_refusals():
    with pytest.raises(TypeError, match="`provider` must be a qwix"):
        register(qwix.PtqProvider(RULES))
    changed = qwix.OdmlQatProvider(RULES)
    changed._ops = {}
    with pytest.raises(RuntimeError, match="does not know this version of qwix"):
        register(changed)
