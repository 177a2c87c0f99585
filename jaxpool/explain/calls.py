"""Which layers a program calls, with which arrays and arguments.

While somebody records, jaxpool's pooling functions and Flax's run a stand-in: their
code is exchanged, by what `jaxpool.compat` exchanges it with, so that it does not
matter by what name a model knows them. Modules of Flax report their calls through
`nn.intercept_methods`, or through a `__call__` put around their own.

Every array that goes into a call or comes out of it passes `checkpoint_name`, JAX's
identity with a name: so the calls can be found again in the program's jaxpr.
"""

import contextlib
import contextvars
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpool._core.geometry import Geometry, adaptive_axis
from jaxpool._core.op import OPS
from jaxpool._core.window import Window, resolve_axes
from jaxpool.compat._switch import Switch, observed
from jaxpool.explain.fields import TAG

__all__ = ["Call", "EmptyResult", "Recorder"]

FLAX = "flax."
"""What the names of Flax's own pooling functions begin with."""

_CALL = "__call__"


class EmptyResult(ValueError):
    """A layer gave an array without elements, which JAX takes for no error."""


@dataclass
class Call:
    """One call of a layer.

    Attributes:
      name: the function's or the module's class.
      path: of the module that it is, or that it stands in.
      function: whether it is a pooling function, not a module.
      parent: the call that it lies in, by number.
      arguments: a function's arguments but arrays, defaults among them.
      arrays: how many arguments of a function are arrays.
      before, after: shapes of the first array that it took and that it gave.
      geometry: where windows are known, those.
      children: how many calls lie in it.
      of: the module.
    """

    name: str
    path: str
    function: bool
    parent: int | None
    arguments: dict[str, Any] = field(default_factory=dict)
    before: tuple[int, ...] | None = None
    after: tuple[int, ...] | None = None
    geometry: Geometry | None = None
    arrays: int = 0
    children: int = 0
    of: object = None


@dataclass
class Recorder:
    """Records calls within `recording()`.

    Attributes:
      edits: new arguments for some calls of functions, by number.
      swaps: names of ops that run in place of others.
      calls: the calls, in order.
      failed: the innermost call that raised, by number.
    """

    edits: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    swaps: Mapping[str, str] = field(default_factory=dict)
    marks: bool = True
    calls: list[Call] = field(default_factory=list)
    failed: int | None = None
    _open: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """The context in which this thread's calls are recorded."""
        token = _recorder.set(self)
        try:
            with _exchange.use(), _apart(object()):
                yield
        finally:
            _recorder.reset(token)

    @property
    def geometries(self) -> list[Geometry | None]:
        """The windows of the calls, as far as they are known."""
        return [call.geometry for call in self.calls]

    @contextlib.contextmanager
    def linen(self) -> Iterator[None]:
        """The context in which modules of Linen report their calls."""
        from flax import linen as nn

        def intercept(run, args, kwargs, context):
            if context.method_name != "__call__":
                return run(*args, **kwargs)
            module = context.module
            path = ".".join(module.path)
            return self.module(module, path, run, args, kwargs)

        with nn.intercept_methods(intercept):
            yield

    @contextlib.contextmanager
    def nnx(self, model: Any) -> Iterator[None]:
        """The context in which the modules of an NNX model report their calls."""
        from flax import nnx

        paths = {
            id(node): ".".join(map(str, path))
            for path, node in nnx.iter_graph(model)
            if isinstance(node, nnx.Module)
        }
        kinds = {type(n) for _, n in nnx.iter_graph(model) if isinstance(n, nnx.Module)}
        owners = {c for k in kinds for c in k.__mro__ if _CALL in vars(c)}

        def stand_ins():
            return {c: self._reporting(getattr(c, _CALL), paths) for c in owners}

        with Switch(stand_ins, observes=True).use():
            yield

    def _reporting(self, original: Callable[..., Any], paths: dict[int, str]):
        @functools.wraps(original)
        def __call__(module, *args, **kwargs):
            run = functools.partial(original, module)
            if _recorder.get() is not self:
                return run(*args, **kwargs)
            return self.module(module, paths.get(id(module), ""), run, args, kwargs)

        return __call__

    def module(self, module, path: str, run, args, kwargs) -> Any:
        """Runs a module's call and records it."""
        if self._inside_function or (self._open and self._top.of is module):
            return run(*args, **kwargs)
        call = Call(type(module).__name__, path, False, self._parent, of=module)
        return self._run(call, run, args, kwargs)

    def function(self, name: str, run: Callable[..., Any], args, kwargs) -> Any:
        """Runs a pooling function and records it."""
        if self._inside_function:
            return run(*args, **kwargs)
        path = self._top.path if self._open else ""
        call = Call(name, path, True, self._parent)
        try:
            bound = inspect.signature(run).bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"`{name}`: {error}.") from None
        bound.apply_defaults()
        edit = self.edits.get(len(self.calls), {})
        given = {**bound.arguments, **edit}
        other = self.swaps.get(name) or self.swaps.get(name.removeprefix(FLAX))
        if other:
            call.name, run = other, OPS[other].fn
            given = _taken_by(other, given)
        arrays = {k for k, v in given.items() if isinstance(v, jax.Array)}
        call.arguments = {k: v for k, v in given.items() if k not in arrays}
        call.arrays = len(arrays)
        first, *_ = inspect.signature(run).parameters
        x = given.pop(first)
        call.geometry = _geometry(name if not other else other, given, x)
        positional = [
            given.pop(p.name)
            for p in [*inspect.signature(run).parameters.values()][1:]
            if p.kind is not p.KEYWORD_ONLY and p.name in given
        ]
        return self._run(call, run, (x, *positional), given)

    @property
    def _top(self) -> Call:
        return self.calls[self._open[-1]]

    @property
    def _parent(self) -> int | None:
        return self._open[-1] if self._open else None

    @property
    def _inside_function(self) -> bool:
        return bool(self._open) and self._top.function

    def _run(self, call: Call, run, args, kwargs) -> Any:
        index = len(self.calls)
        self.calls.append(call)
        if call.parent is not None:
            self.calls[call.parent].children += 1
        self._open.append(index)
        try:
            args, kwargs = self._mark((args, kwargs), index, "in")
            result = self._mark(run(*args, **kwargs), index, "out")
            if call.after and 0 in call.after and 0 not in (call.before or (0,)):
                raise EmptyResult(f"is {call.after}, which has no elements")
            self.failed = None  # whatever raised in it was expected
        except Exception:
            if self.failed is None or self.failed < index:  # not in what it calls
                self.failed = index
            raise
        finally:
            self._open.pop()
        return result

    def _mark(self, tree: Any, index: int, way: str) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        call, which = self.calls[index], 0
        for k, leaf in enumerate(leaves):
            if not isinstance(leaf, jax.Array) or _is_key(leaf):
                continue
            if which == 0 and way == "in":
                call.before = tuple(leaf.shape)
            elif which == 0:
                call.after = tuple(leaf.shape)
            if self.marks:
                leaves[k] = checkpoint_name(leaf, f"{TAG}{index}:{way}:{which}")
            which += 1
        return jax.tree.unflatten(structure, leaves)


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _taken_by(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, for another op."""
    op = OPS[name]
    first, *_ = given
    settings = {
        "x": given[first],
        **({} if isinstance(op.compare, str) else op.compare),
    }
    if op.takes_key:
        settings["key"] = jax.random.key(0)
    taken = inspect.signature(op.fn).parameters
    return {**settings, **{k: v for k, v in given.items() if k in taken and k != "x"}}


def _geometry(name: str, given: Mapping[str, Any], x: Any) -> Geometry | None:
    """The windows that a function lays over `x`; None where it has none."""
    shape = tuple(x.shape) if hasattr(x, "shape") else ()
    op = OPS.get(name.removeprefix(FLAX))
    names = [n for n in inspect.signature(Window.of).parameters if n != "caller"]
    with contextlib.suppress(TypeError, ValueError):
        if given.keys() >= {"window_shape", "strides", "padding"}:
            spec = {n: given[n] for n in names if n in given}
            return Geometry.of(Window.of(name, **spec), shape)
        if op is not None and op.kind == "adaptive":
            return _adaptive(given, shape)
        if op is not None and op.kind == "global":
            axis = given.get("axis")
            axis = tuple(range(1, len(shape) - 1)) if axis is None else axis
            return Geometry.of(Window.of(name, None, axis=axis), shape)
    return None


def _adaptive(given: Mapping[str, Any], shape: tuple[int, ...]) -> Geometry:
    sizes = given["output_shape"]
    axis = given.get("axis")
    if axis is None:
        axis = tuple(range(-1 - len(sizes), -1))
    axes = resolve_axes("adaptive", axis, len(shape))
    sizes = sizes if isinstance(sizes, tuple | list) else (sizes,) * len(axes)
    pairs = zip(axes, sizes, strict=True)
    laid = [adaptive_axis(a, shape[a], n or shape[a]) for a, n in pairs]
    return Geometry(tuple(sorted(laid, key=lambda a: a.axis)))


# The exchange of code.

_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar(
    "jaxpool_recorder", default=None
)
_apart = jax.make_user_context()
"""What is traced in it is traced anew, and used nowhere else."""


def _stand_in(*args, **kwargs):
    """Runs in the module of the function that it stands in for."""
    from jaxpool.explain.calls import _called

    return _called("NAME", args, kwargs)


def _called(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    recorder, run = _recorder.get(), observed(_recorded[name])
    if recorder is None:
        return run(*args, **kwargs)
    return recorder.function(name, run, args, kwargs)


_recorded: dict[str, FunctionType] = {}


def _stand_ins() -> dict[FunctionType, FunctionType]:
    """For each function to record, jaxpool's and a loaded Flax's, what reports it."""
    functions: dict[str, Any] = {name: op.fn for name, op in OPS.items()}
    if "flax.linen" in sys.modules or "flax.nnx" in sys.modules:
        pooling = importlib.import_module("flax.linen.pooling")
        for name in ("avg_pool", "max_pool", "min_pool", "pool"):
            functions[FLAX + name] = getattr(pooling, name)
    pairs = {}
    for name, function in functions.items():
        plain = isinstance(function, FunctionType) and not function.__closure__
        if plain and function not in pairs:  # somebody may have put others there
            code = _stand_in.__code__
            constants = tuple(name if c == "NAME" else c for c in code.co_consts)
            code = code.replace(co_consts=constants, co_name=function.__name__)
            pairs[function] = FunctionType(code, {})
            _recorded[name] = function
    return pairs


_exchange = Switch(_stand_ins, observes=True)
