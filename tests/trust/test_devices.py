"""Many devices, and several processes, give what one device gives.

Devices are virtual ones of the CPU and processes meet over the loopback, so that this
can be asked anywhere; what is compiled for them is what is compiled for real ones.
"""

import collections
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from device_programs import LAYOUTS, MESHES, RATE, WINDOWS, elements, pictures, sizes_in

from jaxpool.__main__ import main
from jaxpool._core.op import OPS
from jaxpool.compare.methods import all_methods

HERE = Path(__file__).parent
STEPS = 10
# What rounding may change in a step, for each unit of the largest value; sums over
# devices are taken in another order, and each step starts from what the last one left.
ROUNDING = 8 * float(np.finfo(np.float32).eps)
SPATIAL = "batch over 4, height over 2"
NAMED = ["max", "avg", "lp", "gem_learned", "stochastic", "adaptive_avg", "blur"]
SPLIT = [
    op.name
    for op in OPS.values()
    if (op.kind, op.outputs, op.inputs) == ("window", 1, ("x",))
    and not (op.integer or op.takes_key)
]


@pytest.fixture(autouse=True)
def quick_compilation(request, monkeypatch):
    """Less optimisation by XLA, in half of the time; all of it with `--full`."""
    quick = not request.config.getoption("full")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(quick))


def start(command, devices):
    """Starts a process that sees so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(HERE.parents[1])}
    pipe = subprocess.PIPE
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def finish(processes):
    """(exit code, standard output, standard error) of each; none outlives this."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
        texts = [process.communicate(timeout=3000) for process in processes]
        return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def address():
    """Where processes can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def ask(out, name, processes=1, **arguments):
    """Runs a function of `device_programs` on 8 devices; its rows and their arrays."""
    out.mkdir()
    started, meet = [], address()
    for i in range(processes):
        more = {"processes": (meet, processes, i)} if processes > 1 else {}
        command = [HERE / "device_programs.py", name, out]
        command += [json.dumps({**arguments, **more})]
        started.append(start(command, 8 // processes))
    for code, _, error in finish(started):
        assert code == 0, error
    rows = json.loads((out / "rows.json").read_text())
    files = [out / f"{i + 1}.npz" for i in range(len(rows))]
    arrays = [dict(np.load(f)) if f.exists() else {} for f in files]
    return list(zip(rows, arrays, strict=True))


def distance(arrays, expected):
    """How far the farthest array is, for each unit of its largest value."""
    apart = [
        np.max(np.abs(arrays[k] - v)) / np.max(np.abs(v)) for k, v in expected.items()
    ]
    return float(np.max(apart))


def agree(record, trained, expected, processes):
    """Compares what layouts trained with what one device did, and looks for gathers."""
    for row, arrays in trained:
        if "one device" in row["layout"]:
            continue
        (wanted, *moved), named = expected[row["method"]], row["method"] in NAMED
        asked = wanted if named else {"losses": wanted["losses"]}
        far = distance(arrays, asked)
        # Adam divides a gradient by its own size: of one that is all rounding, as some
        # methods have it, it makes a step like any other, in any direction.
        strayed = steps_between(arrays, wanted)
        # And where two elements are as good as equal, rounding says which is the
        # maximum. So a layout may differ by what a last bit of the images changes.
        may = max(STEPS * ROUNDING, *(MOST * distance(m, asked) for m in moved))
        stray = max(0.01, *(MOST * steps_between(m, wanted) for m in moved))
        gathers = map(sizes_in, row["collectives"].get("all-gather", []))
        maps = [sizes for sizes in itertools.chain(*gathers) if len(sizes) == 4]
        facts = {"processes": processes, "distance": far, "strayed": strayed}
        facts |= {"may": may, "stray": stray, "gathered": maps}
        record(asked="training", **facts, **row)
        assert np.isfinite(arrays["losses"]).all()
        assert far <= may, (row["method"], row["layout"])
        assert strayed <= stray, (row["method"], row["layout"])
        if named:  # others may need all of a map, as an average does
            assert not maps, (row["method"], row["layout"])


MOST = 8  # roundings are many, and the inputs move once


def steps_between(arrays, wanted):
    """How far the farthest parameter is, in steps of the optimizer."""
    apart = np.max(np.abs(arrays["params"] - wanted["params"]))
    return float(apart / (RATE * STEPS))


def trained(tmp_path, methods, layouts, **more):
    options = {"methods": methods, "layouts": ["one device", *layouts], "steps": STEPS}
    return ask(tmp_path / "one process", "training", **options, **more)


def single(rows):
    """What one device trained, as asked and after that with images that moved."""
    alone = collections.defaultdict(list)
    for row, arrays in rows:
        if "one device" in row["layout"]:
            alone[row["method"]].append(arrays)
    return alone


def test_training_on_8_devices(tmp_path, record):
    rows = trained(tmp_path, ["stochastic"], [SPATIAL])
    agree(record, rows, single(rows), 1)


@pytest.mark.full
@pytest.mark.parametrize("method", NAMED)
def test_training_in_all_layouts_and_in_two_processes(method, tmp_path, record):
    rows = trained(tmp_path, [method], [n for n in LAYOUTS if n != "one device"])
    agree(record, rows, single(rows), 1)
    options = {"methods": [method], "layouts": ["batch over 8", SPATIAL]}
    two = ask(tmp_path / "two", "training", processes=2, steps=STEPS, **options)
    agree(record, two, single(rows), 2)


@pytest.mark.full
@pytest.mark.parametrize("method", sorted(all_methods().keys() - set(NAMED)))
def test_training_with_every_other_method(method, tmp_path, record):
    rows = trained(tmp_path, [method], ["batch over 8", SPATIAL])
    agree(record, rows, single(rows), 1)


def halo_elements(window, mesh):
    """For each axis of halos, what a device is sent, at most: rows times the rest."""
    rows = {"2x2 by 2": 0, "3x3 by 1, dilation 2, SAME": 2, "5x5 by 2, SAME": 2}
    most = rows.get(window, 1)
    shape = (2, 8, 24, 4) if mesh == "height over 8" else (1, 32, 12, 4)
    # Columns are sent after the rows, whose halos have corners.
    return most * shape[0] * shape[3] * (max(shape[1] + 2 * most, shape[2]))


def check_halos(record, rows):
    for row, _ in rows:
        record(asked="halos", **row)
        far = row["deviation"]
        # A second derivative adds up products of first ones.
        assert far <= (1 + row["derivative"]) * ROUNDING, row
        if row["form"] == "sharded":
            assert set(row["collectives"]) <= {"collective-permute"}, row
            moved = row["collectives"].get("collective-permute", [])
            assert bool(moved) == (row["window"] != "2x2 by 2"), row
            most = halo_elements(row["window"], row["mesh"])
            assert all(elements(shape) <= most for shape in moved), row


def test_sharded_exchanges_halos_alone(tmp_path, record):
    windows = ["3x3 by 2, SAME"]
    options = {"windows": windows, "forms": ["sharded"], "meshes": ["height over 8"]}
    ops = ["max_pool", "avg_pool"]
    rows = ask(tmp_path / "out", "halos", ops=ops, derivatives=[0, 1], **options)
    check_halos(record, rows)
    for row, _ in rows:  # one row of the device behind, and its gradient back
        rows_sent = row["collectives"]["collective-permute"]
        assert rows_sent == ["f32[2,1,24,4]"] * (1 + row["derivative"])


@pytest.mark.full
@pytest.mark.parametrize("op", SPLIT)
def test_sharded_with_every_op_and_window(op, tmp_path, record):
    options = {"windows": [*WINDOWS], "forms": ["sharded"], "meshes": [*MESHES]}
    derivatives = [0, 1, 2] if op == "max_pool" else [0, 1]
    check_halos(
        record,
        ask(tmp_path / "out", "halos", ops=[op], derivatives=derivatives, **options),
    )


@pytest.mark.full
def test_what_xla_makes_of_pools_by_itself(tmp_path, record):
    windows = ["2x2 by 2", "3x3 by 2, SAME", "3x3 by 1, SAME"]
    options = {"windows": windows, "forms": ["auto", "reduce_window"]}
    ops = ["max_pool", "avg_pool", "lp_pool", "gem_pool", "lse_pool", "median_pool"]
    options |= {"ops": ops, "meshes": ["height over 8"], "derivatives": [0, 1]}
    rows = ask(tmp_path / "out", "halos", **options)
    check_halos(record, rows)
    for row, _ in rows:
        if (row["form"], row["window"]) == ("auto", "2x2 by 2"):
            moved = itertools.chain(*row["collectives"].values())
            # At most a value an image and channel, of which zeros are made.
            assert max(map(elements, moved), default=0) <= 2 * 4, row


@pytest.fixture
def asked(tmp_path):
    """The arguments of a small comparison."""
    np.savez(tmp_path / "pictures.npz", **pictures())
    data = f"--data={tmp_path / 'pictures.npz'}"
    return ["compare", data, "--methods=max", "--epochs=1", "--seeds=1"]


def meeting(command, *each):
    """Runs a command in two processes of one device, each with arguments of its own."""
    meet = address()
    ended = finish(
        [
            start([*command, *own, f"--distributed={meet},2,{i}"], 1)
            for i, own in enumerate(each)
        ]
    )
    gloo = re.compile(r"^\[Gloo\].*\n", re.MULTILINE)  # what it says is not ours
    return [(code, gloo.sub("", out), error) for code, out, error in ended]


def compare(asked, folders, *more):
    outs = [[f"--out={folder}"] for folder in folders]
    return meeting(["-m", "jaxpool", *asked, *more], *outs)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_compare_in_two_processes(asked, tmp_path, record):
    folders = [tmp_path / "first", tmp_path / "second"]
    (code, out, _), (other, silent, error) = compare(asked, folders)
    assert (code, other) == (0, 0), error
    assert "accuracy" in out
    assert (silent, "max" in error) == ("", False)
    assert not folders[1].exists()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert main([*asked, f"--out={tmp_path / 'one'}"]) == 0  # on two devices
    environments, runs = [], []
    for folder in (folders[0], tmp_path / "one"):
        environments.append(results(folder)["environment"])
        runs.append(results(folder)["methods"]["max"]["runs"])
    assert environments[0] == environments[1]
    record(asked="compare", two_processes=runs[0], one_process=runs[1])
    (two,), (one,) = runs
    assert two.pop("moved") is one.pop("moved") is None
    assert two == pytest.approx(one, rel=STEPS * ROUNDING)


@pytest.mark.full
def test_compare_is_resumed_by_the_first_process(asked, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    assert [code for code, _, _ in compare(asked, folders)] == [0, 0]
    for code, _, error in compare(asked, folders):
        assert code == 2
        assert "in process 0: `compare`: `out` must hold no results yet" in error
    before = results(folders[0])["methods"]
    (code, _, error), _ = compare(asked, folders, "--methods=max,avg", "--resume")
    assert code == 0, error
    after = results(folders[0])["methods"]
    assert [*after] == ["max", "avg"]
    assert after["max"]["runs"] == before["max"]["runs"]
    assert not folders[1].exists()


@pytest.mark.full
@pytest.mark.parametrize(
    ("process", "wrong", "message"),
    [
        (
            1,
            "--data=missing.npz",
            "in process 1: `compare`: `data` must be an existing",
        ),
        (
            0,
            "--data=missing.npz",
            "in process 0: `compare`: `data` must be an existing",
        ),
        (1, "--lr=0.1", "in process 1: `compare`: `distributed` must be started alike"),
        (1, "--seeds=0", "in process 1: `compare`: `seeds` must be at least 1"),
    ],
)
def test_an_error_in_one_process_ends_both(
    process, wrong, message, asked, tmp_path, record
):
    each = [[f"--out={tmp_path / 'out'}"] for _ in range(2)]
    each[process].append(wrong)
    for code, out, error in meeting(["-m", "jaxpool", *asked], *each):
        assert (code, out) == (2, "")
        assert message in error
    assert not (tmp_path / "out" / "results.json").exists()
    record(asked="errors", process=process, error=wrong)


BROKEN = """
import sys, jax
import jaxpool.compare.training as training
from jaxpool.__main__ import main
whole, calls = training.on_devices, []
def on_devices(array, sharding):
    calls.append(array)
    if jax.process_index() == {process} and len(calls) > 5:
        raise MemoryError("no room")
    return whole(array, sharding)
training.on_devices = on_devices
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.full
@pytest.mark.parametrize("process", [0, 1])
def test_an_unforeseen_error_ends_both(process, asked, tmp_path, record):
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(process=process))
    out = [f"--out={tmp_path / 'out'}"]
    ended = meeting([script, *asked], out, out)
    assert all(code != 0 and error for code, _, error in ended)
    assert "MemoryError: no room" in ended[process][2]
    record(asked="errors", process=process, error="MemoryError")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("here", "`distributed` must be HOST:PORT,N,I, or nothing"),
        ("here:1,2,three", "`distributed` must be HOST:PORT,N,I, or nothing"),
    ],
)
def test_addresses_that_are_none(address, message, asked, capfd):
    assert main([*asked, f"--distributed={address}"]) == 2
    assert message in capfd.readouterr().err
