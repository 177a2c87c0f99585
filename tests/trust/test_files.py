"""`jaxpool compare` and `bench` among damaged files, failing disks and sudden ends.

Training and timing are replaced by stand-ins that give a number at once, except where
processes are killed: what is asked is what becomes of results.
"""

import contextlib
import copy
import errno
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxpool.bench
import jaxpool.compare
import jaxpool.compare.data
import jaxpool.compare.run
from jaxpool.__main__ import main
from jaxpool.bench.contestants import OURS, YARDSTICK
from jaxpool.bench.results import Row
from jaxpool.compare import files
from jaxpool.compare.files import replace, reserve
from jaxpool.compare.methods import all_methods

TRAIN, TEST, SEEDS, JOBS = 12, 6, 2, 3
FILES = {"compare": "results.json", "bench": "bench.json"}
SUFFIXES = {
    "compare": {".json", ".md", ".html", ".png"},
    "bench": {".json", ".md", ".png"},
}
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def usual_promotion():
    """Optax multiplies integers and floats, which is not ours to forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Stand-ins: a method's run and costs, and a case's row, without any work.


def stand_in_run(method, seed):
    score = (sum(map(ord, method)) + 7 * seed) % 13
    loss = 1 + score / 7
    return {
        "seed": seed,
        "accuracy": score / 13,
        "first_loss": 2 * loss,
        "loss": loss,
        "moved": 0.1 * score if method.endswith("_learned") else None,
    }


def stand_in_costs(programs, *_):
    return {
        name: {
            "inference_ms": 1.25,
            "train_step_ms": 2.5,
            "inference_bytes": 1000,
            "train_bytes": None,
            "parameters": len(name),
            "learned": 0,
        }
        for name in programs
    }


def stand_in_rows(job):
    def time(ms):
        return {"median_ms": ms, "q1_ms": ms / 2, "q3_ms": 2 * ms, "calls": 2}

    costs = {"compile_s": 0.5, "temp_bytes": 64 * job}
    return [
        Row(
            suite="models",
            case=f"case {job}",
            op="max",
            window="2/2/0",
            direction=direction,
            dtype="f32",
            layout="channels_last",
            shape=(1, 4, 4, 1),
            input_bytes=64,
            outputs=4,
            base=OURS,
            times={OURS: time(1.0), "flax": time(1.5 + job), YARDSTICK: time(0.5)},
            notes={"torch": "is not timed"},
            costs={OURS: costs, "flax": {**costs, "residual_bytes": None}},
        )
        for direction in ("forward", "gradient")
    ]


def stand_in_jobs(*_):
    return [(f"case {n}", lambda n=n: stand_in_rows(n)) for n in range(JOBS)]


METHODS = all_methods()


@pytest.fixture(autouse=True)
def methods_known(monkeypatch):
    """Which methods there are takes a while to find out, and is asked elsewhere."""
    chosen = lambda names: [METHODS[name] for name in names]  # noqa: E731
    monkeypatch.setattr(jaxpool.compare, "choose", chosen)
    monkeypatch.setattr(jaxpool.compare.results, "all_methods", lambda: METHODS)


@pytest.fixture
def at_once(monkeypatch):
    """`compare` and `bench` with stand-ins for all that takes time."""
    run = jaxpool.compare.run
    monkeypatch.setattr(run, "compile_program", lambda method, *_: method.name)
    stand_in = lambda name, d, s, seeds, *_: (  # noqa: E731
        [stand_in_run(name, seed) for seed in seeds],
        [None] * len(seeds),
    )
    monkeypatch.setattr(run, "train", stand_in)
    monkeypatch.setattr(run, "measure", stand_in_costs)
    monkeypatch.setattr(jaxpool.bench, "_jobs", stand_in_jobs)


class Picture:
    """Stands in for the picture, which takes longest."""

    def savefig(self, path, dpi):
        path.write_bytes(b"picture")


@pytest.fixture
def no_picture(monkeypatch):
    for part in ("compare.report.picture", "bench.report._figure"):
        monkeypatch.setattr(f"jaxpool.{part}", lambda _: Picture())
    monkeypatch.setattr("jaxpool.compare.page.vectors", lambda _: [])


def arrays():
    rng = np.random.default_rng(0)
    made = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        made[f"x_{split}"] = rng.integers(0, 255, (count, 4, 4), np.uint8)
        made[f"y_{split}"] = np.arange(count) % 3
    return made


def npz(made):
    file = io.BytesIO()
    np.savez(file, **made)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole():
    return npz(arrays())


@pytest.fixture
def data(whole, tmp_path):
    path = tmp_path / "whole.npz"
    path.write_bytes(whole)
    return path


def comparison(data, out, *more, methods="max,stride,mixed_learned", seeds=SEEDS):
    fixed = (f"--methods={methods}", f"--seeds={seeds}", "--batch=2", "--epochs=1")
    return ["compare", f"--data={data}", f"--out={out}", *fixed, *more]


def timing(out, *more):
    return ["bench", f"--out={out}", "--peers=flax", "--rounds=1", *more]


def said(capfd, command, code=2):
    """What a command that ends with `code` says on standard error."""
    capfd.readouterr()
    assert main([os.fspath(argument) for argument in command]) == code
    return capfd.readouterr().err


def refusal(capfd, command, argument):
    """The line of a command that is refused because of an argument, and only it."""
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as noise:
        warnings.simplefilter("always")
        assert main([os.fspath(part) for part in command]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert noise == []
    assert err.endswith("\n")
    name = command[0]
    assert err.startswith(f"jaxpool {name}: `{name}`: `{argument}` ")
    return err.removeprefix(f"jaxpool {name}: ").removesuffix("\n")


def results(out, name="results.json"):
    return json.loads((out / name).read_text())


def runs(found):
    return {(m, r["seed"]): r for m, e in found["methods"].items() for r in e["runs"]}


# Data.


@pytest.fixture
def refused(tmp_path, capfd):
    """Asserts that a data file is refused, and returns what is said about it."""

    def ask(path):
        out = tmp_path / "no results"
        line = refusal(capfd, comparison(path, out), "data")
        with pytest.raises(jaxpool.compare.UserError) as error:
            jaxpool.compare.compare(data=str(path), out=out)
        address = re.compile("0x[0-9a-f]+")  # of an object, in NumPy's words
        assert address.sub("", str(error.value)) == address.sub("", line)
        assert str(path) in line or repr(str(path)) in line
        assert len(line) < 600 + 2 * len(str(path))
        assert not out.exists()
        return line

    return ask


def npy(shape, body=b"", descr="<f4", order="False", version=(1, 0), header=None):
    """An .npy file with whatever header."""
    text = (
        header or f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}}}"
    )
    text = text.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + body


def archive(compression=zipfile.ZIP_STORED, **members):
    """A whole archive, some of whose members are these bytes (None: left out)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for key, array in arrays().items():
            plain = io.BytesIO()
            np.save(plain, array)
            contents = members.get(key, plain.getvalue())
            if contents is not None:
                made.writestr(f"{key}.npy", contents)
        for key in members.keys() - arrays().keys():
            made.writestr(key, members[key])
    return file.getvalue()


class Payload:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def patched(contents, mark, offset, *values):
    """`contents` with bytes changed behind every `mark`."""
    changed = bytearray(contents)
    for found in re.finditer(re.escape(mark), contents):
        start = found.start() + offset
        changed[start : start + len(values)] = bytes(values)
    return bytes(changed)


def changed(**changes):
    return npz({**arrays(), **changes})


MANY = np.arange(12_000)
DIRECTORY = b"PK\x01\x02"  # starts an entry of an archive's directory
FOREIGN = {
    "empty": (b"", "must be a whole .npz archive"),
    "text": (b"x_train, y_train\n1, 2\n", "must be a whole .npz archive"),
    "one array": (npy((2,), bytes(8)), "must be a whole .npz archive"),
    "zeros": (bytes(4096), "must be a whole .npz archive"),
    "archive of nothing": (b"PK\x05\x06" + bytes(18), "must hold x_train, y_train"),
    "wrong keys": (npz({"images": np.zeros(3)}), "none of the name x_train, y_train"),
    "one key missing": (archive(y_test=None), "got 'none of the name y_test'"),
    "no arrays": (archive(x_train=b"nothing"), "x_train cannot be read: "),
    "encrypted": (patched(archive(), DIRECTORY, 8, 1), "password required"),
    "unknown compression": (patched(archive(), DIRECTORY, 10, 99), "cannot be read"),
    "claims of 4 GiB a member": (
        patched(archive(), DIRECTORY, 20, *[254, 255, 255, 255] * 2),
        "must be a whole .npz archive, of at least 17,179,869,176 bytes",
    ),
}
ONE = {
    "2**40 elements": npy((2**40,), bytes(64)),
    "2**40 elements, compressed": npy((2**20, 2**10, 2**10), bytes(64)),
    "2**62 elements": npy((2**31, 2**31), bytes(64)),
    "2**80 elements": npy((2**40, 2**40), bytes(64)),
    "elements of 2 GiB": npy((4,), bytes(64), descr="|V2147483647"),
    "fewer bytes than elements": npy((TRAIN, 4, 4), bytes(4)),
    "negative shape": npy((-1,), bytes(64)),
    "fractional shape": npy("(1.5,)", bytes(64)),
    "shape of text": npy("('a',)", bytes(64)),
    "no shape": npy("None", bytes(64)),
    "unknown dtype": npy((4,), bytes(64), descr="<q9"),
    "dtype of nothing": npy((4,), bytes(64), descr=""),
    "order of text": npy((4,), bytes(64), order="'C'"),
    "a header that calls": npy((), header="__import__('os').abort()"),
    "a header without end": npy((), header="{'descr': ("),
    "a header of brackets": npy((), header="(" * 9000),
    "a header of more than 10,000 characters": npy((), header=" " * 20000 + "{}"),
    "a header of no text": npy((), header="\x00\xff\n\r"),
    "a header cut short": npy((4,))[:20],
    "an .npy of version 3": npy((4,), bytes(64), version=(3, 0)),
    "an .npy of version 9": npy((4,), bytes(64), version=(9, 9)),
}
"""What `x_train` and `y_test` may be that is no array."""
ARRAYS = {
    "images of int64": (
        changed(x_train=arrays()["x_train"].astype(int)),
        "uint8 or flo",
    ),
    "images of bool": (
        changed(x_train=np.ones((TRAIN, 4, 4), bool)),
        "uint8 or floating",
    ),
    "images of complex": (
        changed(x_test=np.ones((TEST, 4, 4), "c8")),
        "uint8 or floating",
    ),
    "images of bytes": (
        changed(x_test=np.ones((TEST, 4, 4), "S3")),
        "uint8 or floating",
    ),
    "images of dates": (
        changed(x_test=np.ones((TEST, 4, 4), "M8[s]")),
        "uint8 or floa",
    ),
    "images of records": (
        changed(x_test=np.ones((TEST, 4, 4), "f4,f4")),
        "uint8 or flo",
    ),
    "images of a number": (changed(x_train=np.float32(1)), "must have shape"),
    "images of 32 axes": (changed(x_train=np.ones((1,) * 32)), "must have shape"),
    "images without channels": (
        changed(x_train=np.ones((TRAIN, 4, 4, 0))),
        "not be empty",
    ),
    "one NaN of float16": (
        changed(
            x_test=np.r_["0", np.ones((TEST - 1, 4, 4)), np.full((1, 4, 4), np.nan)]
        ),
        "x_test must be finite; got '16 NaN or infinite values in float32'",
    ),
    "-inf": (changed(x_train=np.full((TRAIN, 4, 4), -np.inf, "f2")), "must be finite"),
    "test images beyond float32": (
        changed(
            x_train=np.linspace(0, 1e-9, TRAIN * 16).reshape(TRAIN, 4, 4),
            x_test=np.full((TEST, 4, 4), 3e38),
        ),
        "x_test must fit into float32 when it is standardized",
    ),
    "labels that are negative": (
        changed(y_train=np.arange(TRAIN) % 3 - 1),
        "must have every label from 0 to n - 1, with n of at least 2; got [-1, 0, 1]",
    ),
    "labels of 2**63": (
        changed(y_test=np.full(TEST, 2**63, "u8")),
        "must have labels from 0 to 2, as in y_train; got [9223372036854775808]",
    ),
    "labels with a gap": (changed(y_train=np.arange(TRAIN) * 2), "and 3 more"),
    "labels of NaN": (changed(y_test=np.full(TEST, np.nan)), "integer; got 'float64'"),
    "labels of bool": (changed(y_train=np.arange(TRAIN) % 2 > 0), "got 'bool'"),
    "labels of text": (changed(y_train=np.full(TRAIN, "a")), "must be integer"),
    "a label for all": (changed(y_test=np.int64(1)), f"must have shape ({TEST},)"),
    "labels of other images": (
        changed(y_train=np.arange(TEST) % 3),
        "a label for each",
    ),
    "12,000 labels": (
        changed(x_train=np.ones((len(MANY), 4, 4), "u1"), y_train=MANY * 5),
        "and 11991 more",
    ),
}
TABLE = {
    **FOREIGN,
    **{
        f"{name} ({key})": (
            archive(
                zipfile.ZIP_DEFLATED if "compressed" in name else zipfile.ZIP_STORED,
                **{key: contents},
            ),
            f"{key} cannot be read: ",
        )
        for name, contents in ONE.items()
        for key in ("x_train", "y_test")
    },
    **ARRAYS,
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_data(name, tmp_path, refused, record):
    contents, message = TABLE[name]
    path = tmp_path / "bad.npz"
    path.write_bytes(contents)
    tracemalloc.start()
    assert message in refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25
    record(question="data: a table of bad files", cases=1, refused=1)


def test_no_file(tmp_path, refused, record):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "loop.npz").symlink_to(tmp_path / "loop.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    names = ["pipe", "folder", "loop", "zero", "missing", "a" * 300, "nul\0", "no/such"]
    for name in names:
        path = tmp_path / f"{name}.npz"
        assert "must be an existing file" in refused(path)
    record(question="data: no file", cases=len(names), refused=len(names))


@contextlib.contextmanager
def mortal():
    """A new folder, and no rights of an administrator."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() > 0:
        yield folder
    else:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_data_without_permission(whole, capfd, record):
    with mortal() as folder:
        path = folder / "secret.npz"
        path.write_bytes(whole)
        path.chmod(0)
        line = refusal(capfd, comparison(path, folder / "out"), "data")
        assert f"Permission denied: '{path}'" in line
    record(question="data: no file", cases=1, refused=1)


@pytest.mark.parametrize("key", ["x_train", "y_test", "another"])
def test_pickles_are_never_loaded(key, tmp_path, refused, data, record, monkeypatch):
    """Neither as objects in an array, nor as the file, nor beside the arrays."""
    trap = tmp_path / "made by a pickle"
    payload = Payload(trap)
    pickle.loads(pickle.dumps(payload)).close()
    trap.unlink()  # so it does work
    path = tmp_path / "pickle.npz"
    objects = np.empty(TRAIN, object)
    objects[:] = payload
    path.write_bytes(npz({**arrays(), key: objects}))
    if key == "another":
        assert same(path, data)
    else:
        assert f"{key} cannot be read: Object arrays are" in refused(path)
    for contents in (pickle.dumps(payload), pickle.dumps(payload) + data.read_bytes()):
        path.write_bytes(contents)
        with contextlib.suppress(jaxpool.compare.UserError):
            jaxpool.compare.data.load(str(path))
    field = npy((TRAIN,), pickle.dumps(payload), descr="|O")
    path.write_bytes(archive(**{key: field}))
    with contextlib.suppress(jaxpool.compare.UserError):
        jaxpool.compare.data.load(str(path))
    assert not trap.exists()
    record(question="data: pickles that would make a file", cases=4, never_run=4)


def summary(path):
    return jaxpool.compare.data.load(str(path)).summary()


def same(path, data):
    return summary(path) == summary(data)


def test_unusual_data_are_read(tmp_path, data, record):
    """What is whole is not refused for how it was written."""
    path = tmp_path / "unusual.npz"
    plain = arrays()
    columns = {key: np.asfortranarray(array) for key, array in plain.items()}
    big = {**plain, **{k: plain[k].astype(">i2") for k in ("y_train", "y_test")}}
    old = npy(f"({TEST}L,)", plain["y_test"].tobytes(), descr="<i8")
    kinds = {
        "more keys": npz({**plain, "names": np.array(["a"])}),
        "by columns": npz(columns),
        "big-endian": npz(big),
        "compressed": archive(zipfile.ZIP_DEFLATED),
        "bz2": archive(zipfile.ZIP_BZIP2),
        "lzma": archive(zipfile.ZIP_LZMA),
        "by Python 2": archive(y_test=old),
        "an .npy of version 2": archive(
            y_test=npy((TEST,), plain["y_test"].tobytes(), "<i8", version=(2, 0))
        ),
        "names of other folders": archive(**{"../../x_train.npy": b"", "/etc/x": b""}),
        "behind something else": b"#!/bin/sh\n" + npz(plain),
        "before something else": npz(plain) + b"\n",
    }
    for contents in kinds.values():
        path.write_bytes(contents)
        assert same(path, data)
    record(question="data: unusual, but whole", cases=len(kinds), read=len(kinds))


def test_data_larger_than_memory(tmp_path, refused, monkeypatch, record):
    """An archive of 64 KiB that unpacks to 64 MiB is refused before it is unpacked."""
    path = tmp_path / "bomb.npz"
    path.write_bytes(
        archive(zipfile.ZIP_DEFLATED, x_train=npy((2**26,), bytes(2**26), "|u1"))
    )
    assert path.stat().st_size < 2**17
    monkeypatch.setattr(jaxpool.compare.data, "memory", lambda: 2**24)
    assert "must hold arrays that fit into memory" in refused(path)
    monkeypatch.undo()
    assert "x_train must have shape" in refused(path)
    record(question="data: a table of bad files", cases=1, refused=1)


def unharmed_or_refused(path, data, refused):
    """Whether a damaged file is refused; if not, it holds what it held."""
    try:
        unharmed = same(path, data)
    except jaxpool.compare.UserError:
        refused(path)
        return True
    assert unharmed
    return False


def positions(length, full, step):
    return range(0, length, 1 if full else step)


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_truncated_data(full, compression, tmp_path, data, refused, record):
    path = tmp_path / "cut.npz"
    contents = archive(compression)
    cuts = positions(len(contents), full, 97)
    for cut in cuts:
        path.write_bytes(contents[:cut])
        assert "must be a whole .npz archive" in refused(path)
    record(question="data: cut at a byte", cases=len(cuts), refused=len(cuts))


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_flipped_data(full, compression, tmp_path, data, refused, record):
    """One bit at every position, and several bytes at random."""
    path = tmp_path / "flipped.npz"
    contents = archive(compression)
    rng = random.Random(0)
    damages = [[at] for at in positions(len(contents), full, 29)]
    for _ in range(3000 if full else 100):
        damages.append(rng.sample(range(len(contents)), rng.randint(2, 20)))
    count = 0
    for places in damages:
        damaged = bytearray(contents)
        for place in places:
            damaged[place] ^= (
                1 << rng.randrange(8) if len(places) == 1 else rng.randrange(256)
            )
        path.write_bytes(damaged)
        count += unharmed_or_refused(path, data, refused)
    assert count > len(damages) / 2
    unharmed = len(damages) - count
    question = "data: bits and bytes changed at random"
    record(question=question, cases=len(damages), refused=count, unharmed=unharmed)


NAMES = [
    "a$b$c",
    "$\\frac$",
    "[/x]",
    "[red]x",
    "a|b",
    "a\nb",
    "{b}%s",
    "é你",
    "x\udcff",
]


@pytest.mark.usefixtures("at_once")
def test_names_of_files(whole, tmp_path, capfd, record):
    """A file's name is text, in the table, the page and the picture."""
    for i, name in enumerate(NAMES):
        path = tmp_path / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole)
        out = tmp_path / f"out{i}"
        said(capfd, comparison(path, out, methods="stride", seeds=1), code=0)
        assert {p.suffix for p in out.iterdir()} == SUFFIXES["compare"]
    record(question="data: whole, under odd names", cases=len(NAMES), read=len(NAMES))


@pytest.mark.full
def test_bad_data_in_a_process_of_its_own(tmp_path, record):
    chosen = [name for i, name in enumerate(TABLE) if i % 9 == 0]
    for name in chosen:
        path = tmp_path / "bad.npz"
        path.write_bytes(TABLE[name][0])
        command = comparison(path, tmp_path / "out")
        ended = subprocess.run(
            [sys.executable, "-m", "jaxpool", *command], capture_output=True, text=True
        )
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert TABLE[name][1] in ended.stderr
    question = "data: bad files, each in a process of its own"
    record(question=question, cases=len(chosen), refused=len(chosen))


# Where results go.


def both(data, out, *more):
    return [comparison(data, out, *more), timing(out, *more)]


def asked(kind, data, out, *more):
    return dict(zip(FILES, both(data, out, *more), strict=True))[kind]


def nothing_may_run(*_):
    raise AssertionError("work began before `out` was seen to be bad")


@pytest.mark.usefixtures("at_once")
def test_bad_out(data, tmp_path, capfd, monkeypatch, record):
    """Found before there is anything to lose."""
    monkeypatch.setattr(jaxpool.compare.run, "train", nothing_may_run)
    monkeypatch.setattr(jaxpool.bench, "line", nothing_may_run)
    monkeypatch.setattr(jaxpool.bench, "save", nothing_may_run)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "no" / "such")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    bad = ["file", "file/in/it", "nowhere", "loop", "a" * 300, "nul\0", "/proc/no"]
    for name in bad:
        for command in both(data, tmp_path / name):
            line = refusal(capfd, command, "out")
            rule = r"must be a folder that can be written to \(.+\); got "
            assert re.search(rule, line)
            assert repr(str(tmp_path / name)) in line
    assert (tmp_path / "file").read_text() == "mine"
    record(
        question="out: no folder to write to", cases=2 * len(bad), refused=2 * len(bad)
    )


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("mode", [0o500, 0o400, 0o000])
def test_out_without_permission(mode, whole, capfd, monkeypatch, record):
    monkeypatch.setattr(jaxpool.compare.run, "train", nothing_may_run)
    monkeypatch.setattr(jaxpool.bench, "save", nothing_may_run)
    with mortal() as folder:
        data, out = folder / "whole.npz", folder / "out"
        data.write_bytes(whole)
        out.mkdir()
        out.chmod(mode)
        commands = both(data, out) + both(data, out / "in it")
        for command in commands:
            assert "(Permission denied)" in refusal(capfd, command, "out")
    cases = len(commands)
    record(question="out: no folder to write to", cases=cases, refused=cases)


@pytest.mark.usefixtures("at_once", "no_picture")
def test_out_that_cannot_be_listed(data, whole, tmp_path, capfd, record):
    """Results need no list: there is no lock then, and nothing else amiss."""
    for command in both(data, tmp_path / "before"):  # imports what it needs
        said(capfd, command, code=0)
    with mortal() as folder:
        data, out = folder / "whole.npz", folder / "out"
        data.write_bytes(whole)
        out.mkdir()
        out.chmod(0o300)
        for command in both(data, out):
            said(capfd, command, code=0)
        out.chmod(0o700)
        assert len(list(out.iterdir())) == sum(map(len, SUFFIXES.values()))
    record(question="out: cannot be listed", cases=2, kept=2)


@pytest.fixture
def undisturbed(data, tmp_path, at_once, no_picture, capfd):
    """What both commands leave, and say, when nothing comes between."""
    found = {}
    for command in both(data, tmp_path / "undisturbed"):
        said(capfd, command, code=0)
        found[command[0]] = results(tmp_path / "undisturbed", FILES[command[0]])
    return found


def units(found):
    """What is finished, in results of either command."""
    if "methods" in found:
        return runs(found)
    return {(row["job"], row["direction"]): row for row in found["rows"]}


def finish(command, out, undisturbed, capfd):
    """Resumes, and asserts that the end is as if nothing had come between."""
    kind = command[0]
    path = out / FILES[kind]
    before = units(json.loads(path.read_text())) if path.exists() else {}
    said(capfd, [*command, "--resume"], code=0)
    assert results(out, FILES[kind]) == undisturbed[kind]
    assert before.items() <= units(undisturbed[kind]).items()
    stem = path.stem
    assert {p.name for p in out.iterdir()} == {stem + s for s in SUFFIXES[kind]}
    return before


@contextlib.contextmanager
def failing(monkeypatch, name, number, error):
    """The `number`-th call of a function of `os`, and those behind it, fail."""
    function, calls = getattr(os, name), itertools.count()

    def fail_later(*arguments, **options):
        if next(calls) >= number:
            raise OSError(error, os.strerror(error))
        return function(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail_later)
        yield


@pytest.mark.parametrize("kind", FILES)
def test_a_disk_that_fails(
    kind, data, tmp_path, undisturbed, capfd, monkeypatch, record
):
    """From the n-th write on, at the end of writing and at giving the file its name."""
    cases, kept = 0, []
    for name, error in (
        ("fsync", errno.EIO),
        ("fsync", errno.ENOSPC),
        ("replace", errno.EROFS),
    ):
        for number in range(30):
            out = tmp_path / f"{name} {error} {number}"
            command = asked(kind, data, out)
            capfd.readouterr()
            with failing(monkeypatch, name, number, error):
                code = main(command)
            err = capfd.readouterr().err
            if code == 0:
                break
            assert code == 2
            path = re.search(rf"jaxpool {kind}: \[Errno {error}\] .*: '(.*)'\n", err)[1]
            assert Path(path).parent == out
            assert f"Stopped. To go on: jaxpool {kind} " in err
            kept.append(len(finish(command, out, undisturbed, capfd)))
            cases += 1
        assert code == 0  # and so every write had its turn
    assert {0, len(units(undisturbed[kind]))} <= {*kept}
    record(
        question=f"{kind}: a disk that fails from one write on", cases=cases, kept=cases
    )


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def stopped(command, out, room):
    """Runs a command that runs out of room; returns how much it had finished."""
    with room:
        assert main(command) == 2
    return units(results(out, FILES[command[0]]))


@pytest.mark.parametrize("kind", FILES)
def test_no_room(kind, data, tmp_path, at_once, no_picture, capfd, monkeypatch, record):
    """The system itself refuses to let a file grow beyond 5,000 bytes."""
    monkeypatch.setattr(sys.modules[__name__], "JOBS", 12)
    whole, out = tmp_path / "whole", tmp_path / "out"
    commands = {
        "compare": lambda out: comparison(data, out, seeds=20),
        "bench": timing,
    }
    said(capfd, commands[kind](whole), code=0)
    everything = {kind: results(whole, FILES[kind])}
    command = commands[kind](out)
    capfd.readouterr()
    kept = stopped(command, out, files_of_at_most(5000))
    err = capfd.readouterr().err
    assert f"jaxpool {kind}: [Errno 27] File too large: '{out / FILES[kind]}'\n" in err
    assert 0 < len(kept) < len(units(everything[kind]))
    assert finish(command, out, everything, capfd) == kept
    record(question=f"{kind}: a disk that is full", cases=1, kept=1)


@pytest.mark.parametrize("kind", FILES)
def test_a_disk_that_is_full(kind, data, tmp_path, at_once, capfd, monkeypatch, record):
    """A file system of 128 KiB, which something else fills up between two writes."""
    monkeypatch.setattr(sys.modules[__name__], "JOBS", 12)
    whole, disk = tmp_path / "whole", tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", disk]
    if os.geteuid() > 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems can be mounted by an administrator alone")
    try:
        out = disk / "out"
        command = asked(kind, data, out)
        said(capfd, asked(kind, data, whole), code=0)
        everything = {kind: results(whole, FILES[kind])}
        writes = itertools.count()
        real_replace = files.os.replace

        def replace_and_fill(*arguments):
            real_replace(*arguments)
            if next(writes) == 2:
                fill(disk)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_and_fill)
            capfd.readouterr()
            assert main(command) == 2
        err = capfd.readouterr().err
        assert f": [Errno 28] No space left on device: '{out / FILES[kind]}'\n" in err
        kept = units(results(out, FILES[kind]))
        assert 0 < len(kept) < len(units(everything[kind]))
        line = refusal(capfd, [*command, "--resume"], "out")  # it is still full
        assert "(No space left on device)" in line
        assert units(results(out, FILES[kind])) == kept
        (disk / "filler").unlink()
        assert finish(command, out, everything, capfd) == kept
    finally:
        subprocess.run(["umount", disk], check=True)
    record(question=f"{kind}: a disk that is full", cases=2, kept=2)


def fill(disk):
    with (disk / "filler").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("what", ["folder", "file", "file for folder"])
def test_out_goes_while_it_is_used(
    what, kind, data, tmp_path, undisturbed, capfd, monkeypatch, record
):
    """What is in memory is written anew; only a name that is taken ends the run."""
    out = tmp_path / "out"
    command = asked(kind, data, out)
    writes, real_replace = itertools.count(), os.replace

    def replace_and_remove(*arguments):
        real_replace(*arguments)
        if next(writes) == 1:
            if what == "file":
                (out / FILES[kind]).unlink()
            else:
                shutil.rmtree(out)
            if what == "file for folder":
                out.write_text("mine")

    taken = what == "file for folder"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_remove)
        err = said(capfd, command, code=2 if taken else 0)
    if taken:
        assert re.search(rf"\[Errno \d+\] .*: '{out / FILES[kind]}'\n", err)
        assert out.read_text() == "mine"
        out.unlink()
    assert not taken or not out.exists()
    finish(command, out, undisturbed, capfd)
    record(question=f"{kind}: out goes while it is used", cases=1, kept=1)


# Two at once.


@pytest.mark.usefixtures("at_once", "no_picture")
def test_one_process_at_a_time(data, tmp_path, capfd, record):
    for name, command in [
        (command[0], command)
        for command in (
            comparison(data, tmp_path / "compare"),
            timing(tmp_path / "bench"),
        )
    ]:
        out = tmp_path / name
        with reserve("other", out / FILES[name]):
            line = refusal(capfd, command, "out")
            assert line == (
                f"`{command[0]}`: `out` must not be in use by another process; "
                f"got {str(out)!r}."
            )
            assert list(out.iterdir()) == []
        said(capfd, command, code=0)
    record(question="two with one --out", cases=2, refused=2)


def hammer(path, names, rounds):
    """Several threads replace a file while it is read; what is read is whole."""
    texts = {name: json.dumps([name] * 2000) for name in names}
    replace(path, lambda temporary: temporary.write_text(texts[names[0]]))

    def write(name):
        for _ in range(rounds):
            replace(path, lambda temporary: temporary.write_text(texts[name]))

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    read = 0
    while any(thread.is_alive() for thread in threads):
        assert path.read_text() in texts.values()
        read += 1
    return read


def test_what_is_read_is_whole_where_nothing_locks(data, tmp_path, monkeypatch, record):
    """Without locks, as on Windows: the last to write wins, and nothing is mixed."""
    monkeypatch.setattr(files, "fcntl", None)
    path = tmp_path / "out" / "results.json"
    with reserve("one", path), reserve("other", path):
        read = hammer(path, "abcd", 40)
    assert read > 40
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    record(question="written by 4 threads while it is read", cases=160, whole=160)


# Killed.


def test_contents_come_before_the_name(tmp_path, monkeypatch):
    """So that after a loss of power a file is the old one or the new one."""
    path, seen = tmp_path / "results.json", []
    for name in ("fsync", "replace"):
        function = getattr(os, name)

        def note(first, *more, name=name, function=function):
            is_file = isinstance(first, int) and os.path.isfile(
                f"/proc/self/fd/{first}"
            )
            seen.append(
                (name, "file" if is_file else "folder") if name == "fsync" else name
            )
            return function(first, *more)

        monkeypatch.setattr(os, name, note)
    replace(path, lambda temporary: temporary.write_text("contents"))
    assert seen == [("fsync", "file"), "replace", ("fsync", "folder")]


KILLED = """
import json, os, resource, signal, sys
from pathlib import Path
from jaxpool.compare.files import replace, reserve
from jaxpool.compare.methods import all_methods

path, step = Path(sys.argv[1]) / "out" / "results.json", int(sys.argv[2])
texts = [json.dumps([n] * 200) for n in range(2)]

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def at_byte(n):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))

def at_call(name, number, after):
    function, left = getattr(os, name), [number]
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0 and not after:
            kill()
        result = function(*arguments, **options)
        if left[0] < 0:
            kill()
        return result
    setattr(os, name, call)

points = [(at_byte, (n,)) for n in range(0, len(texts[1]), step)]
for name in ("open", "fsync", "replace", "close"):
    points += [(at_call, (name, n, after)) for n in range(2) for after in (0, 1)]
kept = 0
for arrange, arguments in points:
    replace(path, lambda temporary: temporary.write_text(texts[0]))
    child = os.fork()
    if not child:
        arrange(*arguments)
        replace(path, lambda temporary: temporary.write_text(texts[1]))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert path.read_text() in texts, arguments
    if os.WIFSIGNALED(status):
        kept += 1
        if arrange is at_byte:
            assert path.read_text() == texts[0], arguments
    else:
        assert path.read_text() == texts[1], arguments
left = len(list(path.parent.iterdir())) - 1
with reserve("test", path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]
print(json.dumps([len(points), kept, left]))
"""
"""Ends a process at each byte that it writes, and before and after each call."""


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full)])
def test_killed_at_every_byte_and_call(full, tmp_path, record):
    step = 1 if full else 25
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path, str(step)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    points, killed, left = json.loads(ended.stdout)
    assert killed > points - 8
    assert left > points / 2  # unfinished files, which the next one to come removes
    record(
        question="killed at a byte or a call of one write", cases=killed, whole=killed
    )


def start(command, folder):
    """A command in a process of its own, which says on files what it has finished."""
    with open(folder / "stderr", "ab") as err, open(folder / "stdout", "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "jaxpool", *map(str, command)],
            stdout=out,
            stderr=err,
            cwd=ROOT,
        )


def reported(kind, text):
    """What a command said that it had finished: a method, or a row."""
    if kind == "compare":
        return {m[1] for m in re.finditer(r"^(\w+): [\d.]+ % acc", text, re.MULTILINE)}
    pattern = r"^(\w+), (\S+) (\S+) (\w+) (\w+): "
    return {m.groups() for m in re.finditer(pattern, text, re.MULTILINE)}


def saved(kind, found, seeds):
    if kind == "compare":
        return {n for n, e in found["methods"].items() if len(e["runs"]) >= seeds}
    keys = ("case", "op", "window", "dtype", "direction")
    return {tuple(row[key] for key in keys) for row in found["rows"]}


LIVE = {
    "compare": (
        [
            "compare",
            "--data=digits",
            "--methods=max,stride",
            "--epochs=1",
            "--batch=64",
        ],
        ["--seeds=12"],
    ),
    "bench": (
        ["bench", "--quick", "--suite=ops", "--ops=extremum,average", "--rounds=3"],
        [],
    ),
}


def wait(process, path, writes, delay):
    """Waits until a process has written a file some times, and a moment more."""
    stamp = path.stat().st_mtime_ns if path.exists() else None
    for _ in range(writes):
        while process.poll() is None:
            if path.exists() and path.stat().st_mtime_ns != stamp:
                stamp = path.stat().st_mtime_ns
                break
            time.sleep(0.001)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay if writes else 10 * delay)  # as long as it takes to start


@pytest.mark.full
@pytest.mark.parametrize("kind", FILES)
def test_killed_at_random(kind, tmp_path, record):
    """Killed, resumed, killed: nothing finished is lost, and the end is the same."""
    seed, wanted = 20261124, 20
    rng = random.Random(seed)
    first, more = LIVE[kind]
    command, name = [*first, *more], FILES[kind]
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    assert start([*command, f"--out={quiet / 'out'}"], quiet).wait() == 0
    expected = results(quiet / "out", name)
    kills = rounds = torn = resumed = 0
    while kills < wanted:
        folder = tmp_path / f"round {rounds}"
        folder.mkdir()
        out, seen = folder / "out", {}
        while True:
            process = start([*command, f"--out={out}", "--resume"], folder)
            writes, delay = rng.choice([0, 1, 1, 2, 3, 5]), rng.uniform(0, 0.4)
            wait(process, out / name, writes, delay)
            process.kill()
            code = process.wait()
            text = (folder / "stderr").read_text()
            said = f"{delay:.2f} s after {writes} writes, ended with {code}"
            print(f"{kind}, seed {seed}: {said}")
            torn += bool(out.exists() and list(out.glob(".*.unfinished.*")))
            if (out / name).exists():
                found = results(out, name)
                now = units(found)
                assert seen.items() <= now.items()
                assert reported(kind, text) <= saved(kind, found, 12)
                seen = now
            else:
                assert not seen
            if code == 0:
                break
            assert code == -signal.SIGKILL, text
            kills += 1
            resumed += bool(seen)
        assert "Traceback" not in text
        finished = results(out, name)
        if kind == "compare":
            assert runs(finished) == runs(expected)
        else:
            assert list(units(finished)) == list(units(expected))
        stem = Path(name).stem
        names = {stem + suffix for suffix in SUFFIXES[kind]}
        assert {p.name for p in out.iterdir()} == names
        rounds += 1
    assert resumed > 3
    record(
        question=f"{kind}: killed (SIGKILL) at a random moment, and resumed",
        cases=kills,
        kept=kills,
        seed=seed,
        unfinished_files=torn,
    )


@pytest.mark.full
@pytest.mark.parametrize("kind", FILES)
def test_two_processes_at_once(kind, tmp_path, record):
    """One works, the other is told so and touches nothing."""
    first, more = LIVE[kind]
    command = [*first, *more, f"--out={tmp_path / 'out'}", "--resume"]
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    both = [start(command, folder) for folder in folders]
    codes = [process.wait() for process in both]
    assert sorted(codes) == [0, 2]
    loser = folders[codes.index(2)]
    assert "must not be in use by another process" in (loser / "stderr").read_text()
    assert results(tmp_path / "out", FILES[kind])
    record(question="two with one --out", cases=1, refused=1)


# Results that are not whole.


def places(value, path=()):
    """Every place in a tree of JSON: a path of keys and numbers."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from places(inner, (*path, key))


GONE = object()
WRONG = {
    "gone": GONE,
    "null": None,
    "true": True,
    "-1": -1,
    "0.5": 0.5,
    "1e308": 1e308,
    "nan": math.nan,
    "infinite": math.inf,
    "1e400": 10**400,
    "text": "wrong",
    "list": [],
    "lists": [[1], [2]],
    "object": {},
    "objects": {"a": {}, "b?": {"runs": 1}},
}


def spoiled(tree, path, wrong):
    """A copy of a tree with something wrong in one place; None if there it is right."""
    if not path:
        return None if wrong is GONE else wrong
    tree = copy.deepcopy(tree)
    *most, last = path
    parent = tree
    for key in most:
        parent = parent[key]
    if wrong is GONE:
        del parent[last]
    elif type(parent[last]) is type(wrong) and parent[last] == wrong:
        return None
    else:
        parent[last] = wrong
    return tree


def complete(found):
    if "methods" in found:
        return all(len(entry["runs"]) >= SEEDS for entry in found["methods"].values())
    return {row["job"] for row in found["rows"]} == {*range(JOBS)}


@pytest.fixture
def resume(data, tmp_path, undisturbed, capfd):
    """Resumes from a text; returns whether it was refused, and then as it should."""

    def ask(kind, text):
        out = tmp_path / "resumed"
        out.mkdir(exist_ok=True)
        path = out / FILES[kind]
        contents = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(contents)
        command = asked(kind, data, out, "--resume")
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as noise:
            warnings.simplefilter("always")
            code = main(command)
        err = capfd.readouterr().err
        assert noise == []
        if code == 0:
            again = json.loads(path.read_text())
            assert complete(again)
            return False
        assert code == 2
        assert err.count("\n") == 1
        refused = f"jaxpool {kind}: `{kind}`: "
        about = (f"`out` {path} is not readable: ", "`resume` must go on ")
        assert err.startswith(tuple(refused + what for what in about))
        assert path.read_bytes() == contents
        assert len(list(out.iterdir())) in (1, len(SUFFIXES[kind]))
        return True

    return ask


@pytest.mark.parametrize("kind", FILES)
def test_results_cut_short(kind, undisturbed, resume, record, request):
    text = json.dumps(undisturbed[kind], indent=2) + "\n"
    cuts = positions(len(text) - 1, request.config.getoption("full"), 61)
    assert all([resume(kind, text[:cut]) for cut in cuts])
    record(
        question=f"{kind} --resume: cut at a byte", cases=len(cuts), refused=len(cuts)
    )


@pytest.mark.parametrize("kind", FILES)
def test_results_of_wrong_values(kind, undisturbed, resume, record, request):
    """In every place something else; what passes is of the right kind, and harmless."""
    whole = undisturbed[kind]
    full = request.config.getoption("full")
    cases = refused = 0
    for number, path in enumerate(places(whole)):
        for name, wrong in WRONG.items():
            tree = spoiled(whole, path, wrong)
            if tree is None or (not full and (number + len(name)) % 9):
                continue
            cases += 1
            if resume(kind, json.dumps(tree)):
                refused += 1
            else:
                assert harmless(whole, path, wrong), (path, name)
    assert refused > cases / 2
    question = f"{kind} --resume: a wrong value in one place"
    record(question=question, cases=cases, refused=refused, harmless=cases - refused)


def harmless(whole, path, wrong):
    """Whether a value may stand where another was: it is of its kind, or optional."""
    if {"summary", "interrupted", "notes", "temp_bytes", "residual_bytes"} & {*path}:
        return True
    value = whole
    for key in path:
        value = value[key]
    if wrong is GONE:
        of_list = isinstance(path[-1], int)
        return of_list or isinstance(value, dict | list) or path[-1] == "compile_s"
    numbers = (int, float, type(None))
    for kinds in (numbers, str, list, dict):
        if isinstance(value, kinds) and not isinstance(value, bool):
            return isinstance(wrong, kinds) and not isinstance(wrong, bool)
    return False


NOT_RESULTS = {
    "empty": b"",
    "zeros": bytes(1000),
    "no text": b"\xff\xfe\x00",
    "a picture": b"\x89PNG\r\n\x1a\n",
    "deep": b"[" * 100_000,
    "deep objects": b'{"settings":' * 100_000,
    "digits": b"9" * 10_000,
    "a list": b"[]",
    "null": b"null",
    "two": b"{}{}",
    "of nobody": b'{"settings": {}, "data": {}, "environment": {}, "methods": {}}',
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_results(kind, undisturbed, resume, record):
    for contents in NOT_RESULTS.values():
        assert resume(kind, contents)
    other = next(k for k in FILES if k != kind)
    assert resume(kind, json.dumps(undisturbed[other]))
    for key, version in (("jaxpool", "0.0.1"), ("jax", "99")):
        older = copy.deepcopy(undisturbed[kind])
        older["environment"][key] = version
        assert resume(kind, json.dumps(older))
    count = len(NOT_RESULTS) + 3
    record(question=f"{kind} --resume: no results", cases=count, refused=count)
