"""The same bits each time, and what could keep a GPU from giving them.

Sums depend on the order of their terms, and so do the bits of a result: a library is
deterministic if nothing decides that order anew. On CPUs results are compared; the
programs for GPUs are searched for what adds in the order in which threads arrive.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import CASES, typical

import jaxpool

RUNS = 20
PLATFORMS = ("cuda", "rocm", "tpu")


def forward(case):
    """All results of the case."""
    return lambda x: jax.tree.leaves(case.function()(x))


def both_passes(case):
    """The same, and the gradient of the first result, if it has one."""
    f = forward(case)

    def both(x):
        y, pull, rest = jax.vjp(lambda x: (f(x)[0], f(x)[1:]), x, has_aux=True)
        return y, *rest, pull(jnp.cos(y))[0]

    return jax.jit(f if case.op.integer else both)


def large(case):
    """An input that XLA cuts into parts, which several threads compute."""
    if case.batch is None:
        return case.input(batch=(64,), channels=16)
    return case.input()


def digest(arrays):
    """A name for all bits of the arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()


def runs(case):
    f, x = both_passes(case), jnp.asarray(large(case))
    return {digest(f(x)) for _ in range(RUNS)}


def quickly(cases):
    """The maximum and the mean of windows at once, all others with `--full`."""
    for case in cases:
        quick = case.op.kind == "window" and case.op.family in ("extremum", "average")
        marks = () if quick and case.op.outputs == 1 else pytest.mark.full
        yield pytest.param(case, id=str(case), marks=marks)


@pytest.mark.parametrize("case", list(quickly(typical())))
def test_the_same_bits_in_each_run(case, record):
    assert len(runs(case)) == 1
    record(what="runs", op=case.op.name, gradient=not case.op.integer)


def large_windows():
    """Cases of 800,000 elements, of the ops whose arguments do not go with the size."""
    for case in typical():
        sized = any(np.shape(v)[:2] == case.sizes for v in case.kwargs.values())
        if case.op.kind in ("window", "global", "adaptive") and not sized:
            yield dataclasses.replace(case, sizes=(56, 56))


@pytest.mark.parametrize("case", list(quickly(large_windows())))
def test_the_same_bits_where_threads_share_the_work(case, record):
    f, x = both_passes(case), jnp.asarray(case.input(batch=(8,), channels=32))
    assert len({digest(f(x)) for _ in range(RUNS)}) == 1
    record(what="threads", op=case.op.name, gradient=not case.op.integer)


def fresh(**environment):
    """What every op gives in a new process, which compiles all of it anew."""
    given = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMP")}
    given["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, __file__]
    done = subprocess.run(
        command, env={**given, **environment}, check=True, capture_output=True
    )
    return json.loads(done.stdout)


@pytest.mark.full
def test_the_same_bits_in_each_process(record):
    first, second = fresh(), fresh()
    assert first == second
    assert set(first) == {case.op.name for case in typical()}
    record(what="processes", ops=len(first))
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    alone = fresh(XLA_FLAGS=flags)
    record(what="one thread", other=[n for n in first if first[n] != alone[n]])


# Why a result or a gradient adds to the same element from several places at once. A
# scatter of floats with such an addition takes the order in which threads arrive.
SCATTERS = {
    "roi_align": "boxes are arrays, and may share elements",
    "ps_roi_align": "as `roi_align`",
    "multiscale_roi_align": "as `roi_align`",
    "roi_pool": "as `roi_align`",
    "ps_roi_pool": "as `roi_align`",
    "segment_pool": "a row's segment is data; sums of segments are scatters themselves",
}


def arrives(case):
    """Whether the gradient may add in that order."""
    # Of drawn regions, those that may share elements.
    drawn = case.op.family == "fractional"
    shared = case.kwargs.get("window_shape") or case.kwargs.get("overlapping")
    return case.op.name in SCATTERS or bool(drawn and shared)


def operations(block):
    """All operations of a program, those within others too."""
    for operation in block.operations:
        yield operation
        for region in operation.regions:
            for inner in region.blocks:
                yield from operations(inner)


def scatters(f, x, platform):
    """How the program of `f` for a platform scatters: the kinds, and which add."""
    lowered = jax.jit(f).trace(x).lower(lowering_platforms=(platform,))
    kinds = set()
    for operation in operations(lowered.compiler_ir("stablehlo").body):
        operation = operation.operation
        if operation.name == "stablehlo.select_and_scatter":
            kinds.add("select_and_scatter")
        if operation.name == "stablehlo.scatter":
            body = [
                o.operation.name for o in operations(operation.regions[0].blocks[0])
            ]
            alone = str(operation.attributes["unique_indices"]) == "true"
            # A maximum, and anything of whole numbers, is the same in any order.
            exact = {"stablehlo.maximum", "stablehlo.minimum"} & set(body)
            exact = exact or "xi" in str(operation.results[0].type)
            kinds.add("any order" if alone or exact else "order of arrival")
    return kinds


def spread(f, x):
    """The kinds of scatter in `f` on any platform."""
    return set().union(*(scatters(f, x, platform) for platform in PLATFORMS))


@pytest.mark.parametrize("case", list(quickly(typical())))
def test_nothing_adds_in_the_order_of_arrival(case, record):
    x = case.input()
    result, gradient = (spread(f(case), x) for f in (forward, both_passes))
    assert "select_and_scatter" not in gradient
    assert ("order of arrival" in gradient) == arrives(case)
    found = {"result": sorted(result), "gradient": sorted(gradient)}
    record(what="scatter", op=case.op.name, **found)


@pytest.mark.full
def test_no_other_arguments_add_in_the_order_of_arrival():
    for case in CASES:
        found = scatters(both_passes(case), case.input(), "cuda")
        if case.op.family == "fractional":
            assert ("order of arrival" in found) == arrives(case), case
        elif not arrives(case):
            assert found <= {"any order"}, case


def test_and_this_test_would_see_it():
    case = next(c for c in typical() if c.op.name == "max_pool")
    with jaxpool.lowering("reduce_window"):
        assert spread(both_passes(case), case.input()) == {"order of arrival"}


def test_max_unpool():
    """It scatters one number to each place: the last of those that claim it."""
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 16)).astype(np.float32)
    y, index = jaxpool.max_pool_with_argmax(x, (3, 3), (2, 2))
    f = jax.jit(lambda y: jaxpool.max_unpool(y, index, output_shape=(8, 8)))
    assert len({digest([f(y)]) for _ in range(RUNS)}) == 1


def main():
    """Prints the name of the bits that each op gives."""
    names = {c.op.name: digest(both_passes(c)(large(c))) for c in typical()}
    print(json.dumps(names))


if __name__ == "__main__":
    main()
