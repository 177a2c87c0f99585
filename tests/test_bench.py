"""`jaxpool bench`: end to end through the command, on small cases."""

import itertools
import json
import math
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.image import imread

import jaxpool
import jaxpool.bench
from jaxpool.__main__ import main
from jaxpool.bench import models, ops, pools, timing
from jaxpool.bench.contestants import (
    OURS,
    PEERS,
    YARDSTICK,
    Contestant,
    Entry,
    Unable,
    contestants,
)
from jaxpool.bench.models import MODELS, POOLS, Network
from jaxpool.bench.problem import DTYPES, LAYOUTS, Problem, memory
from jaxpool.bench.report import _mebi, _narrowed, _times, write_report
from jaxpool.bench.results import summarize
from jaxpool.bench.shapes import OPS, SUITES, Case
from jaxpool.bench.timing import interleave, spread
from jaxpool.compare.methods import all_methods, choose


@pytest.fixture(scope="module", autouse=True)
def usual_promotion():
    """Other frameworks mix dtypes and ranks, which is not ours to forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def case(op, shape, window, strides, padding=None, **others):
    padding = padding or ((0, 0),) * len(window)
    batch, *sample = shape
    name = f"{len(window)}-d"
    return Case(name, op, batch, tuple(sample), window, strides, padding, **others)


PLANE = case("max", (2, 9, 8, 3), (3, 3), (2, 2), ((1, 1), (1, 1)), quick=1)
LINE = case("avg", (2, 9, 3), (2,), (2,))
SPACE = case("avg", (1, 4, 5, 4, 2), (2, 2, 2), (2, 2, 2), ((0, 0), (1, 1), (0, 0)))
SAME = case("max", (2, 6, 6, 3), (3, 3), (1, 1), ((1, 1), (1, 1)))
BINS = Case("bins", "max", 2, (8, 6, 3), (3, 4), (), (), adaptive=True)
ODD = case("max", (2, 6, 6, 3), (3, 3), (2, 2), ((0, 1), (0, 1)))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(SUITES, "models", [PLANE, LINE])


def command(out, *more, peers="flax"):
    return ["bench", f"--out={out}", f"--peers={peers}", "--rounds=1", *more]


def read(out):
    return json.loads((out / "bench.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with Flax; not to be changed."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "models", [PLANE, LINE])
        assert main(command(out)) == 0
    return out


# What is timed.

EVERY = [(suite, case) for suite, cases in SUITES.items() for case in cases]


@pytest.mark.parametrize(
    "case", [c for _, c in EVERY], ids=[f"{s}-{c.name}-{c.op}" for s, c in EVERY]
)
def test_case_is_valid(case):
    if case.adaptive:
        pool = lambda x: jaxpool.adaptive_max_pool(x, case.window)  # noqa: E731
        shape = jax.eval_shape(pool, jax.ShapeDtypeStruct(case.shape, "float32")).shape
    else:
        window = case.window, case.strides, case.padding
        shape = jaxpool.output_shape(case.shape, *window)
    assert case.out_shape == shape
    assert math.prod(shape) > 0
    assert len(case.sample) == len(case.window) + 1
    assert case.op in OPS
    assert case.quick is None or 0 < case.quick <= case.batch


@pytest.mark.parametrize("suite", SUITES)
def test_cases_differ(suite):
    cases = SUITES[suite]
    assert len({(c.name, c.op, c.label) for c in cases}) == len(cases)
    assert len({(c.op, c.shape, c.label) for c in cases}) == len(cases)
    assert 0 < sum(c.quick is not None for c in cases) < len(cases)


def test_quick_is_the_ten():
    quick = [c.quickly() for c in SUITES["models"] if c.quick is not None]
    assert {(c.op, *c.shape, c.label) for c in quick} == {
        ("max", 8, 112, 112, 64, "3/2/1"),
        ("max", 8, 28, 28, 192, "3/1/1"),
        ("max", 1, 224, 224, 64, "2/2/0"),
        ("max", 4, 147, 147, 64, "3/2/0"),
        ("max", 8, 13, 13, 512, "5/1/2"),
        ("max", 8, 13, 13, 512, "13/1/6"),
        ("max", 64, 32, 32, 64, "2/2/0"),
        ("avg", 8, 35, 35, 288, "3/1/1"),
        ("avg", 16, 28, 28, 256, "2/2/0"),
        ("avg", 1, 28, 28, 240, "3/2/1"),
    }
    assert len(quick) == 10
    assert len(SUITES["models"]) >= 30


def test_output_sizes_of_the_models():
    sizes = {c.name: c.out_shape[1:3] for c in SUITES["models"]}
    assert sizes["ResNet-50 stem"] == sizes["ResNet-50 stem, SAME"] == (56, 56)
    assert sizes["ResNet-50 head"] == (1, 1)
    assert sizes["GoogLeNet pool1"] == (57, 57)
    assert sizes["GoogLeNet pool4"] == (7, 7)


def test_batch_fits_the_machine():
    sample = math.prod(PLANE.sample) * 4
    assert PLANE.scaled(10**12, 4) == PLANE
    assert PLANE.scaled(512 * sample, 4).batch == 1
    assert PLANE.scaled(0, 4).batch == 1
    assert case("max", (4, 8, 1), (2,), (2,)).scaled(512 * 64, 4).batch == 2
    largest = max(SUITES["batch"], key=lambda c: c.batch)
    assert largest.scaled(0, 4) == largest
    assert 4 * math.prod(largest.shape) < 110e6
    assert memory() > 2**28


def test_label():
    i3d = next(c for c in SUITES["models"] if c.name == "I3D pool1")
    assert i3d.label == "(1,3,3)/(1,2,2)/(0,1,1)"
    assert ODD.label == "3/2/0:1"


# The command.


def test_json_holds_everything(finished):
    results = read(finished)
    assert results["settings"]["suite"] == ["models"]
    assert results["environment"]["jax"] == jax.__version__
    assert results["environment"]["cpus"] >= 1
    assert results["not_installed"] == []
    assert not results["interrupted"]
    rows = results["rows"]
    cases = [(r["case"], r["op"], r["direction"]) for r in rows]
    both = ("forward", "gradient")
    assert cases == [
        (c.name, c.op, which) for c, which in itertools.product((PLANE, LINE), both)
    ]
    assert rows[0]["window"] == "3/2/1"
    assert rows[0]["shape"] == [2, 9, 8, 3]
    assert rows[0]["outputs"] == 2 * 5 * 4 * 3
    assert rows[0]["input_bytes"] == 4 * 2 * 9 * 8 * 3
    for row in rows:
        assert list(row["times"]) == [OURS, "flax", YARDSTICK]
        for time in row["times"].values():
            assert 0 < time["q1_ms"] <= time["median_ms"] <= time["q3_ms"]
            assert time["calls"] == 2
        ours = row["times"][OURS]["median_ms"]
        assert row["ratios"] == {
            name: row["times"][name]["median_ms"] / ours for name in ("flax", YARDSTICK)
        }
    for name in (OURS, "flax"):
        assert set(rows[0]["costs"][name]) == {"compile_s", "temp_bytes"}
        costs = rows[1]["costs"][name]
        assert costs["compile_s"] > 0
        assert costs["temp_bytes"] >= 0
        assert costs["residual_bytes"] >= 0
    # The gradient of Flax's maximum looks at the input again.
    assert rows[1]["costs"]["flax"]["residual_bytes"] == rows[1]["input_bytes"]


def test_summary(finished):
    results = read(finished)
    assert len(results["summary"]) == 2 * 2 * 2  # op, pass, peer
    first = results["summary"][0]
    assert first.items() >= {"op": "max", "direction": "forward", "cases": 1}.items()
    assert first["geometric_mean"] == pytest.approx(
        results["rows"][0]["ratios"]["flax"]
    )


def test_markdown(finished):
    text = (finished / "bench.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, first, *_ = [line.strip("| ").split(" | ") for line in lines]
    row = dict(zip(header, first, strict=True))
    assert row["case"] == "2-d"
    assert row["shape"] == "2×9×8×3"
    assert row["window"] == "3/2/1"
    ratio = read(finished)["rows"][0]["ratios"]["flax"]
    assert row["flax"].removeprefix("~") == _times(ratio)
    assert "geometric mean" in text


def test_picture_is_drawn(finished):
    pixels = imread(finished / "bench.png")
    height, width, _ = pixels.shape
    assert width > 1000
    assert height > 250
    rows_with_ink = np.any(pixels[..., :3] < 0.9, axis=(1, 2)).mean()
    assert rows_with_ink > 0.3


def test_nothing_else_is_left_in_the_folder(finished):
    names = {"bench.json", "bench.md", "bench.png"}
    assert {path.name for path in finished.iterdir()} == names


def test_table_and_progress_lines(tiny, tmp_path, capfd):
    assert main(command(tmp_path, "--ops=avg", "--dtype=bf16")) == 0
    captured = capfd.readouterr()
    assert "models, bf16" in captured.out
    assert "geometric" in captured.out
    assert [line.split(":")[0] for line in captured.err.splitlines()] == [
        "1-d, avg 2/2/0 bf16 forward",
        "1-d, avg 2/2/0 bf16 gradient",
    ]


def test_quick_takes_its_own_batch(tiny, tmp_path):
    results = jaxpool.bench.bench(quick=True, peers=["flax"], rounds=1, out=tmp_path)
    assert {row["shape"] for row in results["rows"]} == {(1, 9, 8, 3)}


def test_missing_peer_is_named(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "equinox", None)
    assert main(command(tmp_path, "--ops=avg", peers="equinox,flax")) == 0
    assert capfd.readouterr().out.count("Not installed: equinox.") == 1
    assert read(tmp_path)["not_installed"] == ["equinox"]
    assert "Not installed: equinox." in (tmp_path / "bench.md").read_text("utf-8")
    assert list(read(tmp_path)["rows"][0]["ratios"]) == ["flax", YARDSTICK]


def interrupt_after(count, monkeypatch):
    measure, calls = pools.measure, itertools.count()

    def measure_or_interrupt(*arguments):
        if next(calls) == count:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(pools, "measure", measure_or_interrupt)


def test_interrupt_keeps_finished_cases(tiny, tmp_path, monkeypatch, capfd):
    interrupt_after(1, monkeypatch)
    assert main(command(tmp_path)) == 130
    out = capfd.readouterr().out
    assert "2-d" in out
    assert "1-d" not in out
    results = read(tmp_path)
    assert results["interrupted"]
    assert [row["case"] for row in results["rows"]] == ["2-d", "2-d"]
    assert "interrupted" in (tmp_path / "bench.md").read_text("utf-8")
    assert (tmp_path / "bench.png").exists()


def test_interrupt_before_the_first_case(tiny, tmp_path, monkeypatch, capfd):
    (tmp_path / "bench.json").write_text("earlier")
    interrupt_after(0, monkeypatch)
    assert main(command(tmp_path)) == 130
    assert (tmp_path / "bench.json").read_text() == "earlier"
    assert "earlier" not in capfd.readouterr().out


def test_resume_goes_on(tiny, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert main(command(tmp_path)) == 130
    again = f"To go on: jaxpool {' '.join(command(tmp_path))} --resume\n"
    assert again in capfd.readouterr().err
    kept = read(tmp_path)["rows"]
    assert main([*command(tmp_path), "--resume"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["1-d", "1-d"]
    results = read(tmp_path)
    assert results["rows"][:2] == kept
    assert [row["case"] for row in results["rows"]] == ["2-d", "2-d", "1-d", "1-d"]
    assert not results["interrupted"]
    assert len(results["summary"]) == 2 * 2 * 2
    assert "interrupted" not in (tmp_path / "bench.md").read_text("utf-8")


def test_resume_refuses_other_settings(finished, capfd):
    before = (finished / "bench.json").read_bytes()
    assert main([*command(finished), "--resume", "--rounds=2"]) == 2
    line = capfd.readouterr().err
    assert "`resume` must go on alike; got 'rounds was 1 and is 2'" in line
    assert (finished / "bench.json").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--ops=max,min", "`ops` must be one of max, avg, all; got 'min'"),
        ("--dtype=f8", "`dtype` must be one of f32, bf16, f16; got 'f8'"),
        (
            "--suite=x",
            "`suite` must be one of models, windows, batch, channels, adaptive, ops; "
            "got",
        ),
        ("--peers=jax", "`peers` must be one of flax, equinox, keras, torch; got"),
        ("--layout=x", "`layout` must be one of channels_last, channels_first; got"),
        ("--model=vgg", "`model` must be one of small, resnet18, unet, all; got 'vgg'"),
        ("--rounds=0", "`rounds` must be at least 1; got 0"),
    ],
)
def test_bad_options(option, message, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(jaxpool.bench, "begin", None)  # nothing may run
    assert main([*command(tmp_path), option]) == 2
    line = capfd.readouterr().err
    assert line.startswith("jaxpool bench: `bench`: ")
    assert line.count("\n") == 1
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--suite=batch", "--ops=avg"), "`ops` must leave some case of the suite"),
        (("--model=small", "--dtype=bf16"), "`dtype` must be f32 together with"),
        (("--suite=ops,batch",), "`suite` must not name others beside ops; got"),
        (("--suite=ops", "--model=small"), "`suite` must not be ops with `model`"),
        (("--suite=ops", "--layout=channels_first"), "`layout` must be channels_last"),
        (("--suite=ops", "--ops=lpp"), "`ops` must be known (did you mean lp?)"),
        (("--suite=ops", "--ops=none"), "`ops` must leave some case of the suite"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, capfd):
    assert main([*command(tmp_path), *options]) == 2
    assert message in capfd.readouterr().err


def test_out_that_is_a_file(tiny, tmp_path, capfd):
    path = tmp_path / "file"
    path.touch()
    assert main(command(path)) == 2
    assert "file" in capfd.readouterr().err


def test_missing_extra(monkeypatch, capfd):
    for name in list(sys.modules):
        if name.startswith(("jaxpool.bench", "jaxpool.compare")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["bench"]) == 2
    line = capfd.readouterr().err
    assert "needs the package rich" in line
    assert "pip install 'jaxpool[bench]'" in line


def test_the_command_has_the_defaults_of_the_function(monkeypatch):
    defaults = jaxpool.bench.bench.__kwdefaults__
    called = {}

    def record(**options):
        called.update(options)
        return {"interrupted": False}

    monkeypatch.setattr(jaxpool.bench, "bench", record)
    monkeypatch.setattr(jaxpool.bench, "print_tables", lambda results: None)
    assert main(["bench"]) == 0
    assert called == defaults


def test_peers_are_imported_late():
    script = """
import sys, jaxpool.bench
sys.exit(bool({"torch", "keras", "equinox"} & sys.modules.keys()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# Agreement.


def entry_of(y, gx):
    """An entry that returns the same whatever it is asked."""
    return Entry(lambda: y, lambda: (y, gx), np.asarray)


def wrong(change):
    """A contestant that does as jaxpool does, and then something else."""

    def prepare(problem):
        ours = contestants([])[OURS].prepare(problem)
        y, gx = map(ours.to_numpy, ours.gradient())
        return entry_of(*change(y, gx))

    return Contestant("flax", prepare)


def once(y, index, value):
    y = y.copy()
    y.flat[index] = value
    return y


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y, gx: (y + 1, gx), "disagrees (max error "),
        (lambda y, gx: (y, once(gx, 5, 9.0)), "disagrees (max error "),
        (lambda y, gx: (once(y, 3, np.nan), gx), "disagrees (max error nan)"),
        (lambda y, gx: (y[:1], gx), "disagrees (shape (1, 5, 4, 3), not (2, 5, 4, 3))"),
    ],
)
def test_disagreement_is_reported(change, reason, tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(PEERS, "flax", wrong(change))
    assert main(command(tmp_path, "--ops=max")) == 0
    assert "disagrees" in capfd.readouterr().out
    assert "disagrees" in (tmp_path / "bench.md").read_text("utf-8")
    for row in read(tmp_path)["rows"]:
        assert list(row["ratios"]) == [YARDSTICK]
        assert row["notes"]["flax"].startswith(reason)


def test_equal_numbers_agree():
    known = {OURS: contestants([])[OURS], "flax": wrong(lambda y, gx: (y, gx))}
    entries, notes = pools._enter(Problem(PLANE, "f32", "channels_last"), known)
    assert list(entries) == [OURS, "flax"]
    assert notes == {}


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (Unable("cannot"), "cannot"),
        (RuntimeError("out of memory\nin line 3"), "failed: RuntimeError: out of mem"),
        (AssertionError(), "failed: AssertionError: "),
    ],
)
def test_contestant_that_raises(error, note):
    def prepare(problem):
        raise error

    known = {OURS: contestants([])[OURS], "flax": Contestant("flax", prepare)}
    rows = pools.measure("s", Problem(LINE, "f32", "channels_last"), known, 1)
    for row in rows:
        assert list(row.times) == [OURS]
        assert row.notes["flax"].startswith(note)
        assert "in line" not in row.notes["flax"]


CASES = [PLANE, LINE, SPACE, SAME, ODD, BINS]
UNABLE = {
    ("flax", "bins", "to (3,4)"): "has no adaptive pools",
    ("equinox", "bins", "to (3,4)"): "disagrees",  # its bins are not PyTorch's
    ("torch", "2-d", "3/2/0:1"): "pads both sides alike only",
    ("keras", "2-d", "3/2/1"): "pads as valid or same only",
    ("keras", "3-d", "2/2/(0,1,0)"): "pads as valid or same only",
}


def require(peer):
    """Skips a test without `peer`, and leaves its import to jaxpool."""
    if not PEERS[peer].installed():
        pytest.skip(f"{peer} is not installed")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("peer", PEERS)
def test_peer_agrees(peer, layout, dtype, request):
    require(peer)
    known = {n: c for n, c in contestants([peer]).items() if n != YARDSTICK}
    all_layouts = request.config.getoption("full")
    all_cases = dtype == "f32" and (all_layouts or layout == LAYOUTS[0])
    for case in CASES if all_cases else CASES[:1]:
        entries, notes = pools._enter(Problem(case, dtype, layout), known)
        reason = UNABLE.get((peer, case.name, case.label))
        assert list(notes) == ([] if reason is None else [peer])
        assert notes.get(peer, "").startswith(reason or "")
        assert len(entries) == 2 - len(notes)


def test_keras_does_not_count_padding():
    require("keras")
    same = case("avg", (2, 6, 6, 3), (3, 3), (1, 1), ((1, 1), (1, 1)))
    with pytest.raises(Unable, match="does not count padding"):
        PEERS["keras"].prepare(Problem(same, "f32", "channels_last"))


def test_torch_pads_at_most_half_a_window():
    require("torch")
    wide = case("max", (2, 6, 6, 3), (3, 3), (1, 1), ((2, 2), (2, 2)))
    with pytest.raises(Unable, match="at most half a window"):
        PEERS["torch"].prepare(Problem(wide, "f32", "channels_last"))


def test_layouts_hold_the_same_numbers():
    problem = Problem(SPACE, "f32", "channels_first")
    (last, _), (first, _) = map(problem.arrays, LAYOUTS)
    assert last.shape == SPACE.shape
    assert first.shape == (1, 2, 4, 5, 4)
    np.testing.assert_array_equal(jnp.moveaxis(first, 1, -1), last)


# Numbers.


def test_order_alternates():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    times = interleave(calls, 3)
    rounds = ["aaabbbccc", "cccbbbaaa", "aaabbbccc"]
    assert called == list("".join(rounds))
    assert {name: len(t) for name, t in times.items()} == dict.fromkeys("abc", 6)


@pytest.mark.parametrize(
    ("seconds", "rounds", "made"), [(0.1, 9, 9), (1, 9, 5), (1, 3, 3), (30, 9, 1)]
)
def test_slow_cases_make_fewer_rounds(seconds, rounds, made, monkeypatch):
    now = itertools.count(0, seconds)  # each look at the clock takes so long
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    assert len(interleave({"a": lambda: None}, rounds)["a"]) == 2 * made


def test_spread():
    assert spread([0.001, 0.005, 0.002, 0.003, 0.004]) == pytest.approx(
        {"median_ms": 3, "q1_ms": 2, "q3_ms": 4, "calls": 5}
    )


def row(case, ratios, **others):
    usual = {"op": "max", "dtype": "f32", "direction": "forward", "base": OURS}
    return usual | {"case": case, "window": "w", "ratios": ratios} | others


def test_summary_arithmetic():
    rows = [
        row("a", {"flax": 8.0, "torch": 3.0}),
        row("b", {"flax": 0.5}),
        row("c", {"flax": 2.0}),
        row("c", {"flax": 7.0}, direction="gradient"),
        row("d", {"flax": 9.0}, base="stride"),
    ]
    flax, torch, gradient = summarize(rows)
    assert flax["geometric_mean"] == pytest.approx(2)
    assert (flax["worst"], flax["worst_case"], flax["cases"]) == (0.5, "b w", 3)
    assert (torch["peer"], torch["geometric_mean"]) == ("torch", pytest.approx(3))
    assert (gradient["direction"], gradient["worst"]) == ("gradient", 7)


def test_numbers_as_text():
    numbers = [0.0034, 0.31, 0.999, 1.99, 3.14, 12.3, 132.4]
    texts = ["0.003x", "0.31x", "1.00x", "1.99x", "3.1x", "12x", "132x"]
    assert list(map(_times, numbers)) == texts
    counts = [None, 0, 100, 2**19, 2**21, 2**28]
    assert list(map(_mebi, counts)) == ["–", "0", "<0.01", "0.50", "2.00", "256"]


def test_narrow_tables_leave_columns_out():
    cells = [["case", "shape", "jaxpool ms", "ns/out", "kept flax"], ["a"] * 5]
    assert _narrowed(cells, 36) == cells  # widths 4, 5, 7, 6 and 4, and 2 for each
    assert _narrowed(cells, 35)[0] == ["case", "shape", "jaxpool ms", "kept flax"]
    assert _narrowed(cells, 22)[0] == ["case", "shape", "jaxpool ms"]
    assert _narrowed(cells, 1) == [["case", "jaxpool ms"], ["a", "a"]]


def test_overlapping_spreads_are_marked(finished, tmp_path):
    results = read(finished)
    times = results["rows"][0]["times"]
    times[OURS] |= {"q1_ms": 1, "q3_ms": 2}
    times["flax"] |= {"q1_ms": 2, "q3_ms": 3}
    times[YARDSTICK] |= {"q1_ms": 2.1, "q3_ms": 3}
    write_report(tmp_path, results)
    lines = (tmp_path / "bench.md").read_text("utf-8").splitlines()
    first = next(line for line in lines if line.startswith("| 2-d"))
    cells = first.split(" | ")
    assert cells[7].startswith("~")
    assert not cells[8].startswith("~")


def test_no_memory_where_the_backend_does_not_tell(finished, tmp_path):
    results = read(finished)
    results["rows"][1]["costs"][OURS]["temp_bytes"] = None
    write_report(tmp_path, results)
    assert "| – |" in (tmp_path / "bench.md").read_text("utf-8")


# Every op beside the mean.


@pytest.fixture(scope="module")
def few_ops(tmp_path_factory):
    """The folder of a run of three ops; not to be changed."""
    out = tmp_path_factory.mktemp("ops")
    names = "--ops=lp,global_gem,global_gem_learned,fractional_avg"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "SHAPE", (1, 6, 6, 3))
        assert main(command(out, "--suite=ops", names, peers="torch")) == 0
    return out


def test_every_op_is_tried():
    forms = ops.trials(all_methods().values())
    assert {form.method.op.name for form in forms} == {
        method.op.name for method in all_methods().values() if method.op
    }
    assert len({(form.name, form.window) for form in forms}) == len(forms)
    for form in forms:
        assert form.method.options.get("trainable") is not True
    by_name = {form.name for form in forms if form.window == "3/2/1"}
    assert by_name > {"lp", "rank", "stochastic", "stochastic (evaluation)"}
    assert not by_name & {"global_avg", "haar", "adaptive_max"}
    quick = ops.trials(all_methods().values(), quick=True)
    assert quick == [form for form in forms if form.window == "2/2/0"]


@pytest.mark.parametrize("window", ["2/2/0", "3/2/1"])
def test_forms_take_their_window(window):
    mean = {"2/2/0": ((2, 2), (2, 2)), "3/2/1": ((3, 3), (2, 2), ((1, 1), (1, 1)))}
    x = jnp.arange(1 * 6 * 6 * 2, dtype=jnp.float32).reshape(1, 6, 6, 2)
    for form in ops.trials(choose(["avg", "rank"])):
        if form.window == window:
            y = form.model(x.shape)(x)
            assert y.shape == jaxpool.avg_pool(x, *mean[window]).shape
            if form.name == "avg":
                np.testing.assert_array_equal(y, jaxpool.avg_pool(x, *mean[window]))


def test_ops_rows(few_ops):
    results = read(few_ops)
    forms = [(r["case"], r["op"], r["window"], r["direction"]) for r in results["rows"]]
    windows, passes = ("2/2/0", "3/2/1"), ("forward", "gradient")
    samples = ("fractional_avg", "fractional_avg (evaluation)")
    assert forms == [
        *itertools.product(["power"], ["lp"], windows, passes),
        *itertools.product(["power"], ["global_gem"], ["all"], passes),
        *itertools.product(["fractional"], samples, ["2/2/0"], passes),
    ]
    for row in results["rows"]:
        assert row["base"] == "avg_pool"
        assert row["shape"] == [1, 6, 6, 3]
        assert list(row["ratios"]) == [OURS]
        for costs in row["costs"].values():
            assert costs["temp_bytes"] >= 0
    assert results["summary"] == []
    assert results["not_installed"] == []


def test_ops_report(few_ops):
    text = (few_ops / "bench.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, first, *_ = [line.strip("| ").split(" | ") for line in lines]
    row = dict(zip(header, first, strict=True))
    result = read(few_ops)["rows"][0]
    assert row["op"] == "lp"
    assert row["family"] == "power"
    assert row["window"] == "2/2/0"
    assert row["ratio"].removeprefix("~") == _times(result["ratios"][OURS])
    temp = result["costs"][OURS]["temp_bytes"] / (4 * 6 * 6 * 3)
    assert row["temp inputs"] == f"{temp:.2f}"
    assert "1×6×6×3" in text
    assert text.count("- Bound: ") == 4
    assert (few_ops / "bench.png").exists()


def test_bounds_name_who_breaks_them(few_ops, tmp_path):
    results = read(few_ops)
    for row in results["rows"]:
        row["ratios"][OURS] = 4.0
        row["costs"][OURS]["temp_bytes"] = 2 * row["input_bytes"] + 1
    forward, gradient = results["rows"][:2]  # of lp, 2/2/0
    forward["ratios"][OURS] = gradient["ratios"][OURS] = 4.2
    gradient["costs"][OURS]["temp_bytes"] = 6 * gradient["input_bytes"]
    results["rows"][2]["costs"][OURS]["temp_bytes"] = None
    write_report(tmp_path, results)
    text = (tmp_path / "bench.md").read_text("utf-8")
    bounds = [line for line in text.splitlines() if line.startswith("- Bound: ")]
    time, rank, temporaries, of_gradient = bounds
    assert time.endswith("kept by 2 of 3; not by lp 2/2/0 (4.20x).")
    assert rank.endswith("kept by 0 of 0; not by none.")
    assert temporaries.endswith("kept by 4 of 4; not by none.")
    assert of_gradient.endswith("kept by 4 of 5; not by lp 2/2/0 (6.00x).")


def test_interrupt_keeps_finished_ops(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ops, "QUICK", (1, 4, 4, 2))
    measure, calls = ops.measure, itertools.count()

    def measure_or_interrupt(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(ops, "measure", measure_or_interrupt)
    options = ["--suite=ops", "--quick", "--ops=global_max,max"]
    assert main(command(tmp_path, *options)) == 130
    done = [(row["op"], row["shape"]) for row in read(tmp_path)["rows"]]
    assert done == [("global_max", [1, 4, 4, 2])] * 2
    assert "extremum, global_max all f32 forward: avg_pool" in capfd.readouterr().err


# Training steps.


def build_tiny(pool, rngs):
    conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
    norm = nnx.BatchNorm(4, rngs=rngs)
    halve = models._halve(pool)
    return nnx.Sequential(
        conv, norm, halve, models._average, nnx.Linear(4, 3, rngs=rngs)
    )


def test_training_steps(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(MODELS, "small", (Network("tiny", (2, 6, 6, 3), build_tiny),))
    assert main(command(tmp_path, "--model=small")) == 0
    out = capfd.readouterr().out
    assert "stride" in out
    assert "all cases" not in out
    (step,) = read(tmp_path)["rows"]
    assert step["base"] == "stride"
    assert list(step["times"]) == list(POOLS)
    assert list(step["ratios"]) == ["jaxpool", "flax"]
    assert step["notes"] == {}
    assert step["costs"]["flax"]["compile_s"] > 0
    assert read(tmp_path)["summary"] == []
    assert (tmp_path / "bench.png").exists()


def test_training_steps_that_disagree(monkeypatch):
    monkeypatch.setitem(
        POOLS, "flax", lambda x, *a, **kw: 2 * POOLS["jaxpool"](x, *a, **kw)
    )
    (step,) = models.measure(Network("tiny", (2, 6, 6, 3), build_tiny), 1)
    assert step.notes["flax"].startswith("disagrees (losses ")
    assert list(step.ratios) == ["jaxpool"]


def test_training_learns():
    network = Network("tiny", (2, 6, 6, 3), build_tiny)
    step, _ = models._training(network, jaxpool.max_pool)
    losses = [step() for _ in range(30)]
    assert statistics.mean(losses[-3:]) < statistics.mean(losses[:3])


@pytest.mark.parametrize("network", models.networks("all"), ids=lambda n: n.name)
def test_networks_have_one_shape_with_every_pool(network):
    def logits(pool):
        def run():
            return network.build(pool, nnx.Rngs(0))(jnp.zeros(network.shape))

        return nnx.eval_shape(run).shape

    shapes = {name: logits(pool) for name, pool in POOLS.items()}
    assert len(set(shapes.values())) == 1
    assert shapes["stride"][0] == network.shape[0]


@pytest.mark.parametrize("padding", ["VALID", "SAME", ((1, 1), (0, 1))])
@pytest.mark.parametrize("strides", [(2, 2), (3, 1)])
def test_strided_slice_has_the_shape_of_a_pool(strides, padding):
    x = jnp.zeros((1, 7, 8, 2))
    expected = jaxpool.max_pool(x, (3, 2), strides, padding).shape
    y = models.stride(x, (3, 2), strides, padding)
    assert y.shape == expected
