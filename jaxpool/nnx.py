"""Flax NNX modules over the functions of `jaxpool`, one for each op.

A module takes its function's arguments when it is built and its arrays when it is
called: `MaxPool((2, 2), strides=(2, 2))(x)` is `max_pool(x, (2, 2), strides=(2, 2))`.
Classes are made from the op table; `help(jaxpool.nnx.MaxPool)` shows its arguments.
"""

import inspect
from collections.abc import Generator
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

import jaxpool  # noqa: F401 (fills the op table)
from jaxpool._core.module import (
    Shown,
    Step,
    arguments,
    document,
    freeze,
    learned_start,
    validate,
)
from jaxpool._core.op import OPS, PoolOp
from jaxpool._core.window import as_flag, fail


class PoolModule(nnx.Module):
    """The base of all pooling modules: an op and its arguments."""

    _op: ClassVar[PoolOp]
    extra: ClassVar[tuple[tuple[str, Any], ...]] = ()
    __signature__: ClassVar[inspect.Signature]

    def __init__(self, *args: Any, **kwargs: Any):
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"`{self._op.module_name}`: {error}.") from None
        bound.apply_defaults()
        config = {name: freeze(value) for name, value in bound.arguments.items()}
        validate(self._op, config)
        trainable = config.pop("trainable", False)
        features = config.pop("features", None) if self._op.learned else None
        rngs = config.get("rngs") if self._op.takes_key else config.pop("rngs", None)
        for name, value in config.items():
            if trainable and name in self._op.learned:
                start, shape = learned_start(self._op, name, value, features)
                value = nnx.Param(jnp.broadcast_to(start, shape))
            setattr(self, name, value)
        for name, (shape, initial) in self._op.weights_for(config).items():
            key = self._stream(rngs, "params")()
            setattr(self, name, nnx.Param(initial(key, shape, jnp.float32)))

    def __call__(self, *inputs: Any, where: Any = None, **named: Any) -> Any:
        """Pools the inputs, by position or name; `where` masks them, if it may."""
        masks = {} if where is None else {"where": where}
        return self._op.fn(*inputs, **named, **self._config(), **masks)

    def __nnx_repr__(self) -> Generator[Any, None, None]:
        """Yields what `repr` shows: the arguments that are no defaults."""
        defaults = {n: p.default for n, p in self.__signature__.parameters.items()}
        for part in super().__nnx_repr__():
            name = getattr(part, "key", None)
            value = getattr(part, "value", None)
            if name not in defaults or not _equal(value, defaults[name]):
                yield part

    def _config(self) -> dict[str, Any]:
        config = {name: _value(getattr(self, name)) for name in self._op.config}
        names = self._op.weights_for(vars(self))
        arrays = {name: _value(getattr(self, name)) for name in names}
        return {**config, **self._op.passed(arrays)}

    @classmethod
    def _stream(cls, rngs: Any, name: str) -> nnx.RngStream:
        if isinstance(rngs, nnx.Rngs):
            return rngs[name]
        if isinstance(rngs, nnx.RngStream):
            return rngs
        rule = "must be nnx.Rngs or nnx.RngStream, to draw the first weights from"
        error = ValueError if rngs is None else TypeError
        raise fail(cls._op.module_name, "rngs", rule, rngs, error)


class RandomPoolModule(PoolModule):
    """The base of modules that sample, with keys as in `nnx.Dropout`."""

    extra = (("deterministic", False), ("rng_collection", "dropout"), ("rngs", None))
    rng_collection: str

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        rngs: Any = self.rngs
        if isinstance(rngs, nnx.Rngs):
            self.rngs = rngs[self.rng_collection].fork()
        elif isinstance(rngs, nnx.RngStream):
            self.rngs = rngs.fork()
        elif rngs is None:
            self.rngs = nnx.data(None)
        else:
            name, rule = self._op.module_name, "must be nnx.Rngs, nnx.RngStream or None"
            raise TypeError(f"`{name}`: `rngs` {rule}; got {rngs!r}.")

    def __call__(
        self,
        *inputs: Any,
        where: Any = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | jax.Array | None = None,
        **named: Any,
    ) -> Any:
        """Pools the inputs; what is given here overrides the constructor."""
        masks = {} if where is None else {"where": where}
        if deterministic is None:
            deterministic = self.deterministic
        as_flag(self._op.module_name, "deterministic", deterministic)
        key = None if deterministic else self._key(self.rngs if rngs is None else rngs)
        sampling = {"key": key, "deterministic": bool(deterministic)}
        return self._op.fn(*inputs, **named, **self._config(), **masks, **sampling)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets `deterministic`, for `nnx.view`."""
        if deterministic is not None:
            self.deterministic = deterministic

    def _key(self, rngs: Any) -> jax.Array:
        if isinstance(rngs, nnx.Rngs):
            return rngs[self.rng_collection]()
        if isinstance(rngs, nnx.RngStream):
            return rngs()
        if isinstance(rngs, jax.Array):
            return rngs
        raise ValueError(
            f"`{self._op.module_name}`: sampling needs a key; (1) pass `rngs=` "
            f"with the stream '{self.rng_collection}' to the constructor or the call, "
            "or (2) pass `deterministic=True`, or call `eval()`; "
            f"got rngs={rngs!r}."
        )


def _equal(a: Any, b: Any) -> bool:
    """Whether two settings are the same, with no look into arrays."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a is b or (isinstance(a, bool | int | float | str) and a == b)


def _value(value: Any) -> Any:
    """The array in a variable; anything else as it is."""
    return value[...] if isinstance(value, nnx.Variable) else value


def _example(op: PoolOp) -> list[Step]:
    shown = Shown(op)
    rngs = ["rngs=nnx.Rngs(0)"] if op.takes_key or op.learned_arrays else []
    called = shown.called(f"pool({shown.given})")
    steps = [*shown.inputs, shown.built(*rngs), called, *shown.parameter("pool.{}")]
    if op.takes_key:
        steps += [("pool.eval()  # from here on nothing is drawn", ""), called]
    return steps


def _module(op: PoolOp) -> type[PoolModule]:
    base = RandomPoolModule if op.takes_key else PoolModule
    extra = base.extra if op.takes_key or not op.learned_arrays else (("rngs", None),)
    facts = {
        "_op": op,
        "__signature__": arguments(op, *extra),
        "__doc__": document(op, __name__, _example(op)),
        "__module__": __name__,
        "__qualname__": op.module_name,
    }
    return cast(type[PoolModule], type(op.module_name, (base,), facts))


globals().update({op.module_name: _module(op) for op in OPS.values()})
__all__ = sorted(op.module_name for op in OPS.values())  # pyright: ignore


def __getattr__(name: str) -> type[PoolModule]:
    # Says to type checkers what the names above are.
    raise AttributeError(f"module `jaxpool.nnx` has no pooling module `{name}`")
