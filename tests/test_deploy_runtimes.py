"""ONNX files in other versions of onnxruntime than the one they were written with.

Each version has an environment of its own, which is made here. All files are run in it
with inputs of ordinary and of extreme values, and compared with JAX. One alone:

    python -m pytest --full tests/test_deploy_runtimes.py -k 1.22.0
"""

import functools
import itertools

import numpy as np
import pytest
from contract import typical
from trust.environments import environment, installed, run

import jaxpool as jp
from jaxpool.deploy import DeployError

pytest.importorskip("onnx")

from test_deploy_onnx import draw

from jaxpool.deploy.extremes import compare, tried
from jaxpool.deploy.functions import results
from jaxpool.deploy.onnx import node_kinds, onnx_model

VERSIONS = ("1.20.1", "1.22.0", "1.24.1", "newest")
pytestmark = pytest.mark.full

# Runs each file that its arguments name with all inputs beside it.
RUNNER = """
import sys
import numpy, onnxruntime
for file in sys.argv[1:]:
    session = onnxruntime.InferenceSession(
        file, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    with numpy.load(file + ".npz") as given:
        tries = sorted({int(name.split("_")[0]) for name in given})
        made = {
            f"{t}_{i}": y
            for t in tries
            for i, y in enumerate(
                session.run(None, {n: given[f"{t}_{i}"] for i, n in enumerate(names)})
            )
        }
    numpy.savez(file + ".made", **made)
"""

POOLS = (jp.max_pool, jp.min_pool, jp.avg_pool, jp.sum_pool, jp.lp_pool)
POOLS += (functools.partial(jp.avg_pool, count_include_pad=False),)
POOLS += (jp.max_pool_with_argmax,)
WINDOWS = [
    dict(window_shape=(3,), strides=(2,)),
    dict(window_shape=(2, 2), strides=(2, 2)),
    dict(window_shape=(3, 5), strides=(3, 3)),
    dict(window_shape=(2, 2, 2), strides=(2, 1, 2)),
]
PADDINGS = [
    dict(),
    dict(padding="SAME"),
    dict(padding="SAME_LOWER"),
    dict(ceil_mode=True),
    dict(padding=1),
    dict(padding=1, ceil_mode=True),
    dict(padding=((0, 1),)),
    dict(padding=((1, 0),)),
    dict(padding="SAME", window_dilation=2),
]


def calls():
    """Functions with an example: pools with every form of padding, and all ops."""
    for window, padding, pool in itertools.product(WINDOWS, PADDINGS, POOLS):
        ndim, x = len(window["window_shape"]), draw(2, 9, 8, 7, 3)
        kwargs = {**window, **padding}
        if isinstance(kwargs.get("padding"), tuple):
            kwargs["padding"] *= ndim
        yield (
            functools.partial(pool, **kwargs),
            x.reshape(2, *(9, 8, 7)[:ndim], -1),
            None,
        )
    # Padding that differs from axis to axis, and between the ends in one alone.
    for pads in (
        ((1, 1), (0, 0)),
        ((0, 0), (1, 1)),
        ((1, 1), (0, 1)),
        ((2, 2), (1, 1)),
    ):
        for pool in POOLS:
            yield (
                functools.partial(
                    pool, window_shape=(3, 3), strides=(2, 2), padding=pads
                ),
                draw(2, 9, 8, 3),
                None,
            )
    for pool in (*POOLS, jp.global_max_pool, jp.global_avg_pool):
        kwargs = {} if "global" in getattr(pool, "__name__", "") else WINDOWS[1]
        yield functools.partial(pool, **kwargs), draw(2, 9, 8, 3), "b, h, w, _"
    for case in typical():
        yield case.function(), np.asarray(case.input()), None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files with inputs beside them; by name, what was tried and JAX's results."""
    folder, expected = tmp_path_factory.mktemp("files"), {}
    for number, (fn, x, shapes) in enumerate(calls()):
        dynamic = getattr(fn, "func", fn) is not jp.segment_pool
        model = onnx_model(fn, x, shapes=shapes, dynamic_batch=dynamic)
        path = folder / f"{number}.onnx"
        path.write_bytes(model.SerializeToString())
        tries = [("ordinary", [x], results(fn, [x])), *tried(fn, [x], "reduce_window")]
        inputs = {f"{t}_0": x for t, (_, (x,), _) in enumerate(tries)}
        np.savez(f"{path}.npz", **inputs)
        if "Sqrt" in node_kinds(model):
            # 1.20 makes NaN of the root of infinity.
            tries = [t for t in tries if all(np.all(np.isfinite(y)) for y in t[2])]
        expected[path] = f"{fn} of {x.shape}", [(what, y) for what, _, y in tries]
    return expected


@pytest.mark.parametrize("version", VERSIONS)
def test_other_versions_agree(version, files, tmp_path):
    wanted = "onnxruntime" + (f"=={version}" if version != "newest" else "")
    python = environment(tmp_path, "3.11", [wanted])
    run(python, "-c", RUNNER, *files, cwd=tmp_path)
    problems = []
    for path, (name, tries) in files.items():
        with np.load(f"{path}.made.npz") as made:
            for t, (what, expected) in enumerate(tries):
                actual = [made[f"{t}_{i}"] for i, _ in enumerate(expected)]
                try:
                    compare(f"onnxruntime {version}", what, expected, actual, 2e-5)
                except DeployError as error:
                    problems.append(f"{name}: {error}")
    assert version in (installed(python)["onnxruntime"], "newest")
    assert not problems, "\n".join(problems)
