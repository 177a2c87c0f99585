"""`jaxpool.deploy`: every file is run in its own runtime, and compared with JAX."""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import export, lax

import jaxpool
from jaxpool.__main__ import main
from jaxpool.compare.data import load
from jaxpool.deploy import DeployError, litert_model, to_litert, to_stablehlo
from jaxpool.deploy.agreement import check_agreement
from jaxpool.deploy.extremes import compare, tried
from jaxpool.deploy.functions import results

for module in ("litert_converter", "onnx", "onnxruntime"):
    pytest.importorskip(module)

import deploy_table  # noqa: E402

from jaxpool.deploy import to_onnx  # noqa: E402

X = np.random.default_rng(0).normal(size=(2, 8, 10, 3)).astype(np.float32)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def pool(x):
    return jaxpool.max_pool(x, (2, 2), (2, 2))


class Net(nnx.Module):
    """A small CNN with both native pools, and all that has a training mode."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = pool(nnx.relu(self.norm(self.first(x))))
        x = jaxpool.avg_pool(nnx.relu(self.second(x)), (3, 3), (2, 2), "SAME", False)
        return self.head(self.drop(jaxpool.global_avg_pool(x)))


@pytest.fixture(scope="module")
def trained():
    """The network after a few steps on real digits, with data to test it on."""
    data, model = load("digits"), Net(nnx.Rngs(0))
    # Not Adam: Optax's promotes dtypes, which is an error in these tests.
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, labels):
        def loss(model):
            logits = model(x)
            cost = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return cost.mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for i in range(60):
        part = slice(i % 10 * 128, i % 10 * 128 + 128)
        step(model, optimizer, data.x_train[part], data.y_train[part])
    model.eval()
    return model, data


# Agreement


@pytest.mark.parametrize(
    ("expected", "actual", "error"),
    [
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([0.0, 0.0], [0.0, 0.25], 0.25),
        ([np.nan, np.inf, -np.inf, 2.0], [np.nan, np.inf, -np.inf, 2.0], 0.0),
        ([3, 4], [3, 4], 0.0),
        ([True], [True], 0.0),
        ([2.0j], [1.0j], 0.5),
        (2.0, 1.0, 0.5),
        (np.zeros((0, 2)), np.zeros((0, 2)), 0.0),
    ],
    ids=str,
)
def test_agreement(expected, actual, error):
    assert check_agreement("There", [expected], [actual], 0.5) == error


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        ([1.0, -4.0], [4.0, -4.0], r"output 0 differs by 0.75 of .*\(0,\) it is 4.0"),
        ([1.0], [[1.0]], r"output 0 has the shape \(1, 1\), and JAX gives \(1,\)"),
        ([1.0], np.float32([1]), "has the dtype float32, and JAX gives float64"),
        ([np.nan], [0.0], "differs where nothing is tolerated; at .* JAX gives nan"),
        ([1.0], [np.nan], "differs where nothing is tolerated; .* it is nan"),
        ([np.inf], [-np.inf], "differs where nothing is tolerated"),
        ([100, 3], [100, 4], r"differs where nothing is tolerated; at \(1,\)"),
        ([True], [False], "differs where nothing is tolerated"),
    ],
    ids=str,
)
def test_disagreement(expected, actual, message):
    with pytest.raises(DeployError, match=f"^There.*{message}"):
        check_agreement("There", [np.array(expected)], [np.array(actual)], 0.5)


def test_disagreement_in_number():
    with pytest.raises(DeployError, match="1 outputs where JAX gives 2"):
        check_agreement("There", [1.0, 2.0], [1.0], 0.5)


# StableHLO


def test_stablehlo_is_read_and_called(trained, tmp_path):
    model, data = trained
    made = to_stablehlo(model, data.x_test[:2], out=tmp_path / "net", gradient=True)
    assert made.nodes["convolution"] >= 2
    assert made.error <= 64 * np.finfo(np.float32).eps
    contents = made.path.read_bytes()
    assert b".py" not in contents  # no names of this machine's files
    read = export.deserialize(bytearray(contents))
    assert set(read.platforms) == set(PLATFORMS)
    x = jnp.asarray(data.x_test[:5])
    np.testing.assert_allclose(read.call(x)[0], model(x), rtol=1e-5, atol=1e-5)
    total = lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2))(x)  # noqa: E731
    expected = total(model)
    np.testing.assert_allclose(
        total(lambda x: read.call(x)[0]), expected, rtol=1e-4, atol=1e-5
    )


def test_stablehlo_of_one_batch_size(tmp_path):
    out = tmp_path / "pool"
    apart = lambda x: jaxpool.median_pool(x, (2, 2), axis=(0, 1))  # noqa: E731
    with pytest.raises(DeployError, match="a batch of any size"):
        to_stablehlo(apart, X, out=out)
    to_stablehlo(apart, X, out=out, dynamic_batch=False, platforms=["cpu", "tpu"])
    read = export.deserialize(bytearray(out.read_bytes()))
    assert read.platforms == ("cpu", "tpu")
    np.testing.assert_array_equal(read.call(X)[0], apart(X))
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        read.call(X[:1])


def test_stablehlo_of_many_kinds(tmp_path):
    def fn(x, bias, k):
        return {"y": pool(x) + bias, "i": jnp.argmax(x, -1) + k}

    inputs = X.astype(jnp.bfloat16), jnp.bfloat16(2), np.int32(3)
    made = to_stablehlo(fn, *inputs, out=tmp_path / "fn", gradient=True)
    call = export.deserialize(bytearray(made.path.read_bytes())).call
    i, y = call(*inputs)
    np.testing.assert_array_equal(y, fn(*inputs)["y"])
    np.testing.assert_array_equal(i, fn(*inputs)["i"])


@pytest.mark.parametrize("wrong", ["value", "gradient", "batch"])
def test_stablehlo_refuses_what_disagrees(wrong, monkeypatch, tmp_path):
    usual = export.deserialize

    def broken(contents):
        read = usual(contents)

        @jax.custom_vjp
        def call(x):
            y = read.call(x)
            off = wrong == "value" or (wrong == "batch" and len(x) > 2)
            return [y[0] + jnp.float32(off)]

        scale = 1.01 if wrong == "gradient" else 1.0
        forward = lambda x: (call(x), x)  # noqa: E731
        call.defvjp(
            forward,
            lambda x, g: (jax.vjp(read.call, x)[1](g)[0] * jnp.float32(scale),),
        )
        return types.SimpleNamespace(call=call)

    out = tmp_path / "pool"
    out.write_text("what was there")
    monkeypatch.setattr(export, "deserialize", broken)
    with pytest.raises(DeployError, match="StableHLO disagrees with JAX: output 0"):
        to_stablehlo(pool, X, out=out, gradient=True)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["what was there"]


def test_in_training_mode(tmp_path):
    net = Net(nnx.Rngs(0))
    for write in (to_stablehlo, to_litert):
        with pytest.raises(DeployError, match=r"call the model's eval\(\) first"):
            write(net, np.zeros((2, 8, 8, 1), np.float32), out=tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_stablehlo_refusals(tmp_path):
    out = tmp_path / "f"
    with pytest.raises(ValueError, match="`platforms` must include 'cpu'"):
        to_stablehlo(pool, X, out=out, platforms=("tpu",))
    with pytest.raises(ValueError, match="`inputs` must be at least one"):
        to_stablehlo(pool, out=out)
    with pytest.raises(ValueError, match="`tolerance` must be a number, at least 0"):
        to_stablehlo(pool, X, out=out, tolerance=-1)
    out.write_text("")
    with pytest.raises(OSError, match="f/g"):
        to_stablehlo(pool, X, out=out / "g")


# LiteRT

MAX, AVG = "MAX_POOL_2D", "AVERAGE_POOL_2D"
TWICE = {"MUL": 2}  # halved and doubled, for the sake of -inf
FORMS = {
    "max": (pool, {MAX: 1, **TWICE}),
    "overlapping": (
        lambda x: jaxpool.max_pool(x, (3, 3), (2, 2), "SAME"),
        {MAX: 1, **TWICE},
    ),
    "padded": (
        lambda x: jaxpool.max_pool(x, (3, 3), (2, 2), ((0, 1), (1, 1))),
        {"PADV2": 1, MAX: 1, **TWICE},
    ),
    "min": (lambda x: jaxpool.min_pool(x, (2, 2), (2, 2)), {"SUB": 2, MAX: 1, **TWICE}),
    "mean": (lambda x: jaxpool.avg_pool(x, (2, 2), (2, 2)), {AVG: 1}),
    "mean, no padding counted": (
        lambda x: jaxpool.avg_pool(x, (3, 3), (2, 2), "SAME", False),
        {AVG: 1},
    ),
    "mean, padding counted": (
        lambda x: jaxpool.avg_pool(x, (3, 3), (2, 2), "SAME"),
        {"PAD": 1, AVG: 1},
    ),
    "mean, ceil mode": (
        lambda x: jaxpool.avg_pool(
            x, (3, 3), (2, 2), ((1, 1), (1, 1)), ceil_mode=True, axis=(1, 2)
        ),
        {"PAD": 1, AVG: 1, "MUL": 1},
    ),
    "sum": (lambda x: jaxpool.sum_pool(x, (2, 2), (2, 2)), {AVG: 1, "MUL": 1}),
    "Lp": (
        lambda x: jaxpool.lp_pool(x, (2, 2), (2, 2)),
        {"MUL": 2, AVG: 1, "SQRT": 1},
    ),
    "channels first": (
        lambda x: jaxpool.max_pool(x, (2, 2), (2, 2), axis=(2, 3)),
        {MAX: 1, **TWICE},
    ),
    "one axis": (
        lambda x: jaxpool.avg_pool(x, (3,), (2,), axis=1),
        {AVG: 1},
    ),
    "three axes": (
        lambda x: jaxpool.max_pool(x, (2, 2, 2), (2, 2, 2), axis=(1, 2, 3)),
        {MAX: 2, "MUL": 4},
    ),
    "dilated": (
        lambda x: jaxpool.max_pool(x, (2, 2), window_dilation=2),
        {"SLICE": 4, "MAXIMUM": 3},
    ),
    "not below 0": (lambda x: pool(nnx.relu(x)), {"RELU": 1, MAX: 1}),
    "whole": (jaxpool.global_avg_pool, {"MEAN": 1}),
    "largest of all": (jaxpool.global_max_pool, {MAX: 1, **TWICE}),
}


@pytest.mark.parametrize("name", FORMS)
def test_litert_nodes(name, tmp_path):
    fn, nodes = FORMS[name]
    x = X[..., :1].repeat(2, -1) if name == "three axes" else X
    made = to_litert(fn, x, out=tmp_path / "f.tflite")
    # How axes come to where these want them is up to the converter.
    arrange = ("TRANSPOSE", "RESHAPE")
    assert {k: n for k, n in made.nodes.items() if k not in arrange} == nodes
    assert made.error < 1e-6
    (y,) = litert_model.run(made.path.read_bytes(), "serving_default", [x])
    np.testing.assert_allclose(y, fn(x), rtol=1e-5, atol=1e-6)


def test_litert_float(trained, tmp_path):
    model, data = trained
    x = data.x_test[:64]
    sizes = {}
    for dtype, bound in (("float32", 1e-5), ("float16", 5e-3)):
        made = to_litert(model, x, out=tmp_path / dtype, dtype=dtype)
        assert {MAX, AVG, "MEAN", "FULLY_CONNECTED"} <= made.nodes.keys()
        assert (made.error == 0) < (made.error < bound)
        sizes[dtype] = made.path.stat().st_size
        (logits,) = litert_model.run(made.path.read_bytes(), "serving_default", [x])
        same = np.argmax(logits, -1) == np.argmax(model(x), -1)
        assert same.mean() >= 0.98
    assert sizes["float16"] < sizes["float32"]


def test_litert_int8(trained, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model, data = trained
    batches = [data.x_train[i : i + 64] for i in (0, 64, 128)]
    out = tmp_path / "net.tflite"
    made = to_litert(model, batches[0], out=out, dtype="int8", calibration=batches)
    assert {MAX, AVG, "MEAN", "FULLY_CONNECTED"} <= made.nodes.keys()
    assert not any("float32" in kind for kind in made.nodes)
    assert 0 < made.error < 0.1
    runner = Interpreter(str(out)).get_signature_runner()
    assert runner.get_input_details()["input_0"]["dtype"] == np.int8
    assert runner.get_output_details()["output_0"]["dtype"] == np.int8
    same, right = [], []
    for i in (0, 64, 128):
        x, labels = data.x_test[i : i + 64], data.y_test[i : i + 64]
        (logits,) = litert_model.run(out.read_bytes(), "serving_default", [x])
        classes = np.argmax(model(x), -1)
        same.append(np.argmax(logits, -1) == classes)
        right.append(classes == labels)
    assert np.mean(right) > 0.6  # it has learned
    assert np.mean(same) > 0.95


def test_litert_of_several_inputs_and_outputs(tmp_path):
    def fn(x, scale):
        return {"pooled": pool(x) * scale, "mean": jaxpool.global_avg_pool(x)}

    scale = np.full((1, 1, 1, 3), 2, np.float32)
    made = to_litert(fn, X, scale, out=tmp_path / "f")
    mean, pooled = litert_model.run(
        made.path.read_bytes(), "serving_default", [X, scale]
    )
    np.testing.assert_allclose(pooled, pool(X) * 2, rtol=1e-6)
    np.testing.assert_allclose(mean, X.mean((1, 2)), rtol=1e-5, atol=1e-6)
    batches = [(X, scale), (X + 1, scale / 2)]
    made = to_litert(
        fn, X, scale, out=tmp_path / "g", dtype="int8", calibration=batches
    )
    assert made.error < 0.03


def test_litert_whatever_was_compiled(tmp_path):
    compiled = jax.jit(pool)
    compiled(X)
    assert to_litert(compiled, X, out=tmp_path / "f").nodes == {MAX: 1, **TWICE}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_litert_refuses_what_disagrees(dtype, monkeypatch, tmp_path):
    usual = litert_model.run
    perturbed = lambda *args: [y * np.float32(1.001) for y in usual(*args)]  # noqa: E731
    monkeypatch.setattr(litert_model, "run", perturbed)
    out = tmp_path / "f"
    out.write_text("what was there")
    more = {} if dtype == "float32" else {"calibration": [X], "tolerance": 1e-4}
    with pytest.raises(DeployError, match="LiteRT disagrees with JAX: output 0"):
        to_litert(pool, X, out=out, dtype=dtype, **more)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["what was there"]


def test_litert_survives_a_crash(monkeypatch, tmp_path):
    script = tmp_path / "crash.py"
    script.write_text("import os; os.abort()")
    monkeypatch.setattr(litert_model, "__file__", str(script))
    with pytest.raises(DeployError, match="refuses the model in int8: it ends the"):
        to_litert(pool, X, out=tmp_path / "f", dtype="int8", calibration=[X])
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            lambda x: lax.fori_loop(0, 3, lambda i, x: x * 2, x),
            "the converter writes no loops",
        ),
        (lambda x: jnp.sort(x), "its runtime refuses the model: .*STABLEHLO_SORT"),
        (
            lambda x: jnp.linalg.svd(x[0, :, :, 0])[1],
            "the converter knows no .*, which belongs to XLA",
        ),
        (
            lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO),
            "the converter knows no round_nearest_afz of f32",
        ),
    ],
)
def test_litert_says_what_it_cannot(fn, message, tmp_path):
    with pytest.raises(DeployError, match=f"^LiteRT: {message}"):
        to_litert(fn, X, out=tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dtype="int4"), "`dtype` must be one of float32, float16, int8"),
        (dict(dtype="int8"), "`calibration` must be batches of real data, for int8"),
        (dict(dtype="int8", calibration=[]), "`calibration` must be batches of real"),
        (dict(calibration=[X]), "`calibration` must be left out, except for int8"),
        (dict(dtype="int8", calibration=[X[:1]]), "must be made of batches with the"),
        (dict(tolerance="little"), "`tolerance` must be a number, at least 0"),
    ],
    ids=str,
)
def test_litert_refusals(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_litert(pool, X, out=tmp_path / "f", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("write", "module", "extra"),
    [
        (to_stablehlo, "flatbuffers", "stablehlo"),
        (to_litert, "ai_edge_litert.interpreter", "litert"),
        (to_litert, "litert_converter", "litert"),
    ],
)
def test_missing_package(write, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"'jaxpool.{extra}.'"):
        write(pool, X, out=tmp_path / "f")


def test_changed_converter(monkeypatch, tmp_path):
    from litert_converter.mlir.dialects import stablehlo

    monkeypatch.delattr(stablehlo, "deserialize_portable_artifact")
    with pytest.raises(RuntimeError, match="does not know this version of litert-con"):
        to_litert(pool, X, out=tmp_path / "f")


# The command

MODEL = """
import jax, jaxpool
from flax import nnx

class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(1, rngs=rngs)
    def __call__(self, x):
        return jaxpool.max_pool(self.norm(x), (2, 2), (2, 2))

def make():
    return Net(nnx.Rngs(0))

def pool(x):
    return jaxpool.avg_pool(x, (2, 2), (2, 2))

def fails():
    raise KeyError("weights")

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    x = np.random.default_rng(0).normal(size=(9, 6, 6, 1)).astype(np.float32)
    np.savez("real.npz", x=x)
    np.savez("uneven.npz", x=x, z=x[:2])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "file", "kind"),
    [
        ("make --to litert --input 1x6x6x1", "model.tflite", MAX),
        ("pool --to litert --examples real.npz --dtype int8", "model.tflite", AVG),
        ("pool --to stablehlo --examples real.npz --out a/b", "a/b", "add"),
        (
            "make --to stablehlo --input 2x6x6x1:float32 --static --gradient "
            "--platforms cpu,tpu",
            "model.stablehlo",
            "maximum",
        ),
        ("make --to onnx --input 2x6x6x1", "model.onnx", "MaxPool"),
        (
            "make --to onnx --input 2xh=6xw=6x1 --opset 21 --no-extremes",
            "model.onnx",
            "MaxPool",
        ),
        ("pool --to stablehlo --input 2xh=6xw=6x1", "model.stablehlo", "add"),
    ],
    ids=str,
)
def test_command(arguments, file, kind, folder, capsys):
    before = set(folder.iterdir())
    assert main(["deploy", *f"model.py:{arguments}".split()]) == 0
    shown = capsys.readouterr().out.splitlines()
    size = (folder / file).stat().st_size
    assert shown[0] == f"{file}: {size:,} bytes"
    assert re.fullmatch(rf"nodes: (.*, )?\d+ {kind}(, .*)?", shown[1])
    assert re.match(r"largest difference to JAX: [\d.e-]+ of the largest", shown[2])
    new = {p.name for p in set(folder.iterdir()) - before} - {"__pycache__"}
    assert new == {file.partition("/")[0]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model.py:nothing --to onnx --input 1x2", "must name a function of arrays"),
        ("model.py:number --to onnx --input 1x2", "must name a function of arrays"),
        ("model.py --to onnx --input 1x2", "must be FILE.py:NAME, of a file that"),
        ("other.py:f --to onnx --input 1x2", "must be FILE.py:NAME, of a file that"),
        ("model.py:fails --to onnx --input 1x2", "model.py:fails fails: KeyError: 'we"),
        ("model.py:pool --to litert", "`input` must be given, unless `examples`"),
        ("model.py:pool --to litert --input 1xb", "must be sizes and a dtype, as 1x28"),
        ("model.py:pool --to litert --input 0x6x6x1", "must be sizes and a dtype"),
        ("model.py:pool --to litert --input 1x2:f", "must be sizes and a dtype|pool"),
        ("model.py:pool --to litert --input 1x6x6x1 --static", "`static` is for"),
        ("model.py:pool --to onnx --gradient --input 1x2", "is for stablehlo only"),
        ("model.py:pool --to litert --input 1xh=6x6x1", "is for stablehlo and onnx"),
        ("model.py:pool --to onnx --input 1xh=x6x1", "must be sizes and a dtype"),
        ("model.py:pool --to onnx --input 1x2=6x6x1", "of a name, a size or _ for"),
        ("model.py:pool --to onnx --input 1xh=6xh=7x1", "must have one h size, at"),
        (
            "model.py:pool --to onnx --input 1x6x6x1 --opset 16",
            "`opset` must be at least 17; got 16",
        ),
        (
            "model.py:pool --to litert --dtype int8 --input 1x6x6x1",
            "`examples` must be a file with real data, for int8",
        ),
        (
            "model.py:pool --to litert --examples no.npz",
            "must be an .npz file (No such",
        ),
        ("model.py:pool --to litert --examples model.py", "must be an .npz file"),
        ("model.py:pool --to litert --examples uneven.npz", "same number of examples"),
        (
            "model.py:pool --to litert --examples real.npz --input 1x7x7x1",
            "must hold what `input` says",
        ),
        (
            "model.py:pool --to litert --examples real.npz --input 10x6x6x1",
            "must hold at least one batch of 10",
        ),
        (
            "model.py:pool --to litert --input 1x6x6x1 --tolerance 0",
            "LiteRT disagrees with JAX",
        ),
    ],
    ids=str,
)
def test_command_refuses(arguments, message, folder, capsys):
    before = {p.name for p in folder.iterdir()}
    assert main(["deploy", *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("jaxpool deploy: ")
    assert any(part in shown.err for part in message.split("|"))
    assert {p.name for p in folder.iterdir()} - {"__pycache__"} == before


# Extreme values


def names(*few):
    """All ops, most of them with --full alone."""
    late = pytest.mark.full
    marks = {name: [] if name in few else [late] for name in deploy_table.CASES}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


@pytest.mark.parametrize("form", ["reduce_window", "planes"])
@pytest.mark.parametrize("name", names("max_pool", "lse_pool", "sequence_pool"))
def test_plain_formulas_at_extremes(name, form):
    """Files are compared with plain formulas there, so these have to be right."""
    case = deploy_table.CASES[name]
    fn, x = case.function(), np.asarray(case.input())
    for what, inputs, plain in tried(fn, [x], form):
        compare("plain", what, results(fn, inputs), plain, 2e-5)


def masked(x, mask):
    return jaxpool.global_max_pool(jnp.where(mask, x, -jnp.inf), axis=1)


MASK = np.ones((2, 8, 10, 3), bool)
EXTREME = {
    "line": (lambda x: jaxpool.max_pool(x[:, 0], (3,), (2,), "SAME"), X),
    "image": (lambda x: jaxpool.max_pool(x, (3, 3), (2, 2), "SAME"), X),
    "volume": (lambda x: jaxpool.max_pool(x[..., None], (2, 2, 2), padding=1), X),
    "dilated": (
        lambda x: jaxpool.max_pool(x, (2, 2), padding=1, window_dilation=2),
        X,
    ),
    "four axes": (
        lambda x: jaxpool.max_pool(
            x.reshape(-1, 2, 4, 5, 2, 3), (2,) * 4, axis=(1, 2, 3, 4)
        ),
        X,
    ),
    "minimum": (lambda x: jaxpool.min_pool(x, (3, 2), (2, 1), "SAME"), X),
    "whole": (jaxpool.global_max_pool, X),
    "sequence": (lambda x: jaxpool.sequence_pool(x[:, 0], mode="max"), X),
    "adaptive": (lambda x: jaxpool.adaptive_max_pool(x, (3, 4)), X),
    "Flax": (lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"), X),
    "mask": (masked, X, MASK),
    "masked windows": (
        lambda x, mask: jaxpool.max_pool(x, (2, 2), (2, 2), where=mask),
        X,
        MASK,
    ),
    "masked mean": (
        lambda x, mask: jaxpool.avg_pool(x, (2, 2), (2, 2), where=mask),
        X,
        MASK,
    ),
    "softmax": (
        lambda x, mask: jax.nn.softmax(jnp.where(mask, x, -jnp.inf), where=mask),
        X,
        MASK,
    ),
    "labels": (lambda x: jnp.argmax(jaxpool.global_avg_pool(x), -1), X),
    "integers": (lambda x: (x // 2, x * 77, jnp.sum(x, 1)), X.astype(np.int32)),
}


@pytest.mark.parametrize("write", [to_onnx, to_litert])
@pytest.mark.parametrize("name", EXTREME)
def test_extremes(name, write, tmp_path):
    fn, *inputs = EXTREME[name]
    write(fn, *inputs, out=tmp_path / "f")
    assert list(tried(fn, inputs, "reduce_window"))


@pytest.mark.parametrize(
    ("write", "module", "name", "broken"),
    [
        (to_onnx, "onnx_pools", "_no_minus_infinity", lambda *_: True),
        (to_litert, "litert", "_with_infinity", lambda fn: fn),
    ],
)
def test_extremes_that_disagree(write, module, name, broken, tmp_path, monkeypatch):
    monkeypatch.setattr(f"jaxpool.deploy.{module}.{name}", broken)
    line = lambda x: jaxpool.max_pool(x[:, 0], (3,), (2,), padding=1)  # noqa: E731
    out = tmp_path / "f"
    with pytest.raises(
        DeployError, match=r"is -3.4.*JAX gives -inf, where inp"
    ) as caught:
        write(line, X, out=out)
    assert str(caught.value).endswith(
        "`extremes=False` leaves this out, if inputs never are."
    )
    assert not out.exists()
    write(line, X, out=out, extremes=False)


@pytest.mark.parametrize(
    ("fn", "doubtful"),
    [
        (lambda x: jnp.argmax(jnp.log(x), -1), {"NaN", "-inf", "the lowest number"}),
        (lambda x: jnp.where(jnp.isfinite(x), x, 0), set()),
        (
            lambda x: (x[:, :1] + x[:, 1:]) / 2,
            {"the lowest number", "the highest number"},
        ),
        (lambda x: x.astype(jnp.int32), None),
        (lambda x: lax.while_loop(lambda x: x.sum() > 9, lambda x: x / 2, x), None),
    ],
)
def test_only_what_is_defined_is_tried(fn, doubtful):
    seen = {what for what, *_ in tried(fn, [X], "reduce_window")}
    assert (doubtful is None and not seen) or (seen and not doubtful & seen)


# The table

FEW = ("max_pool", "avg_pool")


def test_table_has_no_empty_cell():
    rows = deploy_table.rows()
    assert list(rows) == list(deploy_table.CASES)
    for row in rows.values():
        cells = [cell.strip() for cell in row.replace("\\|", "").split("|")[2:-1]]
        assert len(cells) == len(deploy_table.WRITERS)
        assert all(cells)
    assert deploy_table.TABLE.read_text() == deploy_table.page(rows)


@pytest.mark.parametrize(
    "name",
    names(*FEW),
)
def test_table_holds(name):
    found = deploy_table.cells(deploy_table.CASES[name])
    assert deploy_table.rows()[name] == deploy_table.line(name, found)
