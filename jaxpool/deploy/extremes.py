"""Inputs that runtimes treat differently: infinities, NaN, masks, the ends of dtypes.

An exported file is compared with JAX at these too, wherever JAX's result does not hang
on what no standard decides:

  NaN           maxima, orders, exponentials of it; moved, selected among, compared,
                and in the four operations it is the same everywhere
  overflow      of finite elements, as sums are added up and rounded in another order
  conversions   to integers that do not hold the number
  divisions     of integers by 0
  indices       out of bounds that the program promises to keep

That is seen in the program, an equation after the other. It is the one that is
exported, traced plainly: powers that overflow in it alone are no disagreement. One with
a `while_loop` is not tried, as it may never end.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpool._core.plain import plainly
from jaxpool.deploy.agreement import DeployError, check_agreement
from jaxpool.deploy.functions import bind, evaluation, replayed

__all__ = ["check_extremes", "compare", "tried"]

# For inputs of each kind: what they hold in place of their elements.
_VALUES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "f": {
        "-inf": lambda dtype: -np.inf,
        "inf": lambda dtype: np.inf,
        "NaN": lambda dtype: np.nan,
        "the lowest number": lambda dtype: jnp.finfo(dtype).min,
        "the highest number": lambda dtype: jnp.finfo(dtype).max,
    },
    "i": {
        "the lowest integer": lambda dtype: jnp.iinfo(dtype).min,
        "the highest integer": lambda dtype: jnp.iinfo(dtype).max,
    },
    "b": {"False": lambda dtype: False, "True": lambda dtype: True},
}
_INFINITE = ("-inf", "inf", "NaN")
# What only moves, selects and compares elements.
_MOVES = {"broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p"}
_MOVES |= {"dynamic_slice", "dynamic_update_slice", "eq", "expand_dims", "gather", "ge"}
_MOVES |= {"gt", "is_finite", "le", "lt", "ne", "neg", "pad", "reshape", "rev"}
_MOVES |= {"select_n", "slice", "split", "squeeze", "stack", "stop_gradient", "tile"}
_MOVES |= {"transpose"}
# What makes the same of NaN everywhere, and what overflows nowhere.
_KEEPS_NAN = _MOVES | {"add", "add_any", "div", "mul", "sub"}
_EXTREMA = {"clamp", "cummax", "cummin", "max", "min", "reduce_max", "reduce_min"}
_EXTREMA |= {"reduce_window_max", "reduce_window_min", "sort", "top_k"}
_NEVER_OVERFLOWS = _MOVES | _EXTREMA
# It runs a few times, and compiles fast.
_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def check_extremes(
    target: str,
    fn: Callable[..., Any],
    arrays: Sequence[Any],
    form: str,
    run: Callable[[Sequence[np.ndarray]], Sequence[Any]],
    tolerance: float,
) -> None:
    """Compares what was exported with JAX at extreme values.

    Args:
      target: whose results `run` gives, for the error.
      fn: what was exported.
      arrays: examples of its arguments.
      form: what `plainly` was given.
      run: gives the artefact's results.
      tolerance: as in `check_agreement`.

    Raises:
      DeployError: if they disagree.
    """
    for what, inputs, expected in tried(fn, arrays, form):
        compare(target, what, expected, run(inputs), tolerance)


def compare(
    target: str,
    what: str,
    expected: Sequence[np.ndarray],
    actual: Sequence[np.ndarray],
    tolerance: float,
) -> None:
    """As `check_agreement`, for inputs that hold `what`, but where JAX gives NaN."""
    known = [
        np.where(np.isnan(e), e, a) if _kind(e) == "f" and e.shape == a.shape else a
        for e, a in zip(expected, actual, strict=True)
    ]
    try:
        check_agreement(target, expected, known, tolerance)
    except DeployError as error:
        problem = f"{str(error).rstrip('.')}, where inputs are {what}"
        instead = "`extremes=False` leaves this out, if inputs never are"
        raise DeployError(f"{problem}; {instead}.") from error


def tried(
    fn: Callable[..., Any], arrays: Sequence[Any], form: str
) -> Iterator[tuple[str, list[np.ndarray], list[np.ndarray]]]:
    """What inputs hold, these inputs, and the results of `fn` traced plainly."""
    with plainly(form), evaluation():
        closed = jax.make_jaxpr(lambda *xs: jax.tree.leaves(fn(*xs)))(*arrays)
    if "while" in _primitives(closed.jaxpr):
        return
    fast = _FAST if jax.default_backend() == "cpu" else None
    run = jax.jit(
        lambda finite, *xs: _watched(closed, finite, xs), compiler_options=fast
    )
    for what, finite, inputs in _tries(arrays):
        doubtful, outputs = run(finite, *inputs)
        if not doubtful:
            yield what, inputs, [np.asarray(y) for y in outputs]


def _tries(arrays: Sequence[Any]) -> Iterator[tuple[str, bool, list[np.ndarray]]]:
    """What inputs hold, whether that is finite, and the inputs."""
    yield from _replaced("", arrays)
    if any(_kind(x) == "b" for x in arrays):
        masked = [np.zeros_like(x) if _kind(x) == "b" else x for x in arrays]
        yield from _replaced("False and ", masked)


def _replaced(before, arrays):
    for kind in {_kind(x): 0 for x in arrays}:
        for what, value in _VALUES.get(kind, {}).items():
            for part in (1, 2):
                inputs = [np.array(x) for x in arrays]
                for x in inputs:
                    if _kind(x) == kind:
                        x.reshape(-1)[: -(-x.size // part)] = value(x.dtype)
                where = " in one half" if part == 2 else ""
                yield f"{before}{what}{where}", what not in _INFINITE, inputs


def _kind(x: Any) -> str:
    kinds = {"f": jnp.floating, "i": jnp.integer, "b": jnp.bool_}
    return next((k for k, of in kinds.items() if jnp.issubdtype(x.dtype, of)), "")


def _primitives(jaxpr: Any) -> set[str]:
    """The names of all primitives, those of programs within it included."""
    names = set()
    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for param in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names


def _watched(closed: Any, finite: Any, inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Whether a program's results are doubtful, and the results."""
    doubts = [jnp.zeros((), bool)]

    def step(eqn, given):
        made = bind(eqn, given)
        doubts.extend(map(jnp.any, _doubts(eqn, finite, given, made)))
        return made

    outputs = replayed(closed, step, *inputs)
    return jnp.stack(doubts).any(), outputs


def _doubts(
    eqn: Any, finite: Any, given: Sequence[Any], made: Sequence[Any]
) -> Iterator[Any]:
    """Where the results of an equation may be others elsewhere."""
    name, p = eqn.primitive.name, eqn.params
    if name not in _KEEPS_NAN:
        tracers = (x for x in given if isinstance(x, jax.Array) and _kind(x) == "f")
        yield from map(jnp.isnan, tracers)
    if name not in _NEVER_OVERFLOWS:
        for y in (y for y in made if _kind(y) == "f"):
            yield finite & ~(jnp.abs(y) < float(jnp.finfo(y.dtype).max) / 4)
    if p.get("mode") == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        d, x, index = p["dimension_numbers"], given[0], given[1]
        axes = d.start_index_map if name == "gather" else d.scatter_dims_to_operand_dims
        for i, axis in enumerate(axes):
            yield (index[..., i] < 0) | (index[..., i] >= x.shape[axis])
    if name == "convert_element_type" and (_kind(given[0]), _kind(made[0])) == (
        "f",
        "i",
    ):
        limits, x = jnp.iinfo(made[0].dtype), jnp.asarray(given[0], jnp.float32)
        yield ~((x > limits.min - 1.0) & (x < limits.max + 1.0))
    if name in ("div", "rem") and _kind(made[0]) == "i":
        x, y = given
        least = jnp.iinfo(x.dtype).min
        yield y == 0
        if least:  # the highest number has no negative that is one more
            yield (x == least) & (y == -1)
