"""Who takes part: one small function for each framework.

A contestant gets a problem ready in the layout that suits it, compiles what it can, and
hands back two calls that return when their results are there. Frameworks are imported
by the function that needs them; a case that one of them cannot do raises `Unable`.
"""

# None of the peers has to be installed where types are checked.
# pyright: reportMissingImports=false

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

import jaxpool
from jaxpool.bench.problem import Problem, channels_first, channels_last

__all__ = [
    "OURS",
    "PEERS",
    "YARDSTICK",
    "Contestant",
    "Entry",
    "Unable",
    "compiled",
    "contestants",
    "jax_entry",
]

OURS, YARDSTICK = "jaxpool", "x + 1"


class Unable(Exception):
    """Why a contestant cannot do a case."""


@dataclass(frozen=True)
class Entry:
    """A contestant ready for one problem.

    Attributes:
      forward: computes the result.
      gradient: computes the result and the gradient of the input.
      to_numpy: makes a channels-last float32 array of what these return.
      costs: of each pass what compiling it took, see `compiled`; of the gradient also
        `residual_bytes`, which it saves from the forward for the backward pass.
    """

    forward: Callable[[], Any]
    gradient: Callable[[], Any]
    to_numpy: Callable[[Any], np.ndarray] | None = None
    costs: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A framework.

    Attributes:
      package: what must be importable.
      prepare: makes the entry for a problem; may raise `Unable`.
    """

    package: str
    prepare: Callable[[Problem], Entry]

    def installed(self) -> bool:
        """Whether its package can be found, which does not import it."""
        return find_spec(self.package) is not None


def compiled(function: Callable[..., Any], *arguments: Any, **options: Any):
    """Compiles a function for JAX's device.

    Returns:
      The executable, and what it costs: `compile_s`, the seconds that tracing and
      compiling took, and `temp_bytes`, the memory for temporary values as XLA planned
      it, or None where the backend does not tell.
    """
    start = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    plan = program.memory_analysis()
    temporary = None if plan is None else plan.temp_size_in_bytes
    return program, {"compile_s": seconds, "temp_bytes": temporary}


def jax_entry(
    pool: Callable[..., Any], x: jax.Array, g: jax.Array, *others: Any
) -> Entry:
    """Returns the entry of a function of one JAX array and what else it needs.

    `others` are no constants of the program: XLA would compute what depends on
    nothing else, random numbers of a key for one, while it compiles.
    """

    def pull_back(x, *others):
        return jax.vjp(lambda x: pool(x, *others), x)

    def value_and_gradient(x, g, *others):
        y, back = pull_back(x, *others)
        return y, *back(g)

    forward, costs = compiled(pool, x, *others)
    gradient, more = compiled(value_and_gradient, x, g, *others)
    kept = jax.tree.leaves(jax.eval_shape(lambda *a: pull_back(*a)[1], x, *others))
    residuals = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    return Entry(
        lambda: jax.block_until_ready(forward(x, *others)),
        lambda: jax.block_until_ready(gradient(x, g, *others)),
        costs={"forward": costs, "gradient": {**more, "residual_bytes": residuals}},
    )


def _jax_entry(problem: Problem, layout: str, pool: Callable[[Any], Any]) -> Entry:
    """Returns the entry of a function of the problem's input."""

    def to_numpy(array: jax.Array) -> np.ndarray:
        values = np.asarray(array).astype(np.float32)
        return values if layout == "channels_last" else channels_last(values)

    return replace(jax_entry(pool, *problem.arrays(layout)), to_numpy=to_numpy)


def _ours(problem: Problem) -> Entry:
    case = problem.case
    name = f"{case.op}_pool"
    pool = getattr(jaxpool, f"adaptive_{name}" if case.adaptive else name)
    rank = len(case.window)
    start = -rank - (problem.layout == "channels_last")
    axis = tuple(range(start, start + rank))

    def apply(x):
        return pool(x, *case.arguments, axis=axis)

    return _jax_entry(problem, problem.layout, apply)


def _flax(problem: Problem) -> Entry:
    from flax import linen

    case = problem.case
    if case.adaptive:
        raise Unable("has no adaptive pools")
    pool = {"max": linen.max_pool, "avg": linen.avg_pool}[case.op]
    return _jax_entry(problem, "channels_last", lambda x: pool(x, *case.arguments))


def _equinox(problem: Problem) -> Entry:
    import equinox.nn

    case = problem.case
    kind = {"max": "Max", "avg": "Avg"}[case.op]
    name = f"{kind}Pool{len(case.window)}d"
    layer = getattr(equinox.nn, f"Adaptive{name}" if case.adaptive else name)
    pool = layer(*case.arguments)
    return _jax_entry(problem, "channels_first", jax.vmap(pool))


def _keras(problem: Problem) -> Entry:
    os.environ["KERAS_BACKEND"] = "jax"  # read when Keras is first imported
    import keras

    backend = keras.config.backend()
    if backend != "jax":
        raise Unable(f"was imported with the backend {backend}")
    case, ops = problem.case, keras.ops
    name = {"max": "max_pool", "avg": "average_pool"}[case.op]
    if case.adaptive:
        pool, window = getattr(ops, f"adaptive_{name}"), (case.window,)
    else:
        padding = _keras_padding(problem)
        pool, window = getattr(ops, name), (case.window, case.strides, padding)

    def apply(x):
        return pool(x, *window, problem.layout)

    return _jax_entry(problem, problem.layout, apply)


def _keras_padding(problem: Problem) -> str:
    """Returns the mode that pads as the case does."""
    case = problem.case
    if not any(map(any, case.padding)):
        return "valid"
    same = jax.lax.padtype_to_pads(case.sample[:-1], case.window, case.strides, "SAME")
    if tuple(map(tuple, same)) != case.padding:
        raise Unable("pads as valid or same only")
    if case.op == "avg":
        raise Unable("does not count padding in means")
    return "same"


def _torch(problem: Problem) -> Entry:
    # Workers that spin while they wait would take the processors from the others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    import torch.nn.functional as F

    case, rank = problem.case, len(problem.case.window)
    pads = [low for low, _ in case.padding]
    if not case.symmetric:
        raise Unable("pads both sides alike only")
    if any(2 * pad > size for pad, size in zip(pads, case.window, strict=False)):
        raise Unable("pads at most half a window")
    if rank > 3:
        raise Unable("pools at most 3 axes")
    on_cpu = jax.devices()[0].platform == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        raise Unable("does not run on the device that JAX uses")
    torch.set_num_threads(os.cpu_count() or 1)

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}

    def tensor(array: np.ndarray):
        values = torch.from_numpy(channels_first(array.astype(np.float32)))
        last = problem.layout == "channels_last" and rank in formats
        order = formats[rank] if last else torch.contiguous_format
        values = values.to("cpu" if on_cpu else "cuda", dtype[problem.dtype])
        return values.contiguous(memory_format=order)

    x, g = tensor(problem.x), tensor(problem.g)
    tracked = x.detach().requires_grad_()
    name = f"{case.op}_pool{rank}d"
    pool = getattr(F, f"adaptive_{name}" if case.adaptive else name)
    window = (case.window,) if case.adaptive else (case.window, case.strides, pads)

    def finish(results):
        if not on_cpu:
            torch.cuda.synchronize()
        return results

    def forward():
        with torch.no_grad():
            return finish(pool(x, *window))

    def gradient():
        y = pool(tracked, *window)
        return finish((y, *torch.autograd.grad(y, tracked, g)))

    def to_numpy(results) -> np.ndarray:
        return channels_last(results.detach().to("cpu", torch.float32).numpy())

    return Entry(forward, gradient, to_numpy)


def _yardstick(problem: Problem) -> Entry:
    """Reads and writes an array of the input's size: what memory alone costs."""
    x, _ = problem.arrays(problem.layout)
    program, _ = compiled(lambda x: x + 1, x)

    def call():
        return jax.block_until_ready(program(x))

    return Entry(call, call)


PEERS = {
    "flax": Contestant("flax", _flax),
    "equinox": Contestant("equinox", _equinox),
    "keras": Contestant("keras", _keras),
    "torch": Contestant("torch", _torch),
}
"""Frameworks that jaxpool is compared with, by name."""

_FIXED = {
    OURS: Contestant("jaxpool", _ours),
    YARDSTICK: Contestant("jax", _yardstick),
}


def contestants(peers: Collection[str]) -> dict[str, Contestant]:
    """Returns everyone who takes part when these peers do, jaxpool first."""
    chosen = {name: PEERS[name] for name in PEERS if name in peers}
    return {OURS: _FIXED[OURS], **chosen, YARDSTICK: _FIXED[YARDSTICK]}
