"""The calls that the fuzzer makes: honest ones, with some arguments replaced.

Each is drawn by (seed, name, number) alone.
"""

import collections
import dataclasses
import inspect
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from contract import CASES, STATIC

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool._core.op import OPS

__all__ = ["Call", "draw", "names"]


@dataclasses.dataclass
class Call:
    """A call: of what, and how its arguments differ from those of an honest one."""

    name: str
    case: Any  # a Case; None for what is not an op
    given: dict[str, Any]
    known: set[str]  # names that an error may speak of
    built: frozenset[str] = frozenset()  # those of `given` that build a module
    mode: str = "eager"
    changed: list[str] = dataclasses.field(default_factory=list)
    exact: bool = True  # the changes do not change what is asked
    compared: bool = False  # with the oracle, once it is made

    def __str__(self):
        first = sorted(self.given, key=lambda name: name not in self.changed)
        given = ", ".join(f"{name}={shown(self.given[name])}" for name in first)
        return f"{self.mode} {self.name}({given})"


def shown(value):
    """A value, in short."""
    if isinstance(value, np.ndarray | jax.Array):
        small = value.size <= 8 and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        what = np.asarray(value).tolist() if small else value.shape
        return f"{type(value).__name__}({what}, {value.dtype})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list) and len(value) < 9:
        return f"{type(value).__name__}({', '.join(map(shown, value))})"
    try:
        return repr(value)[:60]
    except ValueError:
        return "an int of many digits"


# ------------------------------------------------------------- honest calls

_GRID = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1)
_BOXES = np.array([[0, 0, 112, 112], [0, 0, 300, 300]], np.float32)


def _sample(key):
    return jax.random.normal(key, (2,))


HONEST = {
    "max_unpool": dict(
        values=_GRID[:, 1::2, 1::2],
        indices=np.array([[[[7], [9], [11]], [[19], [21], [23]]]], np.int32),
        output_shape=(4, 6),
    ),
    "convert_indices": dict(
        indices=np.array([[[3], [0]], [[2], [1]]]), input_shape=(4, 4), target="tf"
    ),
    "dequantize": dict(
        q=np.array([-5, 4, 127], np.int8), params=jaxpool.QuantParams(0.5, -5)
    ),
    "feature_multiplier": dict(pool_type="catavgmax"),
    "fractional_boundaries": dict(
        input_shape=(2, 6, 7, 1), output_shape=(4, 5), samples=(0.35, 0.8)
    ),
    "lowering": dict(form="stages"),
    "mean_over_keys": dict(f=_sample, key=jax.random.key(0), passes=3),
    "output_shape": dict(
        input_shape=(2, 6, 7, 1), window_shape=(2, 2), strides=(2, 2), padding=1
    ),
    "QuantParams": dict(scale=0.5, zero_point=3, dtype="int8"),
    "quantize": dict(
        x=np.array([-9.0, 0.0, 900.0], np.float32), params=jaxpool.QuantParams(0.1, -5)
    ),
    "sharded": dict(
        pool=jaxpool.max_pool,
        mesh=jax.sharding.Mesh(jax.devices()[:1], ("rows",)),
        spec=jax.sharding.PartitionSpec(None, "rows"),
    ),
    "roi_levels": dict(boxes=_BOXES, min_level=2, max_level=5),
}
CASES_OF = collections.defaultdict(list)
for _case in CASES:
    CASES_OF[_case.op.name].append(_case)


def names():
    """Every public function, and every module of both Flax APIs."""
    modules = [f"{m}.{name}" for m in ("nnx", "linen") for name in jaxpool.nnx.__all__]
    return [*jaxpool.__all__, *modules]


def honest(name, rng):
    """A call that ends in the oracle's answer."""
    api, _, own = name.rpartition(".")
    if api == "sabotage":
        case = CASES_OF["max_pool"][0]
        return Call(name, case, {"x": case.input(), **case.arguments}, {"x"})
    if not api and name in HONEST:
        known = set(inspect.signature(getattr(jaxpool, name)).parameters)
        return Call(name, None, dict(HONEST[name]), known)
    op = next(o for o in OPS.values() if own in (o.name, o.module_name))
    known = {*inspect.signature(op.fn).parameters, *op.settings}
    if op.name in HONEST:
        size = frozenset({"output_shape"})
        return Call(name, None, dict(HONEST[op.name]), known, size)
    case = CASES_OF[op.name][rng.integers(len(CASES_OF[op.name]))]
    given = {op.inputs[0]: case.input(), **case.arguments}
    if not api:
        if op.takes_where and op.kind != "other" and rng.random() < 0.3:
            given["where"] = rng.random(given["x"].shape) > 0.3
        return Call(name, case, given, known)
    settings = {n: v for n, v in case.arguments.items() if n in op.config}
    if op.learned_arrays:
        own = {**STATIC.get(op.name, {}), **case.kwargs}
        settings = {n: v for n, v in own.items() if n in op.settings}
    if op.takes_key:
        settings["deterministic"] = True
    call = {n: v for n, v in given.items() if n in op.inputs}
    known |= {"trainable", "features", "rngs", "deterministic", "rng_collection"}
    return Call(name, case, {**settings, **call}, known, frozenset(settings))


# ----------------------------------------------------------------- mutations

HOSTILE = (
    *(None, True, False, 0, -1, 1, 2, 3, 5, 64, 2**31, 2**40, 2**62, 2**64, -(2**63)),
    *(10**30, -(10**30), 10**5000, 0.0, 0.5, 2.0, -1.5, 1e-300, 1e-30, 1e30, 1e308),
    *(math.nan, math.inf, -math.inf, 1j, "", "SAME", "same", "max", "2", b"xy", b"\2"),
    *((), [], (0,), (2,), (2, 2), [3, 2], (2, 2, 2), (-1, 2), (2**62, 2), (1.0, 2)),
    *((2**31, 2**31), (2**40, 1), (1, 1, 1, 1, 1, 1), ("a", "b"), ((1, 1), (1, 1))),
    *(((1,),), ((0, 0, 0),), ((2**62, 1), (0, 0)), (None, 2), (None,), (True, True)),
    *((0.5, 0.5), (math.nan, 1.0), ((1, 2), 1), (10**30, 1), {}, {1: 2, 2: 3}, {2, 3}),
    *({"x": 1.0}, object(), Ellipsis, NotImplemented, int, math, len, slice(2)),
    *(range(2), range(2**40), np.int64(2), np.int8(-1), np.uint8(3), np.float32(2)),
    *(np.bool_(True), np.float64("nan"), np.array(2), np.array([2, 2]), np.array([])),
    *(np.array([2.0, 2.0]), np.array("x"), np.array(None), np.array([[2, 2]])),
    *(np.datetime64("2020-01-01"), np.zeros((2, 2), bool), np.array([2**62, 2])),
    *(np.broadcast_to(np.int8(1), (2**40,)), ["deep", [["er"]]], [[1, 2], [3]]),
    *(
        np.ma.array([2, 2]),
        jnp.array(2),
        jnp.array([2, 2]),
        jnp.array(0.5),
        jax.random.key(1),
    ),
    *(jax.ShapeDtypeStruct((2, 2), np.float32), "x" * 100_000, [1] * 10_000),
)


def _hostile(value, rng):
    if rng.random() < 0.05:  # what can be read but once, and what never ends
        made = (lambda: iter((2, 2)), lambda: (i for i in (2, 2)), lambda: iter(int, 1))
        return made[rng.integers(3)]()
    return HOSTILE[rng.integers(len(HOSTILE))]


def _number(value, rng):
    """Another number near this one, or in the same place of the same sequence."""
    if isinstance(value, bool) or not isinstance(value, int | float | tuple | list):
        return _hostile(value, rng)
    if isinstance(value, tuple | list):
        if not value:
            return (2,)
        at = int(rng.integers(len(value)))
        entry = _number(value[at], rng)
        return (*value[:at], entry, *value[at + 1 :])
    own = (value + 1, value - 1, 2 * value, -value, 0, 1, 2, 7, 2**31, 2**40, 2**62)
    own += (2**63, 10**30, float(value), str(value), None, True, math.nan, math.inf)
    own += (np.int64(2), np.float32(2), np.array(2), (value,), 1e-30, 1e30)
    return own[rng.integers(len(own))]


def _same(value, rng):
    """The same, written in another way."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return (np.int64, np.int32, np.array, jnp.array)[rng.integers(4)](value)
    if isinstance(value, float):
        return (np.float64, np.float32, np.array, jnp.array)[rng.integers(4)](value)
    if isinstance(value, tuple):
        if rng.random() < 0.5 and all(type(v) is int for v in value):
            return (np.array, jnp.array)[rng.integers(2)](value)
        return [_same(v, rng) for v in value]
    if isinstance(value, np.ndarray):
        ways = (
            lambda a: a.tolist(),
            jnp.asarray,
            lambda a: a[::-1].copy()[::-1],
            lambda a: np.asfortranarray(a),
            lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
            lambda a: a.astype(a.dtype.newbyteorder()),
        )
        if value.dtype == np.float32:
            ways += (lambda a: a.astype(np.float64),)
        elif not value.size or value.dtype in (np.int8, np.uint8):
            ways = ways[1:]  # a list has no dtype
        return ways[rng.integers(len(ways))](value)
    return value


DTYPES = ("int8", "uint8", "int32", "int64", "uint32", "float16", "bfloat16", "bool")
DTYPES += ("float64", "complex64", "str", "object", "datetime64[s]", "float8_e4m3fn")


def _cast(a, rng):
    dtype = DTYPES[rng.integers(len(DTYPES))]
    with np.errstate(all="ignore"):
        if dtype in ("bfloat16", "float8_e4m3fn"):
            return jnp.asarray(a).astype(dtype)
        return a.astype("int64").astype(dtype) if "time" in dtype else a.astype(dtype)


def _special(a, rng):
    a = a.copy()
    if a.size and a.dtype.kind == "f":
        some = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-38, 0.0, -0.0)
        value = some[rng.integers(len(some))]
        whole = rng.random() < 0.3
        a[... if whole else tuple(int(rng.integers(n)) for n in a.shape)] = value
    elif a.size and a.dtype.kind in "iu":
        limits = np.iinfo(a.dtype)
        some = (-1, 0, 1, 100, limits.max, limits.min)
        value = max(some[rng.integers(len(some))], limits.min)
        a[tuple(int(rng.integers(n)) for n in a.shape)] = value
    return a


def _reshaped(a, rng):
    at = int(rng.integers(a.ndim)) if a.ndim else 0
    ways = [
        lambda: a[None],
        lambda: a[..., None],
        lambda: a.ravel(),
        lambda: a.T,
        lambda: a.reshape(*(1,) * min(20, 60 - a.ndim), *a.shape),
        lambda: np.array(a.ravel()[0] if a.size else 0, a.dtype),
    ]
    if a.ndim:
        ways += [
            lambda: a[0] if len(a) else a,
            lambda: np.take(a, range(0), at),
            lambda: np.take(a, range(min(1, a.shape[at])), at),
            lambda: np.take(a, range(max(a.shape[at] - 1, 0)), at),
            lambda: np.concatenate([a, a], at),
            lambda: np.swapaxes(a, at, -1),
        ]
    return ways[rng.integers(len(ways))]()


def _params(value, rng):
    """A mapping of arrays with one of them gone, too many, or changed."""
    name = sorted(value)[rng.integers(len(value))]
    match rng.integers(4):
        case 0:
            return {n: v for n, v in value.items() if n != name}
        case 1:
            return {**value, "other": np.ones(2, np.float32)}
        case 2:
            return {**value, name: _hostile(None, rng)}
    return {**value, name: _changed(value[name], rng)}


def _changed(value, rng):
    if isinstance(value, dict) and value and rng.random() < 0.8:
        return _params(value, rng)
    if isinstance(value, np.ndarray) and rng.random() < 0.75:
        way = (_cast, _special, _reshaped, _reshaped)[rng.integers(4)]
        return way(value, rng)
    way = _number if rng.random() < 0.5 else _hostile
    return way(value, rng)


MODES = ("eager", "jit", "traced", "huge")
HUGE = (2**31, 2**40, 2**62)


def mutate(call, rng):
    """Changes up to three arguments of an honest call, and how it is made."""
    call.mode = MODES[rng.choice(4, p=(0.7, 0.1, 0.1, 0.1))]
    api, _, name = call.name.rpartition(".")
    target = getattr(getattr(jaxpool, api) if api else jaxpool, name)
    parameters = dict(inspect.signature(target).parameters)
    for own in ("parent", "name", "rngs"):  # of Flax
        parameters.pop(own, None)
    if api:
        call.built |= set(parameters)
    given, names = call.given, sorted({*parameters, *call.given})
    arrays = [n for n, v in given.items() if isinstance(v, np.ndarray) and v.ndim]
    if call.mode == "huge" and arrays:
        name = arrays[rng.integers(len(arrays))]
        shape = list(given[name].shape)
        for _ in range(rng.integers(1, 3)):
            shape[rng.integers(len(shape))] = int(rng.choice(HUGE))
        given[name] = jax.ShapeDtypeStruct(tuple(shape), given[name].dtype)
        call.changed, call.exact = [name], False
    if call.mode == "traced":
        call.changed = [sorted(given)[rng.integers(len(given))]]
    for _ in range(rng.choice(4, p=(0.1, 0.6, 0.2, 0.1))):
        name = names[rng.integers(len(names))]
        if name not in call.changed:
            call.changed.append(name)
            default = getattr(parameters.get(name), "default", None)
            _replace(call, name, given.get(name, default), rng)
    return call


def _replace(call, name, value, rng):
    """Changes one argument: its form, its presence, its name, or its value."""
    how = rng.random()
    if how < 0.15:
        if name in call.given:
            call.given[name] = _same(value, rng)
        return
    call.exact = False
    if how < 0.2:
        call.given.pop(name, None)
    elif how < 0.22:
        call.given[f"{name}_"] = value
    else:
        call.given[name] = _changed(value, rng)


def draw(name, number, seed):
    """One of the calls of a public name."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    call = honest(name, rng)
    return call if name.startswith("sabotage") else mutate(call, rng)
