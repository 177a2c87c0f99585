"""`jaxpool compare`: end to end through the command, on a data set made here."""

import contextlib
import csv
import dataclasses
import doctest
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib.image import imread
from PIL import Image as Picture
from scipy import stats
from tensorboardX.proto.event_pb2 import Event

import jaxpool.compare.checkpoints
import jaxpool.compare.folders
import jaxpool.compare.run
from jaxpool.__main__ import main
from jaxpool._core.op import OPS
from jaxpool.compare import DEFAULT_METHODS, compare, restore, timing
from jaxpool.compare.config import FORM
from jaxpool.compare.data import Dataset, load
from jaxpool.compare.methods import Method, all_methods, choose, left_out
from jaxpool.compare.model import build
from jaxpool.compare.report import write_report
from jaxpool.compare.results import accuracies
from jaxpool.compare.settings import MODELS, Settings, UserError
from jaxpool.compare.training import (
    Program,
    State,
    can_go_side_by_side,
    compile_program,
    train,
)
from jaxpool.compare.verdict import conclusions, lessons, reference, verdicts
from jaxpool.compare.words import joint_ranks

TRAIN, TEST, BATCH, SEEDS = 64, 35, 16, 2
METHODS = all_methods()


def make_arrays():
    """Noise with a bright bar whose height tells the class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, 8, 8), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 3] += 100
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    return arrays


@pytest.fixture(scope="module", autouse=True)
def usual_promotion():
    """Optax multiplies integers and floats, which is not ours to forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module", autouse=True)
def one_block():
    """A model of one block, because the tests mostly wait for compilation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "small", (4,))
        yield


SCRIPT = """
import sys
from jaxpool.__main__ import main
from jaxpool.compare.settings import MODELS
MODELS["small"] = (4,)
sys.exit(main(sys.argv[1:]))
"""
"""`python -m jaxpool` with the fixture `one_block`."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **make_arrays())
    return path


def command(tiny, out, *more, methods="max,none"):
    options = {"data": tiny, "out": out, "methods": methods}
    options |= {"epochs": 1, "batch": BATCH, "seeds": SEEDS}
    return [
        "compare",
        *(f"--{name}={value}" for name, value in options.items()),
        *more,
    ]


def read(out):
    return json.loads((out / "results.json").read_text())


def runs(results):
    return {name: entry["runs"] for name, entry in results["methods"].items()}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a comparison that nothing interrupted; not to be changed."""
    out = tmp_path_factory.mktemp("finished")
    assert main(command(tiny, out)) == 0
    return out


def test_json_holds_everything(finished, tiny):
    results = read(finished)
    assert results["settings"] == {
        "data": str(tiny),
        "model": "small",
        "epochs": 1,
        "batch": BATCH,
        "lr": 5e-3,
    }
    assert results["environment"]["jax"] == jax.__version__
    assert results["environment"]["devices"] == jax.device_count()
    sizes = {"train": TRAIN, "test": TEST, "image": [8, 8, 1], "classes": 3}
    assert sizes.items() <= results["data"].items()
    assert list(results["methods"]) == ["max", "none"]
    for entry in results["methods"].values():
        assert [run["seed"] for run in entry["runs"]] == [0, 1]
        for run in entry["runs"]:
            assert run["accuracy"] * TEST == pytest.approx(
                round(run["accuracy"] * TEST)
            )
            assert np.isfinite(run["loss"])
        costs = entry["costs"]
        assert 0 < costs["inference_ms"]
        assert 0 < costs["train_step_ms"]
        assert 0 < costs["inference_bytes"] < costs["train_bytes"]
        assert costs["learned"] == 0
    # A 3x3 convolution from 1 to 4 channels, then a dense layer for 3 classes.
    convolution = 9 * 4 + 4
    parameters = {n: e["costs"]["parameters"] for n, e in results["methods"].items()}
    assert parameters["max"] == convolution + 4 * 4 * 4 * 3 + 3
    assert parameters["none"] == convolution + 8 * 8 * 4 * 3 + 3


def test_it_learns(tiny, tmp_path):
    results = compare(
        data=str(tiny), methods=["stride"], epochs=8, batch=8, seeds=1, out=tmp_path
    )
    assert results["methods"]["stride"]["runs"][0]["accuracy"] == 1


def test_markdown_ranks_the_methods(finished):
    lines = (finished / "results.md").read_text("utf-8").splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    methods, accuracies = [row[0] for row in table[2:]], [row[1] for row in table[2:]]
    results = runs(read(finished))
    for method, accuracy in zip(methods, accuracies, strict=True):
        mean = np.mean([run["accuracy"] for run in results[method]])
        assert accuracy == f"{100 * mean:.1f}"
    assert sorted(map(float, accuracies), reverse=True) == [*map(float, accuracies)]
    assert set(methods) == set(results)


def test_picture_is_drawn(finished):
    pixels = imread(finished / "results.png")
    height, width, _ = pixels.shape
    assert width > 1000
    assert height > 300
    rows_with_ink = np.any(pixels[..., :3] < 0.9, axis=(1, 2)).mean()
    assert rows_with_ink > 0.3


def test_nothing_else_is_left_in_the_folder(finished):
    names = {f"results.{kind}" for kind in ("json", "md", "html", "png")}
    assert {path.name for path in finished.iterdir()} == names


def test_table_and_progress_lines(finished, tiny, capfd):
    assert main(command(tiny, finished, "--resume")) == 0
    table = capfd.readouterr()
    assert "max" in table.out
    assert "training" in table.out
    assert table.err == ""  # nothing was left to do


def test_interrupt_then_resume(finished, tiny, tmp_path, monkeypatch, capfd):
    write = jaxpool.compare.run.write

    def write_and_interrupt(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    arguments = command(tiny, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(jaxpool.compare.run, "write", write_and_interrupt)
        assert main(arguments) == 130
    captured = capfd.readouterr()
    assert "max" in captured.out
    assert f"jaxpool {' '.join(arguments)} --resume" in captured.err
    kept = runs(read(tmp_path))
    assert {name: len(done) for name, done in kept.items()} == {"max": 1}

    assert main([*arguments, "--resume"]) == 0
    assert runs(read(tmp_path))["max"][0] == kept["max"][0]
    assert runs(read(tmp_path)) == runs(read(finished))


def test_kill_then_resume(finished, tiny, tmp_path):
    arguments = command(tiny, tmp_path)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments])
    while not (tmp_path / "results.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = runs(read(tmp_path))
    assert 0 < sum(map(len, kept.values())) < 2 * SEEDS

    assert main([*arguments, "--resume"]) == 0
    assert runs(read(tmp_path))["max"][: len(kept["max"])] == kept["max"]
    assert runs(read(tmp_path)) == runs(read(finished))


def test_resume_adds_methods_and_seeds(tiny, tmp_path, capfd):
    assert main(command(tiny, tmp_path, "--seeds=1", methods="max,stride")) == 0
    assert re.match(r"max: .* \(.* over 1 seeds\)\n", capfd.readouterr().err)
    before = read(tmp_path)["methods"]
    assert main(command(tiny, tmp_path, "--resume", methods="stride,none")) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["stride", "none"]
    after = read(tmp_path)["methods"]
    assert after["max"]["runs"] == before["max"]["runs"]
    assert after["stride"]["runs"][:1] == before["stride"]["runs"]
    for name in ("stride", "none"):
        assert [run["seed"] for run in after[name]["runs"]] == [0, 1]
    # Times compare only within one measurement, so all methods were timed anew.
    assert (
        after["max"]["costs"]["inference_ms"]
        != (before["max"]["costs"]["inference_ms"])
    )


def test_results_without_a_report_are_resumed(finished, tiny, tmp_path, capfd):
    """As they were saved before there was a baseline to choose."""
    results = read(finished)
    assert results.pop("report") == {"baseline": "max"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(command(tiny, tmp_path, "--resume", "--baseline=none")) == 0
    assert capfd.readouterr().err == ""
    assert read(tmp_path) == {**results, "report": {"baseline": "none"}}
    assert "| vs none |" in (tmp_path / "results.md").read_text("utf-8")


def error_line(arguments, capfd):
    """Returns what a refused command says, without `jaxpool compare: `."""
    assert main(arguments) == 2
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("jaxpool compare: ")
    return line.removeprefix("jaxpool compare: ")


def test_finished_work_is_not_overwritten(finished, tiny, capfd):
    before = (finished / "results.json").read_bytes()
    assert "pass --resume" in error_line(command(tiny, finished), capfd)
    assert (finished / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--lr=0.5", "lr was 0.005 and is 0.5"),
        ("--epochs=2", "epochs was 1 and is 2"),
        ("--batch=32", "batch was 16 and is 32"),
        ("--model=medium", "model was 'small' and is 'medium'"),
        ("--data=digits", "data was "),
    ],
)
def test_resume_refuses_other_settings(option, message, finished, tiny, capfd):
    line = error_line(command(tiny, finished, "--resume", option), capfd)
    assert message in line


def test_resume_refuses_other_images_under_the_same_name(
    finished, tiny, tmp_path, capfd
):
    results = read(finished)
    results["data"]["sha256"] = "other"
    (tmp_path / "results.json").write_text(json.dumps(results))
    line = error_line(command(tiny, tmp_path, "--resume"), capfd)
    assert "sha256 was 'other'" in line


def test_digest_sees_every_pixel(tiny, tmp_path):
    arrays = make_arrays()
    arrays["x_test"][-1, -1, -1] ^= 1
    path = tmp_path / "other.npz"
    np.savez(path, **arrays)
    summary, other = load(str(tiny)).summary(), load(str(path)).summary()
    assert {key for key in summary if summary[key] != other[key]} == {"sha256"}


@pytest.mark.parametrize("text", ["", '{"settings": {"da', "[]", '{"settings": {}}'])
def test_resume_refuses_broken_results(text, tiny, tmp_path, capfd):
    (tmp_path / "results.json").write_text(text)
    line = error_line(command(tiny, tmp_path, "--resume"), capfd)
    assert "results.json is not readable" in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--epochs=0", "`epochs` must be at least 1; got 0"),
        ("--batch=0", "`batch` must be at least 1; got 0"),
        ("--seeds=0", "`seeds` must be at least 1; got 0"),
        ("--lr=0", "`lr` must be positive and finite; got 0.0"),
        ("--lr=nan", "`lr` must be positive and finite; got nan"),
        ("--lr=inf", "`lr` must be positive and finite; got inf"),
        ("--model=huge", "`model` must be one of small, medium, large; got 'huge'"),
        ("--model=large", "`model` large needs images of at least"),
        ("--batch=66", "`batch` must be at most the number of training images, 64"),
        ("--data=cifar", "`data` must be mnist5k, digits, hf:NAME, an .npz file"),
        ("--data=no.npz", "`data` must be an existing file; got 'no.npz'"),
        ("--data=digits,cifar", "an .npz file or a folder of images; got 'cifar'"),
        ("--baseline=avg", "must be a method that is compared (max, none); got 'avg'"),
        ("--size=8", "`size` must go with a folder of images or hf:NAME"),
        ("--parallel-seeds=0", "`parallel_seeds` must be at least 1; got 0"),
        ("--log=/proc/no", "`log` must be a folder that can be written to"),
        ("--methods=maxx", "(did you mean max"),
        ("--methods=zzzz", "none, stride"),
        ("--methods=", "`methods` must be known"),
        ("--methods=roi_align", "must fit into the network (roi_align: needs boxes)"),
    ],
)
def test_bad_options(option, message, tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(MODELS, "large", (1, 1, 1, 1))
    assert message in error_line(command(tiny, tmp_path, option), capfd)
    assert not (tmp_path / "results.json").exists()


def test_out_that_is_a_file(tiny, capfd):
    assert "tiny.npz" in error_line(command(tiny, tiny), capfd)


def changed(**changes):
    return {**make_arrays(), **changes}


ARRAYS = make_arrays()
X, Y, X_TEST, Y_TEST = (
    ARRAYS[key] for key in ("x_train", "y_train", "x_test", "y_test")
)
BAD_ARRAYS = {
    "missing": ({"x_train": X, "y_train": Y}, "got 'none of the name x_test, y_test'"),
    "object": (changed(y_train=Y.astype(object)), "y_train cannot be read: Object"),
    "rank 2": (changed(x_train=X[0]), "x_train must have shape [N, H, W(, C)]"),
    "rank 5": (changed(x_test=X_TEST[..., None, None]), "x_test must have shape"),
    "empty": (changed(x_test=X_TEST[:0]), "x_test must not be empty; got (0, 8, 8)"),
    "int32": (changed(x_train=X.astype("i4")), "uint8 or floating; got 'int32'"),
    "text": (changed(x_train=X.astype(str)), "x_train must be uint8 or floating"),
    "nan": (changed(x_test=X_TEST * np.nan), "x_test must be finite; got '2240 NaN"),
    "inf": (changed(x_train=X * 1e300), "x_train must be finite"),
    "constant": (changed(x_train=X * 0), "x_train must not be constant; got 0.0"),
    "a tenth": (
        changed(x_train=np.full(X.shape, 0.1, "f4")),  # whose float32 mean is another
        "x_train must not be constant; got 0.1",
    ),
    "subnormal": (
        changed(x_train=X * np.float32(1e-41)),
        "x_train must have a standard deviation of at least float32's 1.2e-38; got 5",
    ),
    "outlier": (
        changed(x_train=X * 1e-30, x_test=X_TEST * 1e30),
        "x_test must fit into float32 when it is standardized; got '22",
    ),
    "beyond": (changed(x_train=X * 1e100), "x_train must be finite; got '4"),
    "float labels": (
        changed(y_train=Y * 1.0),
        "y_train must be integer; got 'float64'",
    ),
    "one-hot": (changed(y_test=np.eye(3, dtype=int)[Y_TEST]), "y_test must have shape"),
    "lengths": (changed(y_train=Y[1:]), "y_train must have shape (64,), a label for"),
    "from 1": (changed(y_train=Y + 1), "from 0 to n - 1, with n of at least 2; got [1"),
    "one class": (changed(y_train=Y * 0), "y_train must have every label from 0 to"),
    "unknown": (changed(y_test=Y_TEST + 1), "y_test must have labels from 0 to 2"),
    "negative": (changed(y_test=Y_TEST - 1), "from 0 to 2, as in y_train; got [-1]"),
    "shapes": (changed(x_test=X_TEST[:, 1:]), "x_train, (8, 8, 1); got (7, 8, 1)"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case, tmp_path):
    arrays, message = BAD_ARRAYS[case]
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_file(keep, tiny, tmp_path):
    path = tmp_path / "cut.npz"
    path.write_bytes(tiny.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"must be a whole \.npz archive"):
        load(str(path))


def test_damaged_file(tiny, tmp_path):
    path = tmp_path / "damaged.npz"
    contents = bytearray(tiny.read_bytes())
    contents[1000] ^= 255
    path.write_bytes(contents)
    with pytest.raises(UserError, match="x_train cannot be read: Bad CRC"):
        load(str(path))


def test_pixels_are_scaled_then_standardized(tmp_path):
    path = str(tmp_path / "scale.npz")
    np.savez(path, **make_arrays())
    from_uint8 = load(path)
    assert from_uint8.x_train.dtype == np.float32
    assert from_uint8.x_train.mean() == pytest.approx(0, abs=1e-5)
    assert from_uint8.x_train.std() == pytest.approx(1, abs=1e-5)
    expected = (X_TEST / 255 - (X / 255).mean()) / (X / 255).std()
    np.testing.assert_allclose(from_uint8.x_test[..., 0], expected, atol=1e-5)
    # uint8 and [0, 1] mean the same, even side by side.
    np.savez(path, **changed(x_test=X_TEST[..., None] / 255))
    np.testing.assert_allclose(load(path).x_test, from_uint8.x_test, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 1, 1000])
@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("f2", s) for s in (1e-3, 1)]
    + [("f4", s) for s in (1e-35, 1e-30, 1e-15, 1, 1e15, 1e22, 1e30, 1e33)]
    + [("f8", s) for s in (1e-35, 1e22, 1e33)],
)
def test_pixels_of_any_size_are_standardized(dtype, scale, colours, shift, tmp_path):
    path = tmp_path / "scaled.npz"
    images = {}
    for key, x in (("x_train", X), ("x_test", X_TEST)):
        x = (x / 255 + shift) * scale
        x = np.stack([x, 2 * x, -x], -1) if colours else x[..., None]
        images[key] = x.astype(dtype)
    np.savez(path, **changed(**images))
    dataset = load(str(path))
    wide = {key: x.astype(np.float32).astype(float) for key, x in images.items()}
    mean, std = wide["x_train"].mean(), wide["x_train"].std()
    assert (dataset.mean, dataset.std) == pytest.approx((mean, std), rel=1e-9, abs=0)
    for key, x in wide.items():
        found = getattr(dataset, key)
        np.testing.assert_allclose(found, (x - mean) / std, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "train_shape", "test_count"),
    [("mnist5k", (4000, 28, 28, 1), 1000), ("digits", (1437, 8, 8, 1), 360)],
)
def test_named_data(name, train_shape, test_count):
    dataset = load(name)
    assert dataset.x_train.shape == train_shape
    assert dataset.x_test.shape == (test_count, *train_shape[1:])
    assert dataset.classes == 10
    shares = [np.bincount(y) / len(y) for y in (dataset.y_train, dataset.y_test)]
    np.testing.assert_allclose(*shares, atol=2e-3)


class Image:
    """Stands in for `datasets.Image`."""


class ClassLabel:
    """Stands in for `datasets.ClassLabel`."""


class Split(dict):
    """Stands in for `datasets.Dataset`: columns, and their types in `features`."""

    features = {"id": None, "picture": Image(), "kind": ClassLabel()}  # noqa: RUF012


def hub(monkeypatch, load_dataset):
    module = SimpleNamespace(
        Image=Image, ClassLabel=ClassLabel, load_dataset=load_dataset
    )
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hugging_face_columns_are_found_by_type(tiny, monkeypatch):
    splits = {
        "train": Split(id=[], picture=list(X), kind=Y.tolist()),
        "test": Split(id=[], picture=list(X_TEST), kind=Y_TEST.tolist()),
    }
    hub(monkeypatch, {"some/set": splits}.__getitem__)
    assert load("hf:some/set").summary() == load(str(tiny)).summary()


def test_hugging_face_pictures_are_brought_to_a_size(monkeypatch):
    pictures = [Picture.fromarray(X[0]), Picture.fromarray(X[1, 2:])]
    split = Split(picture=pictures, kind=[0, 1])
    hub(monkeypatch, lambda name: {"train": split, "test": split})
    assert load("hf:mnist", size=6).image_shape == (6, 6, 1)


def test_hugging_face_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=re.escape("pip install 'jaxpool[data]'")):
        load("hf:mnist")

    def unreachable(name):
        raise ConnectionError("no route to the hub")

    hub(monkeypatch, unreachable)
    with pytest.raises(UserError, match="hf:mnist cannot be loaded: no route"):
        load("hf:mnist")
    hub(monkeypatch, lambda name: {"train": Split()})
    with pytest.raises(UserError, match="must have the splits train and test"):
        load("hf:mnist")
    unequal = Split(picture=[X[0], X[0, 1:]], kind=[0, 1])
    hub(monkeypatch, lambda name: {"train": unequal, "test": unequal})
    rule = re.escape("must have images of one shape (--size brings them to one)")
    with pytest.raises(UserError, match=rule):
        load("hf:mnist")


def fitted(method, image_shape=(8, 8, 1)):
    return build(method, image_shape, MODELS["small"], classes=3, seed=0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fits(name):
    """Into images of the default size, too."""
    for size in (8, 28):
        images = jax.ShapeDtypeStruct((2, size, size, 1), np.float32)
        logits = jax.eval_shape(
            lambda x: fitted(METHODS[name], x.shape[1:])(x),
            images,
        )
        assert logits.shape == (2, 3)


def trained(program, dataset, settings):
    """The run of seed 0."""
    (run,), _ = train(program, dataset, settings, [0], lambda: None)
    return run


def learns(method):
    trainable = method.options.get("trainable", False)
    arrays = method.op and (method.op.weights or getattr(method.op, "arrays", None))
    return trainable or bool(arrays)


# Of each family the first method that learns.
LEARNING = {m.op.family: m.name for m in [*METHODS.values()][::-1] if learns(m)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in LEARNING.values() else pytest.mark.full)
        for n in METHODS
    ],
)
@pytest.mark.usefixtures("quick_compilation")
def test_every_method_trains(name, tiny):
    """One image batch again and again: the loss falls, and what can learn moves."""
    settings = Settings(str(tiny), "small", epochs=20, batch=TRAIN, lr=5e-3)
    program = compile_program(METHODS[name], load(str(tiny)), settings)
    run = trained(program, load(str(tiny)), settings)
    assert run["loss"] < run["first_loss"]
    assert (run["moved"] is not None) == learns(METHODS[name])
    assert run["moved"] is None or run["moved"] > 1e-3


def test_every_op_is_a_method_or_said_to_be_none():
    reasons = {name: why for why, names in left_out().items() for name in names}
    assert reasons.keys() | METHODS.keys() >= {op.method for op in OPS.values()}
    assert not reasons.keys() & METHODS.keys()
    assert reasons["roi_align"] == "needs boxes"
    assert reasons["quantized_max"] == "takes integers alone"


def test_all_says_what_it_leaves_out(finished, tiny, capfd, monkeypatch):
    monkeypatch.setattr(jaxpool.compare, "choose", lambda names: [METHODS["max"]])
    assert main(command(tiny, finished, "--resume", methods="all")) == 0
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(left_out())
    assert any(re.match(r"Left out: .*roi_align.* \(needs boxes\)", x) for x in lines)


def test_families():
    names = {name for name, method in METHODS.items() if method.op}
    power = {n for n in names if METHODS[n].op.family == "power"}
    assert {"lp", "global_gem_learned"} <= power
    assert {method.name for method in choose(["power"])} == power
    # The method has the name, also where its family does.
    assert [method.name for method in choose(["stochastic"])] == ["stochastic"]
    sampling = {n for n in names if METHODS[n].op.family == "stochastic"}
    assert {method.name for method in choose(["family:stochastic"])} == sampling
    chosen = [method.name for method in choose(["lp", "none", "power", "max"])]
    assert chosen[:2] == ["lp", "none"]
    assert chosen[-1] == "max"
    assert len(chosen) == len(power) + 2


def layers(model):
    return [type(layer).__name__ for layer in model.layers]


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_where_methods_act():
    """One block: layers follow it; heads see what max pools leave of it."""
    convolution = 9 * 4 + 4
    assert parameters(fitted(METHODS["max"])) == convolution + 4 * 4 * 4 * 3 + 3
    head = fitted(METHODS["global_avg"])
    assert parameters(head) == convolution + 4 * 3 + 3
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32)
    seen = jaxpool.max_pool(nnx.relu(head.layers[0](x)), (2, 2), strides=(2, 2))
    np.testing.assert_allclose(
        head(x), head.layers[-1](seen.mean((1, 2))), rtol=1e-5, atol=1e-5
    )


def test_the_first_of_several_outputs_counts():
    op = dataclasses.replace(OPS["max_pool_with_argmax"], compare={})
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 1), np.float32)
    both = [fitted(method)(x) for method in (Method("both", op), METHODS["max"])]
    np.testing.assert_array_equal(*both)


def test_methods_start_from_the_same_convolutions():
    kernels = [
        build(METHODS[name], (8, 8, 1), (4, 4), classes=3, seed=1).layers[i].kernel
        for name, i in (("max", 3), ("map", 3), ("stochastic", 3))
    ]
    for kernel in kernels[1:]:
        np.testing.assert_array_equal(kernel[...], kernels[0][...])


def test_learned_methods_learn_more():
    def count(name):
        return parameters(fitted(METHODS[name]))

    learned = [name for name in METHODS if name.endswith("_learned")]
    assert "mixed_learned" in learned
    for name in learned:
        assert count(name) > count(name.removesuffix("_learned"))


def test_all_is_every_method():
    assert choose(["all"]) == list(METHODS.values())
    assert {*DEFAULT_METHODS} <= METHODS.keys()
    assert [method.name for method in choose(["max", "avg", "max"])] == ["max", "avg"]


def oracle(**changes):
    facts: dict = {
        "init": lambda seed: State(None, None, None),
        "step": lambda state, images, labels: (state, 0.0),
        "infer": lambda params, rest, images: np.zeros((len(images), 2)),
        "parameters": 0,
        "learned": lambda state: np.zeros(0),
    }
    return Program(**{**facts, **changes})


def test_what_a_run_records():
    """Steps that count themselves: two parameters, of which one moves by 1 a step."""
    images = np.zeros((40, 1, 1, 1), np.float32)
    labels = np.zeros(40, int)
    dataset = Dataset(images, labels, images, labels, classes=2)
    settings = Settings("oracle", "small", epochs=5, batch=10, lr=1e-3)
    program = oracle(
        init=lambda seed: State(0, None, None),
        step=lambda state, images, labels: (State(state[0] + 1, None, None), state[0]),
        learned=lambda state: np.array([state.params, 7.0]),
    )
    run = trained(program, dataset, settings)
    # The first two and the last two of 20 steps.
    assert (run["first_loss"], run["loss"]) == (0.5, 18.5)
    assert run["moved"] == pytest.approx(np.sqrt((20**2 + 0**2) / 2))
    assert trained(oracle(), dataset, settings)["moved"] is None


def scored(**methods):
    """Results with these accuracies in percent; a method of two parts learns."""
    entries = {
        name: {
            "runs": [
                {"accuracy": score / 100, "first_loss": 2.0, "loss": 1.0, "moved": None}
                for score in scores
            ]
        }
        for name, scores in methods.items()
    }
    return {"methods": entries}


def test_differences_larger_than_the_spread_are_told_apart():
    results = scored(
        max=[96.0, 96.2, 96.4],
        same=[96.1, 96.3, 96.0],
        wide=[90.0, 94.0, 98.0],
        worse=[90.0, 90.2, 90.4],
        better=[98.0, 98.2, 98.1],
        far=[20.0, 30.0, 80.0],
        near=[96.5, 96.5, 96.6],
    )
    found = verdicts(results)
    assert {name for name, v in found.items() if v.told_apart} == {"worse", "better"}
    assert found["worse"].difference == pytest.approx(-6)
    lines = conclusions(results)
    assert lines[:5] == [
        "Better than max: better.",
        "Worse than max: worse.",
        "Not told apart, but every seed above all of max's: near.",
        "Not told apart, but every seed below all of max's: far.",
        "Not told apart from max: same, wide.",
    ]
    assert "With 3 seeds" in lines[-1]


def test_intervals_are_those_of_welch():
    scores = {"max": [96.0, 96.2, 96.7], "avg": [90.0, 94.0], "one": [96.0]}
    found = verdicts(scored(**scores))
    test = stats.ttest_ind(scores["avg"], scores["max"], equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert found["avg"].difference == pytest.approx((low + high) / 2)
    assert found["avg"].margin == pytest.approx((high - low) / 2)
    assert found["one"].margin is None


def test_a_baseline_may_be_chosen():
    results = scored(max=[96.0, 96.2], avg=[90.0, 90.4])
    results["report"] = {"baseline": "avg"}
    assert verdicts(results)["max"].difference == pytest.approx(5.9)
    assert conclusions(results)[0] == "Better than avg: max."
    results["report"] = {"baseline": "none"}  # it has no finished seed yet
    assert reference(results) == "max"


def test_no_difference_is_said_plainly():
    results = scored(avg=[96.0, 96.2, 96.4], none=[96.1, 96.3, 96.0])
    assert verdicts(results).keys() == {"none"}  # avg is the reference, being first
    line = "No difference from avg is larger than the spread over seeds."
    assert line in conclusions(results)
    one = scored(max=[96.0], none=[50.0])
    assert not verdicts(one)["none"].told_apart
    assert any(line.startswith("One seed shows no spread") for line in conclusions(one))
    assert conclusions(scored(max=[96.0])) == []


def test_chance_tells_nothing_apart():
    """Of 200 methods that are all the same, tests one by one would tell some apart."""
    rng = np.random.default_rng(0)
    names = ["max", *map("m{}".format, range(200))]
    results = scored(**{name: rng.normal(90, 1, 3) for name in names})
    base, *others = [accuracies(entry) for entry in results["methods"].values()]
    alone = [stats.ttest_ind(own, base, equal_var=False).pvalue for own in others]
    assert min(alone) < 0.05
    assert not any(verdict.told_apart for verdict in verdicts(results).values())


def test_few_wide_seeds_do_not_borrow_the_spread_of_many_narrow_ones():
    results = scored(max=[90.0, 96.0], other=[99.0, 99.1, 98.9, 99.0, 99.1, 98.9])
    assert not verdicts(results)["other"].told_apart


def test_seeds_that_all_agree():
    results = scored(max=[96.0] * 3, same=[96.0] * 3, less=[95.0] * 3)
    told = {name: verdict.told_apart for name, verdict in verdicts(results).items()}
    assert told == {"same": False, "less": True}
    assert {verdict.margin for verdict in verdicts(results).values()} == {None}


def test_what_pooling_layers_learned_is_said(finished, tmp_path):
    results = read(finished)
    run = {"seed": 0, "accuracy": 0.5, "first_loss": 2.0, "loss": 1.5, "moved": 0.25}
    results["methods"]["mixed_learned"] = {
        "runs": [run, {**run, "seed": 1, "moved": 0.75}],
        "costs": {**results["methods"]["max"]["costs"], "learned": 1},
    }
    write_report(tmp_path, results)
    text = (tmp_path / "results.md").read_text("utf-8")
    assert "| mixed_learned | 1 | 0.500 | 2.00 | 1.50 |" in text
    assert "Methods whose pooling layers learn: 1. With every seed" in text
    results["methods"]["mixed_learned"]["runs"][1] |= {"moved": 0.0, "loss": 2.5}
    assert lessons(results) == [
        "Methods whose training loss did not fall: mixed_learned.",
        "Methods whose pooling layers' parameters did not move: mixed_learned.",
    ]


def test_accuracy_counts_every_test_image_once():
    """With 35 images in batches of 16, and an oracle that knows labels by pixel."""
    labels = np.arange(35) % 2
    images = labels.reshape(35, 1, 1, 1).astype(np.float32)
    dataset = Dataset(images, labels, images, labels, classes=2)
    settings = Settings("oracle", "small", epochs=1, batch=16, lr=1e-3)

    def accuracy(logits):
        program = oracle(infer=lambda params, rest, images: logits(images.reshape(16)))
        return trained(program, dataset, settings)["accuracy"]

    assert accuracy(lambda pixel: np.stack([1 - pixel, pixel], axis=1)) == 1
    assert accuracy(lambda pixel: np.stack([pixel, 1 - pixel], axis=1)) == 0
    assert accuracy(lambda pixel: np.stack([pixel + 1, pixel], axis=1)) == 18 / 35


def test_no_memory_where_the_backend_does_not_tell(finished, tmp_path):
    silent = SimpleNamespace(memory_analysis=lambda: None)
    assert timing.memory(silent) is None
    results = read(finished)
    for entry in results["methods"].values():
        entry["costs"]["train_bytes"] = None
    write_report(tmp_path, results)
    assert "| – |" in (tmp_path / "results.md").read_text("utf-8")
    assert (tmp_path / "results.png").exists()


def test_one_device_gives_the_numbers_of_two(finished, tiny, tmp_path):
    flags = "--xla_force_host_platform_device_count=1"
    environment = {**os.environ, "XLA_FLAGS": flags}
    arguments = [sys.executable, "-c", SCRIPT, *command(tiny, tmp_path)]
    subprocess.run(arguments, env=environment, check=True)
    two, one = read(finished), read(tmp_path)
    assert two["environment"]["devices"] == 2
    assert one["environment"]["devices"] == 1
    for name in runs(one):
        for key in ("loss", "accuracy"):
            np.testing.assert_allclose(
                [run[key] for run in runs(two)[name]],
                [run[key] for run in runs(one)[name]],
                rtol=1e-3,
            )


def test_batch_must_split_over_the_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with pytest.raises(
        UserError, match="divisible by the number of devices, 3; got 16"
    ):
        Settings("digits", "small", epochs=1, batch=16, lr=1e-3)


def test_missing_extra(monkeypatch, capfd):
    for name in list(sys.modules):
        if name.startswith("jaxpool.compare"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    line = error_line(["compare"], capfd)
    assert "needs the package rich" in line
    assert "pip install 'jaxpool[compare]'" in line


def test_the_command_has_the_defaults_of_the_function(monkeypatch):
    called = {}
    monkeypatch.setattr(jaxpool.compare, "compare", called.update)
    monkeypatch.setattr(jaxpool.compare, "print_results", lambda out: None)
    assert main(["compare"]) == 0
    assert called == compare.__kwdefaults__


def test_it_runs_as_a_module():
    arguments = [sys.executable, "-m", "jaxpool", "--version"]
    version = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert version.stdout == f"{jaxpool.__version__}\n"


def test_importing_the_library_imports_no_extra():
    script = """
import sys, jaxpool, jaxpool.__main__
extras = {"jaxpool.compare", "matplotlib", "mlxtend", "rich", "datasets"}
sys.exit(bool(extras & sys.modules.keys()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# Several data sets, from a file of settings; what is kept besides results.


def save_pictures(folder, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"class {label}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(image).save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with the images of `tiny`."""
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder / "train", X, Y)
    save_pictures(folder / "test", X_TEST, Y_TEST)
    (folder / "train" / ".DS_Store").touch()
    (folder / "test" / "class 1" / ".hidden").touch()
    return folder


CONFIG = """
data = ["{tiny}", "{pictures}"]
methods = "max,none"
baseline = "none"
epochs = 1
batch = 7  # a flag says otherwise
seeds = 2
parallel-seeds = {beside}
log = "{folder}/log"
checkpoint = true
"""


@pytest.fixture
def side_by_side():
    """A jax that can train seeds side by side."""
    if not can_go_side_by_side():
        pytest.skip("jax 0.7 cannot vmap the gradient of a convolution")


@pytest.fixture(scope="module")
def several(tiny, pictures, tmp_path_factory):
    """Two data sets; not to be changed."""
    folder = tmp_path_factory.mktemp("several")
    config = folder / "compare.toml"
    beside = 2 if can_go_side_by_side() else 1
    given = dict(tiny=tiny, pictures=pictures, folder=folder, beside=beside)
    config.write_text(CONFIG.format(**given))
    flags = [f"--batch={BATCH}", f"--out={folder / 'out'}"]
    assert main(["compare", f"--config={config}", *flags]) == 0
    return folder


def test_config_sets_what_flags_do_not(several, tiny):
    results = read(several / "out" / "tiny")
    assert results["settings"]["data"] == str(tiny)
    assert results["settings"]["batch"] == BATCH
    assert results["settings"]["epochs"] == 1
    assert results["report"] == {"baseline": "none"}


def test_config_knows_every_option():
    assert FORM.keys() == compare.__kwdefaults__.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 1", "must hold options alone (did you mean epochs?); got 'epoch'"),
        ("distributed = ''", "must hold options alone"),
        ("epochs = '1'", "epochs must be an int from 0 to 2**63; got '1'"),
        ("epochs = true", "epochs must be an int from 0 to 2**63; got True"),
        ("epochs = 0", "`epochs` must be at least 1; got 0"),
        ("data = [1]", "data must be text or a list of texts; got [1]"),
        ("data = []", "`data` must name at least one data set; got []"),
        ("resume = 1", "resume must be true or false; got 1"),
        (
            "parallel-seeds = 'all'",
            "`parallel_seeds` must be auto or an int; got 'all'",
        ),
        ("parallel-seeds = 1\nparallel_seeds = 2", "must set each option once"),
        ("epochs = ", "is not readable: Invalid value (at "),
        (None, "is not readable: No such file or directory"),
    ],
)
def test_bad_config(text, message, tmp_path, capfd):
    path = tmp_path / "config.toml"
    if text is not None:
        path.write_text(text)
    arguments = ["compare", f"--config={path}", f"--out={tmp_path / 'out'}"]
    assert message in error_line(arguments, capfd)
    assert not (tmp_path / "out").exists()


def test_each_data_set_has_a_folder_and_all_have_a_report(several, tiny, pictures):
    out = several / "out"
    assert read(out) == {"datasets": {str(tiny): "tiny", str(pictures): pictures.name}}
    reports = {f"results.{kind}" for kind in ("json", "md", "html", "png")}
    assert {p.name for p in out.iterdir()} == {*reports, "tiny", pictures.name}
    for name in ("tiny", pictures.name):
        names = {path.name for path in (out / name).iterdir()}
        assert names == {*reports, "checkpoints"}
    text = (out / "results.md").read_text("utf-8")
    assert "| method | mean rank |" in text
    for name in ("tiny", pictures.name):
        own = (out / name / "results.md").read_text("utf-8")
        table = [line for line in own.splitlines() if line.startswith("|")]
        assert "\n".join(table) in text


def test_a_folder_of_pictures_is_the_data_set_of_its_pixels(pictures, tiny):
    there, here = load(str(pictures)), load(str(tiny))
    for part in ("train", "test"):
        images, labels = (getattr(here, f"{kind}_{part}") for kind in "xy")
        order = np.argsort(labels, kind="stable")
        np.testing.assert_array_equal(getattr(there, f"y_{part}"), labels[order])
        own = getattr(there, f"x_{part}")
        np.testing.assert_allclose(own, images[order], atol=1e-6)


def test_a_data_set_may_be_added(several, tiny, tmp_path, capfd):
    out, other = tmp_path / "out", tmp_path / "other" / "tiny.npz"
    shutil.copytree(several / "out", out)
    other.parent.mkdir()
    shutil.copy(tiny, other)
    before = read(out)["datasets"]
    arguments = command(f"{tiny},{other}", out, "--seeds=1", "--resume", methods="max")
    assert main(arguments) == 0
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(tiny), str(other), "max"]
    assert read(out)["datasets"] == {**before, str(other): "tiny-2"}
    assert read(out / "tiny")["methods"] == read(several / "out" / "tiny")["methods"]
    assert captured.out.count("Told apart") == 2  # one seed of the third says nothing
    assert captured.out.count("Params:") == 1
    text = (out / "results.md").read_text("utf-8")
    assert text.count("\n## ") == 3
    assert "| none | – |" in text  # the third data set has none


def test_one_data_set_and_several_do_not_mix(several, finished, tiny, tmp_path, capfd):
    arguments = command(f"{tiny},digits", finished, "--resume")
    assert "`out` must not hold results of one data set" in error_line(arguments, capfd)
    arguments = command(tiny, several / "out", "--resume")
    assert "`out` must not hold results of several" in error_line(arguments, capfd)
    assert "pass --resume" in error_line(command("a,b", several / "out"), capfd)
    (tmp_path / "results.json").write_text('{"datasets": {"digits": "../digits"}}')
    line = error_line(command("digits,mnist5k", tmp_path, "--resume"), capfd)
    assert "datasets.digits must be a folder's name; got '../digits'" in line


def test_ranks_over_data_sets():
    parts = {
        "a": scored(max=[90.0, 92.0], avg=[95.0], lp=[80.0], only=[99.0]),
        "b": scored(max=[70.0], avg=[60.0], lp=[60.0]),
    }
    # Of max, avg and lp: 2, 1, 3 and 1, 2.5, 2.5.
    ranks = [("max", 1.5), ("avg", 1.75), ("lp", 2.75), ("only", None)]
    assert joint_ranks(parts) == ranks


def assert_alike(run, other):
    """Up to rounding; `moved` is None where no pooling layer learns."""
    assert run["moved"] is other["moved"] is None
    run, other = ({**each, "moved": 0} for each in (run, other))
    assert run == pytest.approx(other, rel=1e-5)


@pytest.mark.usefixtures("side_by_side")
def test_seeds_side_by_side_give_what_each_gives_alone(several, finished):
    """Up to rounding, which in four steps has little time to grow."""
    together, alone = runs(read(several / "out" / "tiny")), runs(read(finished))
    for name in alone:
        for run, other in zip(together[name], alone[name], strict=True):
            assert run.pop("beside") == 2
            assert_alike(run, other)


def test_a_jax_that_cannot_train_side_by_side(tiny, tmp_path, monkeypatch, capfd):
    def unable(*_):
        raise NotImplementedError

    monkeypatch.setattr(jax, "vmap", unable)
    line = error_line(command(tiny, tmp_path, "--parallel-seeds=2"), capfd)
    assert "`parallel_seeds` must be 1 with jax" in line


@pytest.mark.usefixtures("quick_compilation", "side_by_side")
def test_samples_of_seeds_side_by_side_are_those_of_each_alone(tiny):
    settings = Settings(str(tiny), "small", epochs=1, batch=BATCH, lr=5e-3)
    dataset = load(str(tiny))
    method = METHODS["stochastic"]
    one, two = (compile_program(method, dataset, settings, n) for n in (1, 2))
    epochs = []
    both, states = train(
        two, dataset, settings, [3, 5], lambda: None, lambda *e: epochs.append(e)
    )
    for i, seed in enumerate((3, 5)):
        (run,), (state,) = train(one, dataset, settings, [seed], lambda: None)
        assert_alike(both[i], run)
        leaves = (jax.tree.leaves(each.params) for each in (states[i], state))
        for leaf, other in zip(*leaves, strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)
    assert both[0]["loss"] != both[1]["loss"]
    ((_, accuracies),) = epochs
    assert accuracies == [run["accuracy"] for run in both]


def test_how_many_seeds_go_side_by_side(monkeypatch):
    def fitting(platform, room, needed):
        device = SimpleNamespace(platform=platform, memory_stats=lambda: room)
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
        monkeypatch.setattr(jaxpool.compare.run, "memory", lambda step: needed)
        return jaxpool.compare.run._fitting(oracle(), range(5))

    assert fitting("gpu", {"bytes_limit": 1000}, 10) == 5
    assert fitting("gpu", {"bytes_limit": 1000}, 300) == 3
    assert fitting("gpu", {"bytes_limit": 1000}, 2000) == 1
    assert fitting("gpu", {"bytes_limit": 1000}, None) == 1
    assert fitting("gpu", None, 10) == 1
    assert fitting("cpu", {"bytes_limit": 1000}, 10) == 1


@pytest.mark.usefixtures("side_by_side")
def test_seeds_side_by_side_are_saved_together(finished, tiny, tmp_path, monkeypatch):
    template, saved, asked = read(finished)["methods"]["max"], [], []

    def stand_in(program, dataset, settings, seeds, *_):
        asked.append((program, list(seeds)))
        made = [{**template["runs"][0], "seed": seed} for seed in seeds]
        return made, [None] * len(seeds)

    def write(path, results):
        saved.append(len(results["methods"]["max"]["runs"]))

    run = jaxpool.compare.run
    sizes = lambda method, dataset, settings, beside=1: beside  # noqa: E731
    monkeypatch.setattr(run, "compile_program", sizes)
    monkeypatch.setattr(run, "train", stand_in)
    monkeypatch.setattr(run, "write", write)
    costs = {"max": template["costs"]}
    monkeypatch.setattr(run, "measure", lambda *_: costs)
    more = ("--seeds=5", "--parallel-seeds=2")
    assert main(command(tiny, tmp_path, *more, methods="max")) == 0
    assert asked == [(2, [0, 1]), (2, [2, 3]), (1, [4])]
    assert saved[:3] == [2, 4, 5]


def events(folder):
    """What an event file of TensorBoard holds: tag, step and value."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    return found


def test_curves_are_those_of_the_results(several):
    out = several / "out" / "tiny"
    for method, seeds in runs(read(out)).items():
        for run in seeds:
            folder = several / "log" / "tiny" / method / f"seed{run['seed']}"
            (row,) = csv.DictReader((folder / "curve.csv").read_text().splitlines())
            assert (row["method"], row["seed"]) == (method, str(run["seed"]))
            assert (row["epoch"], float(row["accuracy"])) == ("1", run["accuracy"])
            curve = {(tag, step): value for tag, step, value in events(folder)}
            assert curve.keys() == {("loss", 1), ("accuracy", 1)}
            for key in ("loss", "accuracy"):
                assert curve[key, 1] == pytest.approx(float(row[key]), rel=1e-6)


def test_curves_begin_anew_with_their_seed(several, tmp_path):
    from jaxpool.compare.logs import curves

    for losses in ([1.0, 2.0], [3.0]):
        with curves(tmp_path, "data", "max", [0]) as on_epoch:
            for loss in losses:
                on_epoch([loss], [0.5])
    text = (tmp_path / "max" / "seed0" / "curve.csv").read_text()
    rows = list(csv.reader(text.splitlines()))
    assert rows[1:] == [["data", "max", "0", "1", "3.0", "0.5"]]
    assert events(tmp_path / "max" / "seed0") == [("loss", 1, 3), ("accuracy", 1, 0.5)]


def test_missing_packages_of_options(monkeypatch, tiny, tmp_path, capfd):
    for option, package in (("--log=log", "tensorboardX"), ("--checkpoint", "orbax")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.setitem(sys.modules, f"{package}.checkpoint", None)
            line = error_line(command(tiny, tmp_path / "out", option), capfd)
        assert f"needs the package {package}" in line


def test_what_was_trained_can_be_restored(several):
    out = several / "out" / "tiny"
    for method, seeds in runs(read(out)).items():
        for run in seeds:
            model = restore(out, method, run["seed"])
            predicted = np.argmax(model(X_TEST[..., None]), axis=-1)
            assert np.mean(predicted == Y_TEST) == run["accuracy"]
            from_floats = model(np.asarray(X_TEST[..., None] / 255, np.float32))
            np.testing.assert_allclose(from_floats, model(X_TEST[..., None]), atol=1e-4)


def test_example():
    assert doctest.testmod(jaxpool.compare.checkpoints).failed == 0


def test_a_network_that_cannot_be_saved(tiny, tmp_path, monkeypatch, capfd):
    """Its seed is not finished either."""
    full = SimpleNamespace(save=mock_error)
    checkpointer = lambda **_: contextlib.nullcontext(full)  # noqa: E731
    arguments = command(tiny, tmp_path, "--checkpoint", methods="max")
    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.StandardCheckpointer", checkpointer)
        assert main(arguments) == 2
    line, hint = capfd.readouterr().err.splitlines()
    folder = tmp_path / "checkpoints" / "max" / "seed0"
    assert line == f"jaxpool compare: {folder} cannot be written: No room"
    assert hint.startswith("Stopped. To go on: ")
    assert not (tmp_path / "results.json").exists()


def mock_error(*arguments, **options):
    raise ValueError("No room\nfor this")


def test_what_cannot_be_restored(several, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(several / "out" / "tiny", out)
    for arguments, message in (
        ((tmp_path, "max"), "`restore`: `out` must hold results.json"),
        ((several / "out", "max"), "must be the folder of one data set, "),
        ((out, "avg"), "`method` must be one that"),
        ((out, "max", 2), "`seed` must have been trained with --checkpoint"),
        ((finished, "max"), "`seed` must have been trained with --checkpoint"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            restore(*arguments)
    for path in (out / "checkpoints" / "max" / "seed0").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="seed0 is not readable: "):
        restore(out, "max")


class Page(HTMLParser):
    """What a page asks for, and what it says."""

    def __init__(self):
        super().__init__()
        self.tags, self.asks, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        wanted = {"src", "href", "xlink:href", "data", "action", "srcset", "poster"}
        self.asks += [v for n, v in attributes if n in wanted and v[:1] != "#"]

    def handle_data(self, data):
        self.text += data


def test_names_of_data_are_text(several, finished, tmp_path):
    """In Markdown and in the page, which asks for nothing."""
    name = "<script>a|b</script>_*[x](http://y)&lt;\n.npz"
    results = read(finished)
    results["settings"]["data"] = name
    write_report(tmp_path, results)
    shown = name.replace("\n", "\\n")
    first, *_ = (tmp_path / "results.md").read_text("utf-8").splitlines()
    written = first.removeprefix("# Pooling on ").removesuffix(", small model, cpu")
    written = written.removesuffix(", small model, 2 × cpu")
    assert re.sub(r"\\([^n])", r"\1", written) == shown.replace("\\n", "\\n")
    assert not re.search(r"(?<!\\)[<|*_&\[]", written)
    for out in (tmp_path, several / "out"):
        text = (out / "results.html").read_text("utf-8")
        page = Page()
        page.feed(text)
        assert page.asks == []
        assert "url(http" not in text
        assert "@import" not in text
        assert page.tags.count("script") == 1
        if out == tmp_path:
            assert f"Pooling on {shown}, small" in page.text


def test_the_page_says_what_the_table_says(several):
    page = Page()
    page.feed((several / "out" / "results.html").read_text("utf-8"))
    text = (several / "out" / "results.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [cell for row in rows for cell in row.strip("| ").split(" | ")]
    for cell in cells:
        if "-" not in cell:
            assert cell.replace("\\", "") in page.text
    assert page.tags.count("svg") == 2 + 2 * 3
    assert page.tags.count("table") == 3


# Folders of images.


def folder_of(tmp_path, **pictures):
    """A folder `images` of files with these contents, __ for /: pictures or bytes."""
    for name, content in pictures.items():
        path = tmp_path / "images" / name.replace("__", "/").replace("_png", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
    return str(tmp_path / "images")


def plain(mode="L", size=(8, 8), color=7):
    return Picture.new(mode, size, color)


def four(**changes):
    """Two classes of two images."""
    names = ("a__1_png", "a__2_png", "b__1_png", "b__2_png")
    same = {name: plain(color=i) for i, name in enumerate(names)}
    return {**same, **changes}


BAD_FOLDERS = {
    "no class": (
        {"1_png": plain(), "2_png": plain()},
        "a subfolder of images for each",
    ),
    "one class": ({"a__1_png": plain()}, "each class, at least 2; got 'a'"),
    "one image": ({**four(), "c__1_png": plain()}, "c must have at least 2 images"),
    "sizes": (four(b__1_png=plain(size=(9, 7))), "1.png is 8x8; got "),
    "text": (four(b__notes=b"x"), "b must hold images alone (.png, .jpg, "),
    "no image": (four(b__1_png=b"x"), "b/1.png cannot be read: cannot identify image"),
    "16 bits": (four(b__1_png=plain("I;16")), "must have 8 bits a channel; got 'I;16'"),
    "no test class": (
        {
            "train__a__1_png": plain(),
            "train__b__1_png": plain(),
            "test__a__1_png": plain(),
        },
        "test must have the classes of train, a, b; got 'a'",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders(case, tmp_path):
    contents, message = BAD_FOLDERS[case]
    folder = folder_of(tmp_path, **contents)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(folder)
    assert folder in str(error.value)


def test_more_bad_folders(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, **four())
    cut = tmp_path / "images" / "b" / "1.png"
    with monkeypatch.context() as patch:
        patch.setattr(jaxpool.compare.folders, "memory", lambda: 100)
        with pytest.raises(UserError, match="must hold images that fit into memory"):
            load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Picture, "MAX_IMAGE_PIXELS", 40)
        with pytest.raises(UserError, match=r"cannot be read: Image size \(64 pixels"):
            load(folder)
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"b/1\.png cannot be read: "):
        load(folder)
    (tmp_path / "images" / "c").mkdir()
    with pytest.raises(UserError, match="c must hold images; got 'an empty folder'"):
        load(folder)


def test_one_image_in_five_is_for_the_test(tmp_path):
    folder = tmp_path / "images"
    save_pictures(folder, X, Y)
    dataset = load(str(folder))
    assert len(dataset.x_test) == len(X) // 5
    counts = np.bincount(dataset.y_test)
    assert counts.max() - counts.min() <= 1
    whole = np.concatenate([dataset.x_train, dataset.x_test])
    pixels = np.sort(np.round((whole * dataset.std + dataset.mean) * 255).ravel())
    np.testing.assert_array_equal(pixels, np.sort(X.ravel()))


def test_pictures_are_upright_in_one_mode_and_size(tmp_path):
    """A grey one, one with colours, one with transparency and one on its side."""
    tall = plain("RGB", (16, 24), (255, 0, 0))
    tall.paste((0, 0, 255), (0, 12, 16, 24))  # red above blue
    on_its_side = tall.transpose(Picture.Transpose.ROTATE_90)
    exif = Picture.Exif()
    exif[0x0112] = 6  # turn it to the right to see it upright
    folder = folder_of(
        tmp_path,
        **four(
            a__1_png=plain(size=(10, 8), color=255), b__2_png=plain("RGBA", (8, 8), 0)
        ),
    )
    on_its_side.save(tmp_path / "images" / "a" / "2.png", exif=exif)
    arrays = jaxpool.compare.folders.read_folder(tmp_path / "images", 4)
    pictures = np.concatenate([arrays["x_train"], arrays["x_test"]])
    assert pictures.shape == (4, 4, 4, 3)
    (red,) = [p for p in pictures if p[0, 0].tolist() == [255, 0, 0]]
    assert red[-1, 0].tolist() == [0, 0, 255]
    assert any((p == 255).all() for p in pictures)
    assert load(folder, size=4).image_shape == (4, 4, 3)
    with pytest.raises(UserError, match="`size` must be at least 1; got 0"):
        compare(data=folder, size=0, out=tmp_path / "out")
