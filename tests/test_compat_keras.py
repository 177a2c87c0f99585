"""Keras's pools: by hand, and live against Keras where it is installed."""

import functools
import inspect
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import bins, element_mean, line, maximum, over_windows

import jaxpool
import jaxpool.compat.flax
from jaxpool.compat import keras as compat
from jaxpool.explain import explain

pytestmark = pytest.mark.usefixtures("quick_compilation")

os.environ.setdefault("KERAS_BACKEND", "jax")

# Sums of at most 27 float32 numbers around 1, in another order.
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
equal = np.testing.assert_array_equal

FORMATS = ["channels_last", "channels_first"]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def laid(x, data_format):
    return x if data_format == "channels_last" else np.moveaxis(x, -1, 1)


@pytest.fixture
def keras():
    """Keras on its JAX backend, with the promotion and the keys that it needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras runs on another backend")
    jax.config.update("jax_legacy_prng_key", "allow")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield keras
    jax.config.update("jax_legacy_prng_key", "error")
    compat.restore()


# Without Keras.


def test_signatures():
    pools = "(inputs, pool_size, strides=None, padding='valid', data_format=None)"
    adaptive = "(inputs, output_size, data_format=None)"
    expected = {
        "max_pool": pools,
        "average_pool": pools,
        "adaptive_max_pool": adaptive,
        "adaptive_average_pool": adaptive,
    }
    for name, signature in expected.items():
        ours = inspect.signature(getattr(compat, name))
        bare = [p.replace(annotation=p.empty) for p in ours.parameters.values()]
        assert str(inspect.Signature(bare)) == signature


WINDOWS = [
    # shape, pool_size, strides, padding
    ((2, 9, 3), 3, None, "valid"),
    ((2, 9, 3), (2,), 3, "same"),
    ((1, 7, 6, 2), 2, None, "same"),
    ((1, 7, 6, 2), (3, 2), (1, 2), "VALID"),
    ((1, 4, 5, 4, 2), 2, (2, 1, 2), "Same"),
]


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_windows(case, data_format):
    shape, pool_size, strides, padding = case
    n = len(shape) - 2
    window = (pool_size,) * n if isinstance(pool_size, int) else pool_size
    steps = window if strides is None else strides
    steps = (steps,) * n if isinstance(steps, int) else steps
    sizes = zip(shape[1:-1], window, steps, strict=True)
    lines = [line(size, k, s, padding.upper()) for size, k, s in sizes]
    x = draw(*shape)
    for op, rule in ((compat.max_pool, maximum), (compat.average_pool, element_mean)):
        expected = over_windows(rule, x, lines, range(-1 - n, -1))
        y = op(laid(x, data_format), pool_size, strides, padding, data_format)
        close(y, laid(expected, data_format))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "output_size"),
    [((2, 7, 3), 7), ((1, 14, 9, 2), (7, 14)), ((1, 3, 4, 5, 2), 2)],
)
def test_bins(shape, output_size, data_format):
    n = len(shape) - 2
    sizes = (output_size,) * n if isinstance(output_size, int) else output_size
    lines = [bins(size, out) for size, out in zip(shape[1:-1], sizes, strict=True)]
    x = draw(*shape)
    for op, rule in (
        (compat.adaptive_max_pool, maximum),
        (compat.adaptive_average_pool, element_mean),
    ):
        expected = over_windows(rule, x, lines, range(-1 - n, -1))
        y = op(laid(x, data_format), output_size, data_format)
        close(y, laid(expected, data_format))


X = np.zeros((1, 4, 4, 2), np.float32)
WRONG = [
    ("max_pool", (X, 0), "pool_size"),
    ("max_pool", (X, 5), "pool_size"),
    ("average_pool", (X, (2, 2, 2)), "pool_size"),
    ("average_pool", (X, 2.5), "pool_size"),
    ("average_pool", (X, 2, 0), "strides"),
    ("max_pool", (X, 2, (1,)), "strides"),
    ("max_pool", (X, 2, 1, "SAME_LOWER"), "padding"),
    ("average_pool", (X, 2, 1, 1), "padding"),
    ("max_pool", (X, 2, 1, "same", "NHWC"), "data_format"),
    ("max_pool", (X[0, 0], 2), "inputs"),
    ("max_pool", (X * 1j, 2), "inputs"),
    ("max_pool", ("x", 2), "inputs"),
    ("adaptive_max_pool", (X, 0), "output_size"),
    ("adaptive_average_pool", (X, (2,)), "output_size"),
    ("adaptive_average_pool", (X, None), "output_size"),
    ("adaptive_max_pool", (X, 2, "last"), "data_format"),
]


@pytest.mark.parametrize(("name", "arguments", "argument"), WRONG)
def test_errors(name, arguments, argument):
    with pytest.raises((ValueError, TypeError)) as raised:
        getattr(compat, name)(*arguments)
    message = str(raised.value)
    assert message.startswith(f"`{name}`: `{argument}` "), message
    assert "; got " in message


def layer_like(name, **config):
    """What `convert` reads of a layer: its class's name and its configuration."""
    config = {"data_format": "channels_last", **config}
    return type(name, (SimpleNamespace,), {})(get_config=lambda: config)


def test_convert_refuses_what_it_does_not_know():
    for name in ("MaxPooling4D", "MyMaxPooling2D", "Conv2D", "UpSampling2D"):
        with pytest.raises(TypeError, match=f"`convert`: `layer` .* got '{name}'"):
            compat.convert(layer_like(name))
    with pytest.raises(TypeError, match="`layer`"):
        compat.convert("MaxPooling2D")
    with pytest.raises(ValueError, match="`framework` must be 'nnx' or 'linen'"):
        compat.convert(layer_like("GlobalMaxPooling1D", keepdims=True), "torch")


def test_convert_without_keras():
    layer = layer_like("AveragePooling1D", pool_size=(3,), strides=(2,), padding="same")
    x = jnp.arange(5.0).reshape(1, 5, 1)
    for framework in ("nnx", "linen"):
        module = compat.convert(layer, framework)
        assert type(module).__module__ == f"jaxpool.{framework}"
        y = module(x) if framework == "nnx" else module.apply({}, x)
        equal(y[0, :, 0], [0.5, 2.0, 3.5])


def test_only_use_imports_keras():
    code = (
        "import sys, jax.numpy as jnp, jaxpool.compat.keras as c;"
        "c.max_pool(jnp.ones((1, 4, 1)), 2); print('keras' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


# With Keras.


def pairs(keras):
    """Each function of Keras and its adapter."""
    names = ["max_pool", "average_pool", "adaptive_max_pool", "adaptive_average_pool"]
    return [(getattr(keras.ops, name), getattr(compat, name)) for name in names]


def test_signatures_are_those_of_keras(keras):
    for theirs, ours in pairs(keras):
        kept = [inspect.signature(f).parameters.values() for f in (theirs, ours)]
        for their, our in zip(*kept, strict=True):
            fields = (our.name, our.kind, our.default)
            assert (their.name, their.kind, their.default) == fields


def test_data_format_is_what_keras_is_set_to(keras):
    x = draw(1, 4, 6, 2)
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        assert compat.max_pool(x, 2).shape == (1, 4, 3, 1)
        assert compat.max_pool(x, 2, data_format="channels_last").shape == (1, 2, 3, 2)
    finally:
        keras.config.set_image_data_format(before)
    assert compat.max_pool(x, 2).shape == (1, 2, 3, 2)


def value_and_gradient(op, x, *arguments):
    y, pullback = jax.vjp(lambda x: op(x, *arguments), x)
    return y, *pullback(jnp.asarray(draw(*y.shape, seed=1)))


@pytest.mark.parametrize(
    ("case", "data_format"),
    [*zip(WINDOWS[2:], [*FORMATS, "channels_last"], strict=True)],
)
def test_live_windows(keras, case, data_format):
    shape, pool_size, strides, padding = case
    strides = pool_size if strides is None else strides
    x = jnp.asarray(laid(draw(*shape), data_format))
    for theirs, ours in pairs(keras)[:2]:
        arguments = (x, pool_size, strides, padding, data_format)
        expected = value_and_gradient(theirs, *arguments)
        jax.tree.map(close, value_and_gradient(ours, *arguments), expected)


@pytest.mark.parametrize(
    ("shape", "size", "data_format"),
    [((2, 9, 3), 4, "channels_last"), ((1, 8, 6, 2), (3, 6), "channels_first")],
)
def test_live_bins(keras, shape, size, data_format):
    x = jnp.asarray(laid(draw(*shape), data_format))
    for theirs, ours in pairs(keras)[2:]:
        expected = value_and_gradient(theirs, x, size, data_format)
        jax.tree.map(close, value_and_gradient(ours, x, size, data_format), expected)


def layers(keras):
    """A layer of every class, over `[2, S..., 3]`."""
    for n, kind in itertools.product((1, 2, 3), ("Max", "Average")):
        window = {"pool_size": (2, 3, 2)[:n], "padding": "same"}
        yield n, f"{kind}Pooling{n}D", {**window, "strides": (1, 2, 2)[:n]}
        yield n, f"{kind}Pooling{n}D", {"pool_size": 2}
        yield n, f"Global{kind}Pooling{n}D", {}
        yield n, f"Global{kind}Pooling{n}D", {"keepdims": True}
        yield n, f"Adaptive{kind}Pooling{n}D", {"output_size": (2, 4, 3)[:n]}


@pytest.mark.parametrize("data_format", FORMATS)
def test_every_layer_converts(keras, data_format):
    checked = 0
    for n, name, config in layers(keras):
        if not hasattr(keras.layers, name):  # adaptive layers are recent
            continue
        layer = getattr(keras.layers, name)(data_format=data_format, **config)
        x = jnp.asarray(laid(draw(2, *(6, 5, 4)[:n], 3), data_format))
        expected = layer(x)
        close(compat.convert(layer)(x), expected, err_msg=name)
        close(compat.convert(layer, "linen").apply({}, x), expected, err_msg=name)
        checked += 1
    assert checked >= 24


def test_a_mask(keras):
    layer = keras.layers.GlobalAveragePooling1D()
    x, mask = draw(2, 5, 3), np.arange(5) < np.array([[2], [4]])
    y = compat.convert(layer)(jnp.asarray(x), where=mask[..., None])
    close(y, layer(x, mask=mask))


# Keras itself.


def is_on():
    """Whether Keras's functions trace to jaxpool's windows."""
    from keras.src.backend.jax import nn

    traced = jax.make_jaxpr(lambda x: nn.max_pool(x, 2, 2))(jnp.ones((1, 4, 1)))
    return "reduce_window" not in str(traced)


def test_a_model_gives_the_same(keras):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((12, 12, 2)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(3, 2, padding="same"),
            keras.layers.AveragePooling2D(2, 1, padding="same"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(3),
        ]
    )
    x = jnp.asarray(draw(2, 12, 12, 2))
    weights = [w.value for w in model.trainable_variables]

    def loss(weights, x):
        return (model.stateless_call(weights, [], x)[0] ** 2).sum()

    def run():
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(weights, x)

    theirs = run()
    with compat.use():
        assert is_on()
        ours = run()
    assert not is_on()
    jax.tree.map(functools.partial(close, rtol=1e-5, atol=1e-5), ours, theirs)


def test_a_model_that_has_predicted_before(keras):
    if not hasattr(keras.layers, "AdaptiveAveragePooling1D"):
        pytest.skip("adaptive layers are recent")
    pool = keras.layers.AdaptiveAveragePooling1D(7)
    model = keras.Sequential([keras.layers.Input((7, 1)), pool])
    x = draw(1, 7, 1)
    model.predict(x, verbose=0)
    with compat.use():
        equal(model.predict(x, verbose=0), x)


def test_use_and_restore(keras):
    assert not is_on()
    with compat.use() as outer:
        with compat.use():
            assert is_on()
        assert is_on()
    assert not is_on()
    compat.use()
    outer.restore()
    assert is_on()
    compat.restore()
    assert not is_on()


def test_a_model_that_turns_it_on_while_it_is_explained(keras):
    def model(x):
        compat.use()
        with jaxpool.compat.flax.use():
            return keras.ops.max_pool(x, 2)

    explanation = explain(model, (1, 4, 4, 1))
    assert [e.op for e in explanation.layers] == ["max_pool"]
    assert is_on()
    compat.use().restore()
    assert is_on()
    compat.restore()
    assert not is_on()


def test_an_unknown_keras_is_refused(keras, monkeypatch):
    from keras.src.backend.jax import nn

    with monkeypatch.context() as patch:
        patch.delattr(nn, "adaptive_max_pool")
        with pytest.raises(RuntimeError, match="there is no `adaptive_max_pool`"):
            compat.use()
    with monkeypatch.context() as patch:
        patch.setattr(keras.backend, "backend", lambda: "torch")
        with pytest.raises(RuntimeError, match=r"must be 'jax' .* got 'torch'"):
            compat.use()
    assert not is_on()


def test_differences(keras):
    """What Keras gets wrong in numbers is right under `use`."""
    x = jnp.arange(14.0).reshape(1, 14, 1)
    halves = jnp.full((1, 4, 4, 1), 10000, "float16")
    with compat.use():
        equal(keras.ops.max_pool(x, 2)[0, :, 0], np.arange(1, 14, 2))
        equal(keras.ops.average_pool(x, 2)[0, :, 0], np.arange(0.5, 14, 2))
        y = keras.ops.adaptive_average_pool(x[:, :7], 7)
        equal(y, x[:, :7])
        y = jax.jit(lambda x: keras.ops.adaptive_max_pool(x, 7))(x)
        equal(y[0, :, 0], np.arange(1, 14, 2))
        assert keras.ops.average_pool(halves, 4, 1).item() == 10000
        assert keras.ops.max_pool(x, [2], [2]).shape == (1, 7, 1)
        with pytest.raises(ValueError, match="`max_pool`: `pool_size` leaves nothing"):
            keras.ops.max_pool(x, 15)
    for row in compat.DIFFERENCES:
        assert len(row) == 4
        assert all(isinstance(entry, str) for entry in row)


def test_the_tests_of_keras(keras):
    """Keras's own tests of its pools, which its wheel contains."""
    code = (
        "import sys, pytest, jaxpool.compat.keras as c; c.use();"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    folder = Path(keras.__file__).parent / "src"
    files = [str(folder / "layers/pooling"), str(folder / "ops/nn_test.py")]
    arguments = ["-q", "-k", "pool", "-p", "no:cacheprovider", "-c", os.devnull]
    root = Path(jaxpool.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments, *files],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.returncode == 0, run.stdout
    assert "skipped" not in run.stdout.splitlines()[-1]
