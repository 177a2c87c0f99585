"""ONNX models: which nodes they hold, and that onnxruntime agrees with JAX on them."""

import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import typical
from flax import nnx
from jax import lax
from test_contract import representatives

import jaxpool as jp

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from jaxpool.deploy import DeployError  # noqa: E402
from jaxpool.deploy import onnx as target  # noqa: E402

to_onnx, onnx_model = target.to_onnx, target.onnx_model

pytestmark = pytest.mark.usefixtures("quick_compilation")


def draw(*shape, dtype=np.float32):
    x = np.random.default_rng(0).normal(size=shape)
    return (x if np.issubdtype(dtype, np.floating) else 40 * x).astype(dtype)


def run(path, *arrays):
    """What onnxruntime gives, without any help of ours."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


IMAGE, LINE, VOLUME = (2, 9, 8, 3), (2, 9, 3), (2, 5, 6, 4, 3)
FIRST = {"axis": (-2, -1)}  # channels first
TURNS = {"Transpose": 2}
# Floats are halved and doubled for the sake of -inf.
MAX, MEAN = {"MaxPool": 1, "Mul": 2}, {"AveragePool": 1}
# An index over pooled axes alone; the first one where nothing is above the lowest.
INDEX = {"MaxPool": 1, "Mod": 2, "Div": 1, "Sub": 2, "Add": 2}
# What is called, the shape and dtype of its input, and all nodes of the model.
NODES = [
    (jp.max_pool, IMAGE, "f4", dict(), {**MAX, **TURNS}),
    (jp.max_pool, IMAGE, "f4", FIRST, MAX),
    (jp.max_pool, LINE, "f4", dict(window_shape=(3,)), {**MAX, **TURNS}),
    (jp.max_pool, VOLUME, "f4", dict(window_shape=(2,) * 3), {**MAX, **TURNS}),
    (jp.max_pool, IMAGE, "f4", dict(padding=1), {**MAX, **TURNS}),
    # No padding but what is the same at both ends is a pool's.
    (jp.max_pool, IMAGE, "f4", dict(padding="SAME"), {"Pad": 1, **MAX, **TURNS}),
    (
        jp.max_pool,
        IMAGE,
        "f4",
        dict(padding=((1, 0), (0, 2))),
        {"Pad": 1, **MAX, **TURNS},
    ),
    (jp.max_pool, IMAGE, "f4", dict(window_dilation=2), {**MAX, **TURNS}),
    (jp.max_pool, IMAGE, "f4", dict(ceil_mode=True), {"Pad": 1, **MAX, **TURNS}),
    (jp.max_pool, IMAGE, "f2", dict(), {"MaxPool": 1, "Cast": 2, **TURNS}),
    (jp.max_pool, IMAGE, "i1", dict(), {"MaxPool": 1, **TURNS}),
    (
        jp.max_pool,
        IMAGE,
        "u1",
        dict(padding="SAME"),
        {"Pad": 1, "MaxPool": 1, **TURNS},
    ),
    (jp.max_pool, IMAGE, "i4", dict(), {"MaxPool": 1, "Cast": 2, **TURNS}),
    # Three axes that are not pooled become two.
    (jp.max_pool, (2, *IMAGE), "f4", dict(), {"Reshape": 2, **MAX, **TURNS}),
    # Nor is as much padding as a window, or any with dilation.
    (
        jp.max_pool,
        IMAGE,
        "f4",
        dict(padding="SAME", strides=(1, 1), window_dilation=3),
        {"Pad": 1, **MAX, **TURNS},
    ),
    # Four axes are pooled three and one.
    (
        jp.max_pool,
        (2, 4, 3, 4, 3, 2),
        "f4",
        dict(window_shape=(2,) * 4, strides=None),
        {"MaxPool": 2, "Mul": 2, "Transpose": 3, "Reshape": 4},
    ),
    (jp.min_pool, IMAGE, "f4", FIRST, MAX),
    (jp.min_pool, IMAGE, "i1", FIRST, {"BitwiseNot": 2, "MaxPool": 1}),
    (jp.min_pool, IMAGE, "u1", FIRST, {"BitwiseNot": 2, "MaxPool": 1}),
    (
        jp.max_pool_with_argmax,
        (2, 9, 9, 3),
        "f4",
        dict(padding="SAME"),
        {"Transpose": 3, "LessOrEqual": 1, "Where": 1, "Cast": 1, **INDEX, "Mul": 4},
    ),
    (jp.avg_pool, IMAGE, "f4", dict(), {**MEAN, **TURNS}),
    (jp.avg_pool, IMAGE, "f4", FIRST, MEAN),
    (jp.avg_pool, LINE, "f4", dict(window_shape=(3,)), {**MEAN, **TURNS}),
    (jp.avg_pool, VOLUME, "f4", dict(window_shape=(3,) * 3), {**MEAN, **TURNS}),
    (jp.avg_pool, IMAGE, "f4", dict(padding=1), {**MEAN, **TURNS}),
    (jp.avg_pool, IMAGE, "f4", dict(padding="SAME"), {"Pad": 1, **MEAN, **TURNS}),
    # Where it counts, it also has to be the same for all axes.
    (
        jp.avg_pool,
        IMAGE,
        "f4",
        dict(padding=((1, 1), (0, 0))),
        {"Pad": 1, **MEAN, **TURNS},
    ),
    (
        jp.avg_pool,
        IMAGE,
        "f4",
        dict(padding=((1, 1), (0, 0)), count_include_pad=False),
        {**MEAN, **TURNS},
    ),
    (
        jp.avg_pool,
        IMAGE,
        "f4",
        dict(padding=((1, 0), (0, 2)), count_include_pad=False, **FIRST),
        {"Pad": 1, "Mul": 1, "Div": 1, **MEAN},
    ),
    # What overhangs counts neither way.
    (
        jp.avg_pool,
        IMAGE,
        "f4",
        dict(ceil_mode=True, padding=1, **FIRST),
        {"Pad": 1, "Mul": 1, "Div": 1, **MEAN},
    ),
    (jp.sum_pool, IMAGE, "f4", FIRST, {"Mul": 1, **MEAN}),
    (jp.global_max_pool, IMAGE, "f4", dict(), {"ReduceMax": 1, "Squeeze": 1}),
    (jp.global_min_pool, IMAGE, "i4", dict(), {"ReduceMin": 1, "Squeeze": 1}),
    (jp.global_avg_pool, IMAGE, "f4", FIRST, {"GlobalAveragePool": 1, "Squeeze": 1}),
    (
        jp.global_avg_pool,
        IMAGE,
        "f4",
        dict(keepdims=True),
        {"GlobalAveragePool": 1, **TURNS},
    ),
    (
        jp.haar_pool,
        (2, 6, 8, 3),
        "f4",
        dict(),
        {"AveragePool": 1, "Mul": 2, "Transpose": 2},
    ),
]


@pytest.mark.parametrize(
    ("op", "shape", "dtype", "kwargs", "nodes"),
    [pytest.param(*row, id=f"{row[0].__name__}-{row[2]}-{row[3]}") for row in NODES],
)
def test_pools_are_native(op, shape, dtype, kwargs, nodes, tmp_path):
    if not op.__name__.startswith(("global", "haar")):
        kwargs = {"window_shape": (3, 3), "strides": (2,) * 2, **kwargs}
        kwargs["strides"] = kwargs["strides"] and (2,) * len(kwargs["window_shape"])
    fn, x = functools.partial(op, **kwargs), draw(*shape, dtype=dtype)
    found = to_onnx(fn, x, out=tmp_path / "pool.onnx")
    assert found.nodes == nodes
    # Twice the batch that was traced, and one that was not compared.
    x = np.concatenate([x, x[::-1], x[:1]])
    actual = run(found.path, x)
    for a, e in zip(actual, jax.tree.leaves(fn(x)), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(
            a, e, rtol=2e-3 if dtype == "f2" else 1e-6, atol=1e-6
        )


# No pool has dilated means, and none is of int64 or of other functions.
COMPOSED = {
    "dilated mean": lambda x: jp.avg_pool(x, (2, 2), window_dilation=2),
    "int sum": lambda x: jp.sum_pool((x * 9).astype(int), (3, 2), (2, 2), "SAME"),
    "monoid": lambda x: jp.pool(x, 1.0, lax.mul, (2, 3), (2, 2)),
}


class CNN(nnx.Module):
    """What most people would write first."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.second = nnx.Conv(4, 6, (3, 3), strides=(2, 2), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, image):
        x = jp.max_pool(nnx.relu(self.norm(self.first(image))), (2, 2), (2, 2))
        x = jp.avg_pool(nnx.relu(self.second(x)), (2, 2), (2, 2), "SAME", False)
        return self.head(self.dropout(jp.global_avg_pool(x)))


class ResNet(nn.Module):
    """A block of one, with its stem."""

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(nn.Conv(4, (7, 7), (2, 2), use_bias=False)(x)))
        x = jp.max_pool(x, (3, 3), (2, 2), "SAME")
        y = nn.relu(norm()(nn.Conv(6, (3, 3), (2, 2), use_bias=False)(x)))
        y = norm()(nn.Conv(6, (3, 3), use_bias=False, feature_group_count=2)(y))
        x = nn.relu(y + nn.Conv(6, (1, 1), (2, 2), use_bias=False)(x))
        return {"logits": nn.Dense(5)(x.mean((1, 2))), "features": x}


class UNet(nn.Module):
    """Up by unpooling, and by both kinds of transposed convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        y, indices = jp.max_pool_with_argmax(x, (2, 2), (2, 2))
        y = nn.gelu(nn.Conv(4, (3, 3))(y))
        up = jp.max_unpool(y, indices, x.shape[1:3])
        two = nn.ConvTranspose(4, (2, 2), (2, 2))(y)
        three = nn.ConvTranspose(4, (3, 3), (2, 2))(y)
        return nn.Conv(2, (1, 1))(jnp.concatenate([x, up, two, three], -1))


class ViT(nn.Module):
    """Patches, attention, and a pool over tokens."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4))(x)
        x = x.reshape(x.shape[0], -1, 8)
        attention = nn.MultiHeadDotProductAttention(2, deterministic=True)
        x = x + attention(nn.LayerNorm()(x))
        x = x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))
        return jp.sequence_pool(x)


class EfficientNet(nn.Module):
    """A block that squeezes and excites, and a resize."""

    @nn.compact
    def __call__(self, x):
        x = nn.swish(nn.Conv(8, (3, 3), (2, 2), feature_group_count=1)(x))
        x = nn.hard_swish(nn.GroupNorm(4)(nn.Conv(8, (3, 3), feature_group_count=8)(x)))
        scale = nn.Conv(2, (1, 1))(jp.global_avg_pool(x, keepdims=True))
        x = x * nn.sigmoid(nn.Conv(8, (1, 1))(nn.swish(scale)))
        shape = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3])
        return jax.image.resize(x, shape, "bilinear")


def linen(module):
    image = draw(2, 16, 16, 3)
    variables = module.init(jax.random.key(0), image)
    return lambda image: module.apply(variables, image)


def nnx_cnn():
    model = CNN(nnx.Rngs(0))
    model.eval()
    return model


# The model; how often it is transposed; its pools.
MODELS = {
    "CNN": (nnx_cnn, 1, ["MaxPool", "AveragePool", "GlobalAveragePool"]),
    "ResNet": (lambda: linen(ResNet()), 2, ["MaxPool"]),
    "UNet": (lambda: linen(UNet()), None, ["MaxPool"]),
    "ViT": (lambda: linen(ViT()), None, ["GlobalAveragePool"]),
    "EfficientNet": (lambda: linen(EfficientNet()), None, ["GlobalAveragePool"]),
}
late = [pytest.param(name, marks=pytest.mark.full) for name in list(MODELS)[3:]]


@pytest.mark.parametrize("name", [*list(MODELS)[:3], *late])
def test_models(name, tmp_path):
    make, transposed, pools = MODELS[name]
    model = make()
    found = to_onnx(model, draw(2, 16, 16, 3), out=tmp_path / "model.onnx")
    assert target.pool_nodes(found.nodes) == pools
    # Channels last from convolution to pool, and nothing is turned round in between.
    assert transposed in (None, found.nodes["Transpose"])
    images = draw(5, 16, 16, 3) * 2
    actual, expected = run(found.path, images), jax.tree.leaves(model(images))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


IMAGES = "b, h, w, _"
# Fully convolutional, with what frameworks pad for.
SIZELESS = {
    "max": lambda x: jp.max_pool(x, (3, 3), (2, 2)),
    "max, padded": lambda x: jp.max_pool(x, (3, 3), (2, 2), ((1, 1), (0, 2))),
    "max, SAME": lambda x: jp.max_pool(x, (3, 3), (2, 2), "SAME"),
    "max, dilated": lambda x: jp.max_pool(x, (2, 2), padding=1, window_dilation=2),
    "min, SAME_LOWER": lambda x: jp.min_pool(x, (2, 3), (3, 2), "SAME_LOWER"),
    "index": lambda x: jp.max_pool_with_argmax(x, (2, 2), (2, 2)),
    "mean": lambda x: jp.avg_pool(x, (3, 3), (2, 2), 1),
    "mean, SAME": lambda x: jp.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "mean of elements": lambda x: jp.avg_pool(x, (3, 3), (2, 2), "SAME", False),
    "mean, dilated": lambda x: jp.avg_pool(x, (2, 2), window_dilation=2),
    "sum": lambda x: jp.sum_pool(x, (3, 2), (1, 2)),
    "Lp": lambda x: jp.lp_pool(x, (3, 3), (2, 2)),
    "soft": lambda x: jp.soft_pool(x, (2, 2)),
    "whole": lambda x: (
        jp.global_max_pool(x),
        jp.global_avg_pool(x),
        jp.global_lp_pool(x),
        x.mean((1, 2)),
    ),
    "Flax": lambda x: nn.avg_pool(
        nn.max_pool(x, (3, 3), (2, 2), "SAME"), (2, 2), (1, 1)
    ),
    "convolution": lambda x: lax.conv_general_dilated(
        x,
        draw(3, 3, 3, 4),
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "tokens": lambda x: x.reshape(x.shape[0], -1, 3) @ draw(3, 2),
}
EARLY = ("max, SAME", "mean of elements", "whole")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in EARLY else pytest.mark.full)
        for name in SIZELESS
    ],
)
def test_any_height_and_width(name, tmp_path, relaxed):
    fn = SIZELESS[name]
    made = to_onnx(fn, draw(*IMAGE), out=tmp_path / "a.onnx", shapes=IMAGES)
    dims = onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["b", "h", "w", 3]
    for sizes in ((1, 7, 7), (3, 16, 11), (2, 12, 13)):
        x = draw(*sizes, 3)
        for a, e in zip(run(made.path, x), jax.tree.leaves(fn(x)), strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def test_sizes_of_several_inputs(tmp_path):
    def attend(tokens, mask, scale):
        return jnp.where(mask[..., None], tokens, 0).sum(1) * scale

    inputs = draw(2, 5, 3), np.ones((2, 5), bool), np.full((), 2, np.float32)
    shapes = ("b, n, 3", "b, n", None)
    made = to_onnx(attend, *inputs, out=tmp_path / "a.onnx", shapes=shapes)
    tokens, mask = draw(4, 7, 3), np.arange(28).reshape(4, 7) % 3 > 0
    (y,) = run(made.path, tokens, mask, inputs[2])
    np.testing.assert_allclose(y, attend(tokens, mask, inputs[2]), rtol=1e-5)


class Tokens(nnx.Module):
    """A vision transformer's class token and places, in one of their spellings."""

    def __init__(self, join, rngs):
        self.join, self.patches = join, nnx.Conv(3, 8, (4, 4), (4, 4), rngs=rngs)
        self.token = nnx.Param(jnp.full((1, 1, 8), 0.5))
        self.places = nnx.Param(draw(1, 17, 8))
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

    def __call__(self, image):
        x = self.patches(image)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([self.join(self.token[...], x), x], 1)
        x = x + self.places[...][:, : x.shape[1]]
        x = x + self.attention(x)
        return x[:, 0], jp.sequence_pool(x, num_prefix_tokens=1)


JOINS = {
    "tile": lambda token, x: jnp.tile(token, [x.shape[0], 1, 1]),
    "tile of fewer axes": lambda token, x: jnp.tile(token[0], (x.shape[0], 1, 1)),
    "broadcast_to": lambda token, x: jnp.broadcast_to(token, (x.shape[0], 1, 8)),
    "repeat": lambda token, x: jnp.repeat(token, x.shape[0], 0),
    "ones": lambda token, x: jnp.ones((x.shape[0], 1, 1)) * token,
    "like": lambda token, x: jnp.zeros_like(x[:, :1]) + token,
    "vmap": lambda token, x: jax.vmap(lambda _: token[0])(x),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "tile" else pytest.mark.full)
        for name in JOINS
    ],
)
def test_class_tokens(name, tmp_path):
    model = Tokens(JOINS[name], nnx.Rngs(0))
    model.eval()
    made = to_onnx(model, draw(2, 16, 16, 3), out=tmp_path / "a.onnx")
    images = draw(5, 16, 16, 3)
    for a, e in zip(run(made.path, images), model(images), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_tiles(tmp_path):
    def tiles(x):
        n = x.shape[0]
        return jnp.tile(x, (n, 1)), jnp.tile(x, (2, n + 1)), jnp.tile(x[:1], (1, 3))

    made = to_onnx(tiles, draw(2, 3), out=tmp_path / "a.onnx")
    x = draw(3, 3)
    for a, e in zip(run(made.path, x), tiles(x), strict=True):
        np.testing.assert_array_equal(a, e)


INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "bool")
EXTREMA = {
    "windows": lambda x: (jp.max_pool(x, (2, 3)), jp.min_pool(x, (2, 3))),
    "padded": lambda x: (
        jp.max_pool(x, (2, 2), (2, 2), "SAME"),
        jp.min_pool(x, (3, 3), (2, 2), 1),
    ),
    "whole": lambda x: (jp.global_max_pool(x), jp.global_min_pool(x)),
    "index": lambda x: (
        jp.max_pool_with_argmax(x, (2, 2), padding=1),
        jp.max_pool_with_argmax(x, (3, 2), (2, 2), ((1, 0), (0, 1))),
    ),
}


@pytest.mark.parametrize("name", EXTREMA)
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=[] if d == "int32" else pytest.mark.full) for d in INTEGERS],
)
def test_integers(name, dtype, tmp_path):
    """At the ends of their dtypes too, which `to_onnx` compares."""
    if (name, dtype) == ("index", "bool"):
        pytest.skip("an index has an order of numbers")
    fn, x = EXTREMA[name], np.abs(draw(2, 5, 5, 3) * 30).astype(dtype)
    made = to_onnx(fn, x, out=tmp_path / "a.onnx")
    for a, e in zip(run(made.path, x), jax.tree.leaves(fn(x)), strict=True):
        np.testing.assert_array_equal(a, e)


def test_integers_of_64_bits(tmp_path, x64):
    for dtype in ("int64", "uint64"):
        x = np.abs(draw(2, 5, 5, 3) * 30).astype(dtype)
        for fn in (jp.global_max_pool, lambda x: jp.min_pool(x, (2, 2))):
            to_onnx(fn, x, out=tmp_path / "a.onnx")


def several(x):
    """What programs do with indices, in one."""
    order = jnp.argsort(x, 1)
    start = jnp.argmax(x[0, :, 0, 0])
    return (
        x[:, ::2, 1::3],
        x[:, np.array([0, 3, 1])],
        x.at[:, 1:3].set(0.0),
        x.at[:, np.array([2, 2, 7])].add(1.0),
        x.at[:, 3].max(x[:, 0]),
        jnp.take(x, jnp.array([1, 11]), 1),  # NaN, where nothing is
        jnp.take_along_axis(x, order, 1),
        lax.dynamic_slice(x, (0, start, 0, 0), (1, 2, 2, 3)),
        lax.dynamic_update_slice(x, x[:, :1] * 2, (0, start, 0, 0)),
        lax.dynamic_update_slice(x, x[:, :1, :2] * 2, (0, 3, 1, 0)),
        jnp.roll(x, 1, 1),
        jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), "edge"),
        lax.pad(x, 1.0, ((0, 0, 0), (1, 2, 1), (0, -1, 2), (0, 0, 0))),
        jnp.tile(x, (1, 1, 2, 1)),
        jnp.split(x, [2, 3], 2)[1],
    )


def ordered(x):
    return (
        jnp.sort(x, -1),
        jnp.argsort(x, 1),
        lax.top_k(x, 2),
        jnp.median(x, (1, 2)),
        jnp.lexsort((x[:, 0, :, 0].round(), x[:, 0, :, 1].round())),
        jnp.cumsum(x, 1),
        lax.cumsum(x, 2, reverse=True),
        jnp.cumprod(x, 2),
        lax.cummax(x, 1),
    )


def mathematical(x):
    size = jnp.abs(x)
    return (
        jnp.log1p(size),
        jnp.log1p(1e-6 * size),
        jnp.expm1(x),
        jnp.expm1(1e-6 * x),
        jnp.arctan2(x, x + 0.5),
        jnp.cbrt(x),
        jnp.exp2(x),
        jax.nn.softplus(x),
        jax.nn.gelu(x, approximate=False),
        jnp.round(x * 3),
        lax.round(x * 2, lax.RoundingMethod.AWAY_FROM_ZERO),
        jnp.frexp(x),
        jnp.ldexp(x, 3),
        jnp.mod(x, 0.7),
        jnp.floor_divide((x * 9).astype(int), 4),
        (x * 9).astype(jnp.int8) * np.int8(77),  # wraps
        (x * 9).astype(int) >> 2,
        (x * 9).astype(int) << 2,
        lax.shift_right_logical((x * 9).astype(jnp.int32), 2),
        lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.uint32), jnp.float32),
        jnp.var(x, 1),
        jax.nn.logsumexp(x, 1),
        jnp.isfinite(x / jnp.round(x)),
        jnp.nan_to_num(x),
        lax.reduce_precision(x, 5, 10),
        lax.bitcast_convert_type(x, jnp.int32),
        lax.erfc(x),
        jnp.prod(x, 3),
        jnp.any(x > 1, 3),
    )


def products(x):
    kernel = np.ones((4, 3), np.float32)
    return (
        jnp.einsum("nhwc,nhwd->ncd", x, x),
        jnp.einsum("nhwc,dc->ndwh", x, kernel),
        jnp.einsum("nhwc,nhwc->n", x, x),
        jnp.einsum("nhwc,nhwd->nhwcd", x, x),
        x @ x.swapaxes(-1, -2),
        jnp.tensordot(x, x[0], ((3,), (2,))),
        lax.dot_general(
            (x * 9).astype(jnp.int8),
            kernel.astype(jnp.int8),
            (((3,), (1,)), ((), ())),
            preferred_element_type=jnp.int32,
        ),
    )


def controlled(x):
    rows = x.swapaxes(0, 1)

    def body(total, row):
        return total + row, (total * row).sum(-1)

    return (
        lax.scan(body, rows[0], rows),
        lax.scan(body, rows[0], rows, reverse=True),
        lax.fori_loop(0, 3, lambda i, c: c * 2 + i, x),
        lax.while_loop(
            lambda c: jnp.abs(c[1]).sum() < 1000,
            lambda c: (c[0] + 1, c[1] * 2 + x),
            (0, x),
        ),
        lax.switch(
            jnp.argmax(x[0, 0, 0]), [lambda x: x * 2, lambda x: x + 1, jnp.negative], x
        ),
        jax.checkpoint(jnp.sin)(x),
        jax.vmap(lambda x: jp.max_pool(x, (2, 2)))(x[:, None]),
    )


def sized(x):
    """What depends on the size of the batch."""
    return (
        x + jnp.arange(x.shape[0], dtype=x.dtype)[:, None, None, None],
        x.sum(0) / x.shape[0],
        x.reshape(-1, 3),
        jnp.concatenate([x, jnp.ones_like(x)], 0),
        jnp.zeros((2 * x.shape[0] + 1, 3)),
        x[1:],
        x[::2],
        jnp.arange(x.shape[0] // 2),
        jnp.arange(7 - x.shape[0] % 3),
        jax.grad(lambda x: (jp.max_pool(x, (2, 2)) ** 2).sum())(x),
    )


def convolved(x):
    layout = ("NHWC", "HWIO", "NHWC")
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=layout)
    kernel = draw(2, 3, 3, 6)
    return (
        conv(x, kernel, (2, 1), "SAME", rhs_dilation=(1, 2)),
        conv(x, kernel[:, :, :1], (1, 1), "VALID", feature_group_count=3),
        conv(x, kernel, (1, 1), ((1, 1), (1, 2)), lhs_dilation=(2, 3)),
        conv(x, kernel, (1, 1), ((1, 3), (2, 2)), lhs_dilation=(2, 2)),
        conv(x, kernel, (2, 1), ((1, 1), (1, 2)), lhs_dilation=(2, 3)),
        conv(x[:1], x.transpose(1, 2, 3, 0)[:2, :2], (1, 1), "SAME"),
    )


def folded(x):
    """Windows that no pool takes."""
    wide = dict(window_dilation=2, padding=1)
    where = np.indices((8, 7, 1)).sum(0) % 2 == 0  # some of each window
    return (
        lax.reduce_window(x, 1.0, lax.mul, (1, 3, 2, 1), (1, 2, 1, 1), "SAME"),
        lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 1, 1), (1, 1, 1, 1), "SAME", (1, 2, 1, 1)
        ),
        jp.max_pool_with_argmax(x, (2, 3), (2, 1), "SAME", where=where),
        jp.max_pool_with_argmax(x[:, :2], (2, 2), **wide),
        jp.avg_pool(x[:, :2], (2, 2), **wide),
        jp.sum_pool((x * 9).astype(jnp.int8), (2, 3), (2, 2), "SAME"),
    )


def test_functions_traced_before_are_traced_anew(tmp_path):
    f, x = jax.jit(lambda x: jp.max_pool(x, (2, 2), (2, 2))), draw(*IMAGE)
    before = str(jax.make_jaxpr(f)(x))
    assert "reduce_window" not in before
    found = to_onnx(f, x, out=tmp_path / "a.onnx", dynamic_batch=False)
    assert found.nodes == {**MAX, **TURNS}
    assert str(jax.make_jaxpr(f)(x)) == before


PROGRAMS = [
    folded,
    several,
    ordered,
    mathematical,
    products,
    controlled,
    sized,
    convolved,
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_models_are_made_of(program, tmp_path, relaxed):
    fixed = program is convolved  # the batch is a kernel's channels there
    found = to_onnx(
        program, draw(2, 8, 7, 3), out=tmp_path / "a.onnx", dynamic_batch=not fixed
    )
    x = draw(2 if fixed else 3, 8, 7, 3) * 1.5
    expected = jax.tree.leaves(jax.jit(program)(x))
    for a, e in zip(run(found.path, x), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@pytest.fixture
def relaxed():
    """Promotion as users have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", COMPOSED)
def test_what_no_pool_can_do_is_composed(name, tmp_path, relaxed):
    found = to_onnx(COMPOSED[name], draw(*IMAGE), out=tmp_path / "a.onnx")
    assert not target.pool_nodes(found.nodes)


def op_cases():
    early = representatives() - {"roi_align", "stochastic_pool"}  # slow to compile
    for case in typical():
        late = case.op.name not in early
        marks = [pytest.mark.full] if late else []
        yield pytest.param(case, id=case.op.name, marks=marks)


@pytest.mark.parametrize("case", list(op_cases()))
def test_every_op(case, tmp_path):
    dynamic = case.op.name != "segment_pool"  # an id for each row: how many is known
    fn, path = case.function(), tmp_path / "op.onnx"
    found = to_onnx(fn, case.input(), out=path, dynamic_batch=dynamic)
    x = case.input(seed=1)
    expected = jax.tree.leaves(jax.jit(fn)(x))
    for a, e in zip(run(found.path, x), expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_says_what_it_is(tmp_path):
    def blend(photo, weight):
        return {"mean": jp.avg_pool(photo, (2, 2)) * weight, "both": (photo, weight)}

    x = draw(*IMAGE)
    path = to_onnx(blend, x, x[:, :1, :1], out=tmp_path / "a.onnx").path
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.producer_version) == ("jaxpool", jp.__version__)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert "blend" in model.doc_string
    assert [i.name for i in model.graph.input] == ["photo", "weight"]
    names = ["output_both_0", "output_both_1", "output_mean"]
    assert [o.name for o in model.graph.output] == names
    dims = model.graph.output[2].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 8, 7, 3]


@pytest.mark.parametrize(
    ("fn", "lowest"),
    [
        (lambda x: jp.max_pool(x, (3, 3), (2, 2), "SAME"), 17),
        (lambda x: jp.avg_pool(x, (3, 3), window_dilation=2), 17),
        (jp.global_max_pool, 18),
        (lambda x: jp.min_pool(jnp.round(x).astype(jnp.int8), (2, 2)), 18),
    ],
)
def test_opsets(fn, lowest, tmp_path):
    def opset(**given):
        path = to_onnx(fn, draw(*IMAGE), out=tmp_path / "a.onnx", **given).path
        return onnx.load(path).opset_import[0].version

    assert opset() == lowest
    for asked in (18, 21, 23):
        assert opset(opset=asked) == asked
    if lowest == 18:
        with pytest.raises(ValueError, match="`opset` must be at least 18, which node"):
            opset(opset=17)


def test_batch_of_some_inputs(tmp_path):
    x, y = draw(2, 3), draw(3, 4)
    path = tmp_path / "a.onnx"
    found = to_onnx(jnp.matmul, x, y, out=path, dynamic_batch=(True, False))
    (product,) = run(found.path, np.concatenate([x, x]), y)
    np.testing.assert_allclose(product, np.concatenate([x, x]) @ y, rtol=1e-6)


def max_of(x):
    return jp.max_pool(x, (2, 2))


REFUSED = {
    "random": (
        lambda x: jp.stochastic_pool(x, (2, 2), key=jax.random.key(0)),
        draw(*IMAGE),
        "Pass `deterministic=True`, or call",
    ),
    "complex": (
        lambda x: jnp.abs(jnp.fft.fft(x)),
        draw(*IMAGE),
        "primitive `fft` of complex64.* has no rule; write it with other functions",
    ),
    "training": (
        CNN(nnx.Rngs(0)),
        draw(2, 16, 16, 3),
        r"call the model's eval\(\) first",
    ),
    "batch": (
        lambda x: x.reshape(6, -1),
        draw(2, 3),
        "does not take a batch of any size",
    ),
    "pooled batch": (lambda x: jp.median_pool(x, (2,)), draw(5, 3), "of any size"),
    "bfloat16": (
        max_of,
        jnp.asarray(draw(*IMAGE), jnp.bfloat16),
        "convert within `fn`",
    ),
    "NaN": (max_of, np.where(draw(*IMAGE) > 1, np.nan, 1), "ONNX disagrees with JAX"),
    "sizes in a rule": (
        lambda x: jnp.linalg.cholesky(x @ x.swapaxes(-1, -2)),
        draw(2, 3, 3),
        "`cholesky` of float32.* has no rule; write it with other functions",
    ),
    "split of the batch": (
        lambda x: jnp.split(x, x.shape[0]),
        draw(2, 3),
        "does not take a batch of any size. Fix the batch by `dynamic_batch=False`",
    ),
    "batch of one": (
        lambda x: jp.avg_pool(x, (2, 2)) * (len(x) == 2),
        draw(*IMAGE),
        "disagrees with JAX|does not take a batch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_and_writes_nothing(name, tmp_path, relaxed):
    fn, x, message = REFUSED[name]
    with pytest.raises(DeployError, match=message) as caught:
        to_onnx(fn, x, out=tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dynamic", [True, False])
def test_what_breaks_in_a_rule_is_one_line(dynamic, tmp_path, monkeypatch):
    def broken(g, eqn, *values):
        raise TypeError("unsupported\noperand")

    monkeypatch.setitem(target.RULES, "sin", type(target.RULES["sin"])(broken))
    said = r"primitive `sin` of float32.* cannot be written: TypeError: unsupported op"
    with pytest.raises(DeployError, match=said) as caught:
        onnx_model(jnp.sin, draw(3), dynamic_batch=dynamic)
    assert "\n" not in str(caught.value)
    assert ("fix its sizes by `dynamic_batch=False`" in str(caught.value)) == dynamic


def test_a_model_that_disagrees_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    to_onnx(max_of, draw(*IMAGE), out=path)
    before = path.read_bytes()
    wrong = target.RULES["reduce_window_min"]
    monkeypatch.setitem(target.RULES, "reduce_window_max", wrong)
    with pytest.raises(DeployError, match="disagrees with JAX: output 0 differs"):
        to_onnx(max_of, draw(*IMAGE), out=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_second_batch_is_compared_too(tmp_path, monkeypatch):
    """What is right for the examples alone is not written."""
    rule = target.RULES["dim_as_value"]
    two = target.onnx_control.constant(np.int32(2))
    wrong = type(rule)(lambda g, eqn: two, "never")
    monkeypatch.setitem(target.RULES, "dim_as_value", wrong)
    with pytest.raises(DeployError, match="disagrees"):
        to_onnx(lambda x: x * x.shape[0], draw(2, 3), out=tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_an_onnxruntime_that_refuses_is_quoted(tmp_path, monkeypatch):
    rule = type(target.RULES["sin"])
    wrong = rule(lambda g, eqn, x: g.value(g.node("Sin", g.tensor(x), to=1), x))
    monkeypatch.setitem(target.RULES, "sin", wrong)
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    with pytest.raises(DeployError, match="does not run the model"):
        to_onnx(jnp.sin, draw(3), out=tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_arguments():
    x = draw(*IMAGE)
    with pytest.raises(ValueError, match="must be at least one example array"):
        onnx_model(max_of)
    with pytest.raises(ValueError, match="`fn` must return at least one array"):
        onnx_model(lambda x: None, x)
    with pytest.raises(ValueError, match="must have one batch size, at least 1"):
        onnx_model(jnp.matmul, draw(2, 3), draw(3, 4))
    with pytest.raises(ValueError, match="`opset` must be at least 17; got 11"):
        onnx_model(max_of, x, opset=11)
    with pytest.raises(ValueError, match="one entry for each of the 1 inputs"):
        onnx_model(max_of, x, dynamic_batch=(True, False))
    with pytest.raises(ValueError, match="must be False for an input without axes"):
        onnx_model(jnp.sin, np.float32(1), dynamic_batch=(True,))
    for shapes in ("b, h", "b, h, w, c, d", "b h w c", "2*b, h, w, 3", "b, 8, 8, 3", 3):
        with pytest.raises((ValueError, TypeError), match="`shapes` must"):
            onnx_model(max_of, x, shapes=shapes)
    with pytest.raises(ValueError, match="must have one n size, at least 1, on all"):
        onnx_model(max_of, x, shapes="b, n, n, 3")
    with pytest.raises(TypeError, match="`dynamic_batch` must be True or False"):
        onnx_model(jnp.sin, x, dynamic_batch=(1,))


def test_tolerance(tmp_path):
    x = draw(*IMAGE)
    f = jp.global_lse_pool
    error = to_onnx(f, x, out=tmp_path / "a.onnx").error
    assert 0 < error < 1e-6
    with pytest.raises(DeployError, match="0 is tolerated"):
        to_onnx(f, x, out=tmp_path / "b.onnx", tolerance=0)


def test_without_the_runtime_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="pip install 'jaxpool\\[onnx\\]'"):
        to_onnx(max_of, draw(*IMAGE), out=tmp_path / "a.onnx")
