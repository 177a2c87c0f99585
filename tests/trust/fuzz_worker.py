"""Makes the calls that `fuzz.py` asks for, and judges how they end.

Announces each on a line before it is made, as the process may not live to say more.
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import re
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from contract import EXCEPT, Case
from flax import nnx
from fuzz_calls import draw, names

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool._core.op import OPS
from jaxpool._core.window import is_sequence

SECONDS = 1.0  # of this thread, less what XLA takes to compile
MEMORY = 256 * 2**20  # by which a call may raise the peak: a program in XLA is large
ADDRESSES = 10 * 2**30  # more than all calls need; who asks for more dies of it
MESSAGE = 1500  # characters of an error
LARGE = 1e15  # what is larger, or the inverse of that, may overflow in float32
WORK = 20_000  # elements that the oracle visits, at most: it is a loop in Python


# ------------------------------------------------------------------- calling


def make(call):
    """Makes the call, in its mode."""
    given, f = dict(call.given), _target(call)
    arrays = [n for n, v in given.items() if isinstance(v, np.ndarray)]
    sizes = [n for n, v in given.items() if isinstance(v, jax.ShapeDtypeStruct)]
    names = {"jit": arrays, "huge": sizes, "traced": call.changed[:1]}
    names = [n for n in names.get(call.mode, ()) if n in given]
    if call.mode != "traced":  # what builds a module is none of its inputs
        names = [n for n in names if n not in call.built]
    if call.mode != "huge":
        leaves = {n: jax.tree.leaves(given[n]) for n in names}
        names = [n for n in names if all(map(_traceable, leaves[n]))]
    traced = {n: given.pop(n) for n in names}
    if call.mode == "huge":
        return jax.eval_shape(functools.partial(f, given), traced)
    return jax.jit(functools.partial(f, given))(traced) if traced else f(given, {})


def _traceable(value):
    """Whether JAX takes it as an argument of a compiled function."""
    if isinstance(value, jax.Array | bool):
        return True
    if isinstance(value, np.ma.MaskedArray):
        return False
    if isinstance(value, int):
        return abs(value) < 2**31
    if isinstance(value, float):
        return True
    kinds = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc"
    return bool(kinds) and value.dtype.isnative and value.size < 2**30


def _sabotage(name):
    """What the fuzzer has to notice, for its own test."""
    if name == "dies":
        os.abort()
    if name == "hangs":
        time.sleep(3600)
    if name == "grumbles":
        raise TypeError("object of type 'int' has no len()")
    return np.zeros(1)


def _target(call):
    """`f(given, traced)`, which makes the call."""
    api, _, name = call.name.rpartition(".")

    def function(given, traced):
        y = getattr(jaxpool, name)(**given, **traced)
        if name == "lowering":
            with y:
                return jnp.zeros(1)
        if name == "sharded":
            return y(np.ones((2, 4, 4, 1), np.float32), (2, 2))
        return y

    def module(given, traced):
        given = {**given, **traced}
        settings = {n: v for n, v in given.items() if n in call.built}
        inputs = {n: v for n, v in given.items() if n not in call.built}
        op = next(o for o in OPS.values() if o.module_name == name)
        if api == "nnx":
            if op.learned_arrays:
                settings["rngs"] = nnx.Rngs(0)
            return getattr(jaxpool.nnx, name)(**settings)(**inputs)
        settings = {"init_" if n == "init" else n: v for n, v in settings.items()}
        built = getattr(jaxpool.linen, name)(**settings)
        if op.learned_arrays or settings.get("trainable", True):
            return built.init_with_output(jax.random.key(0), **inputs)[0]
        return built.apply({}, **inputs)

    if api == "sabotage":
        return lambda given, traced: _sabotage(name)
    return module if api else function


# ------------------------------------------------------------------- judging


def judge(call, y):
    """What is wrong with a value, or None."""
    leaves = [v for v in jax.tree.leaves(y) if hasattr(v, "shape")]
    arrays = [v for v in call.given.values() if hasattr(v, "shape") and v.shape]
    if any(0 in v.shape for v in leaves) and arrays:
        if not any(0 in v.shape for v in arrays):
            return f"empty: {[v.shape for v in leaves]}"
    if call.mode == "huge":
        return None
    others = {n: v for n, v in call.given.items() if n != "x"}
    here, there = (
        np.concatenate([[0], *map(_magnitudes, jax.tree.leaves(tree))])
        for tree in (call.given.get("x"), others)
    )
    numbers = np.concatenate([here, there])
    usual = (numbers == 0) | ((numbers > 1 / LARGE) & (numbers < LARGE))
    if np.any(np.isfinite(numbers) & ~usual) or not np.isfinite(there).all():
        return None
    if any(map(_rounded, jax.tree.leaves(others))):
        return None
    inexact = [v for v in leaves if jnp.issubdtype(v.dtype, jnp.inexact)]
    infinite = not np.isfinite(here).all()
    if not infinite and any(jnp.isnan(v).any() for v in inexact):
        return "NaN from finite input"
    if infinite and call.case is not None and call.case.op.kind == "other":
        return None  # what the oracle multiplies by 0 may not be read at all
    try:
        expected = answer(call)
    except Exception:  # the oracle knows no such call
        expected = None
    call.compared = expected is not None
    if not call.compared or not differs(y, expected, infinite):
        return None
    return differs(y, expected, infinite, reach(call, expected))


MOVES = 32
# What rounding may do to a result, for each unit of the largest: float32 at its best,
# or weights that are powers of e**lam of distances from a mean, which cancel.
ROUNDING, OF_POWERS = 1e-5, 1e-4


def reach(call, expected):
    """How far each result goes when last bits of what is given change.

    Boxes that end between two samples, and powers of what nearly cancels, go far.
    """
    step, farthest = float(np.finfo(np.float32).eps), None
    least = OF_POWERS if call.case.op.name == "detail_preserving_pool" else 0.0
    for seed in range(MOVES):
        rng = np.random.default_rng(seed)

        def move(value, rng=rng):
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                return value
            moved = value * (1 + 4 * step * rng.uniform(-1, 1, value.shape))
            return moved.astype(np.float64)

        y = answer(dataclasses.replace(call, given=jax.tree.map(move, call.given)))
        leaves = zip(jax.tree.leaves(y), jax.tree.leaves(expected), strict=True)
        apart = [np.abs(np.asarray(a) - np.asarray(b)) for a, b in leaves]
        farthest = list(map(np.fmax, farthest or apart, apart))
    return [np.fmax(far, least) for far in farthest]


def _magnitudes(value):
    """Those of inexact numbers."""
    if isinstance(value, float | complex | np.ndarray | np.generic | jax.Array):
        if jnp.issubdtype(jnp.result_type(value), jnp.inexact):
            return np.abs(np.asarray(value).astype(np.complex128)).ravel()
    return []


def _rounded(value):
    """Whether float32 rounds some integer of an array."""
    array = isinstance(value, np.ndarray | jax.Array) and value.size
    if not array or not jnp.issubdtype(value.dtype, jnp.integer):
        return False
    # Those of 16 bits it holds, and an array of them may be larger than the memory.
    wide = value.dtype.itemsize > 2
    return wide and max(abs(int(v)) for v in (value.min(), value.max())) > 2**24


def differs(actual, expected, infinite, reach=None):
    """How results differ from the oracle's, which are float64; or None.

    By more than `reach`, if that is given. Of finite input the oracle has no NaN but by
    overflow.
    """
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    if len(actual) != len(expected):
        return f"{len(actual)} results, not {len(expected)}"
    reach = reach or [0.0] * len(actual)
    for a, e, may in zip(actual, expected, reach, strict=True):
        a, e = jnp.asarray(a), np.asarray(e)
        if a.shape != e.shape:
            return f"shape {a.shape}, not {e.shape}"
        inexact = jnp.issubdtype(a.dtype, jnp.inexact)
        eps = max(4 * float(jnp.finfo(a.dtype).eps) if inexact else 0, ROUNDING)
        most = float(jnp.finfo(a.dtype).max) / 4 if inexact else 2.0**31
        complex_ = jnp.issubdtype(a.dtype, jnp.complexfloating)
        a = np.asarray(a).astype(np.complex128 if complex_ else np.float64)
        with np.errstate(invalid="ignore"):
            fits = np.abs(e) < most  # the oracle's range is wider
            scale = max(1.0, float(np.abs(e[fits]).max(initial=0)))
            bad = fits & ~(np.abs(a - e) <= eps * scale + may)
        bad |= infinite & np.isnan(e) & np.isfinite(a)
        if bad.any():
            at = tuple(int(i[0]) for i in np.nonzero(bad))
            return f"{a[at]} at {at}, not {e[at]}"
    return None


def answer(call):
    """The oracle's answer; None, or an error, where it has none."""
    given, case = dict(call.given), call.case
    if case is None or (call.built and case.op.learned_arrays):
        return None  # a module's weights are its own
    if not call.exact and "samples" in call.changed:
        return None  # boundaries at u = 0 are a limit, and from another side
    if "where" in given and (case.op.name, "mask") in EXCEPT:
        return None
    x = np.asarray(given.pop(case.op.inputs[0]))
    if call.exact:
        where = None if "where" not in given else np.asarray(given["where"])
        with np.errstate(all="ignore"):
            return case.expected(x, where)
    if case.op.kind == "other" and (
        x.ndim != case.input().ndim or "axis" in call.changed
    ):
        return None  # which axes are pooled is for each to say
    if not all(v.size for v in given.values() if isinstance(v, np.ndarray)):
        return None
    x = x.astype(np.float64, casting="same_kind" if x.dtype.kind != "V" else "unsafe")
    where, keepdims = given.pop("where", None), given.pop("keepdims", False)
    kwargs = canonical(case.op.kind, given)
    size = kwargs.get("window_shape") or kwargs.get("output_shape") or ()
    n = {"global": x.ndim - 2, "other": len(case.sizes)}.get(case.op.kind, len(size))
    if n >= x.ndim or not 0 < x.size * math.prod(k or 1 for k in size) <= WORK:
        return None
    known = inspect.signature(case.op.fn).parameters
    kwargs = {k: v for k, v in kwargs.items() if k in known}
    changed = Case(case.op, x.shape[-1 - n : -1], kwargs)
    if case.op.weights:
        changed.__dict__["arguments"] = kwargs  # as they are, and not drawn to fit
    with np.errstate(all="ignore"):
        y = changed.expected(x, where)
    return np.expand_dims(y, tuple(range(1, x.ndim - 1))) if keepdims else y


def canonical(kind, given):
    """Arguments as the oracle takes them: ints repeated, padding in pairs."""
    if given.get("axis") is not None:
        raise ValueError("the oracle pools the axes before the last one alone")
    known = {k: v for k, v in given.items() if k not in ("axis", "deterministic")}
    arrays = {k: np.asarray(v) for k, v in known.items() if isinstance(v, jax.Array)}
    kwargs = {**known, **arrays}

    def ints(value, n):
        entries = tuple(value) if np.ndim(value) else (value,) * n
        return tuple(None if v is None else int(v) for v in entries)

    if kind == "adaptive":
        kwargs["output_shape"] = ints(kwargs["output_shape"], 1)
    elif "window_shape" in kwargs:
        kwargs["window_shape"] = ints(kwargs["window_shape"], 1)
        n = len(kwargs["window_shape"])
        for name in ("strides", "window_dilation"):
            value = kwargs.pop(name, None)
            kwargs |= {} if value is None else {name: ints(value, n)}
        padding = kwargs.pop("padding", None)
        if isinstance(padding, str):
            kwargs["padding"] = padding.upper()
        elif padding is not None:
            each = padding if is_sequence(padding) else (padding,) * n
            kwargs["padding"] = tuple(ints(p, 2) for p in each)
    return kwargs


# Flax's own errors about a module's attributes, which name the argument.
FLAX = (
    r"Found data .* assigned to static attribute '\w+' .*jaxpool\.nnx",
    r'Parameter "deterministic" (was|must be) passed to the constructor',
)


def judge_error(call, error):
    """What is wrong with an exception, or None."""
    text, plain = str(error), call.name.rpartition(".")[2]
    if type(error) not in (ValueError, TypeError):
        return f"{type(error).__name__}: {text[:300]}"
    if len(text) > MESSAGE:
        return f"a message of {len(text)} characters"
    op = next((o for o in OPS.values() if plain in (o.name, o.module_name)), None)
    names = {plain, op.name, op.module_name} if op else {plain}
    if any(re.match(pattern, text, re.DOTALL) for pattern in FLAX):
        return None
    method = rf"({'|'.join(names)})(\.__init__|\.__call__)?\(\)"
    if re.match(rf"{method} (missing|got)", text):
        return None  # Python's own, which names both
    caller = re.match(r"`([\w ]+)`: ", text)
    functions = (call.given.get(name) for name in ("f", "hidden_fn"))
    if caller is None and any(map(callable, functions)):
        return None  # what a function of the caller's raises is the caller's
    if caller is None or not names & set(caller[1].split(" or ")):
        return f"{type(error).__name__} in other words: {text[:300]}"
    about = re.findall(r"[`'](\w+)[^`']*[`']", text[caller.end() :])
    if not {*call.known, *call.given} & set(about):
        return f"names no argument: {text[:300]}"
    return None


# -------------------------------------------------------------------- worker

_compiling = [0.0]


def _listen(event, seconds, **_):
    if "backend_compile" in event or "cache_retrieval" in event:
        _compiling[0] += seconds


def outcome(call):
    """Makes a call and judges it."""
    _compiling[0] = 0.0
    peak, start = _peak(), time.thread_time()
    y = error = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            y = make(call)
            if call.mode != "huge":
                jax.block_until_ready(y)
    except Exception as raised:
        error = raised
    own = time.thread_time() - start - _compiling[0]
    grown = _peak() - peak
    kind = "value" if error is None else type(error).__name__
    why = judge(call, y) if error is None else judge_error(call, error)
    leaves = jax.tree.leaves(call.given)
    claims = [len(v) for v in leaves if isinstance(v, range)]
    claims += [v.nbytes for v in leaves if isinstance(v, np.ndarray)]
    if max(claims, default=0) > ADDRESSES and "memory" in repr(error).lower():
        why, kind = None, "MemoryError"  # what is given says that it is larger
    given = sum(claims)
    if why is None and own > SECONDS:
        why = f"{own:.1f} s of its own"
    if why is None and grown > MEMORY + 100 * given:
        why = f"{grown / 2**20:.0f} MiB more"
    facts = {"compared": call.compared, "own": round(own, 3)}
    if why:
        return {**facts, "kind": "finding", "why": why, "end": kind}
    return {**facts, "kind": kind}


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    """Makes and judges the calls on standard input, or says what can be called."""
    if len(sys.argv) == 1:
        print(*names())
        return
    calls, say = json.load(sys.stdin), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed on the way is no answer
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    jax.monitoring.register_event_duration_secs_listener(_listen)
    jax.block_until_ready(jaxpool.max_pool(np.ones((1, 4, 4, 1)), (2, 2)))
    last = None
    for name, number in calls:
        if name != last:
            jax.clear_caches()
        last, call = name, draw(name, number, int(sys.argv[1]))
        print(json.dumps({"call": str(call)}), file=say, flush=True)
        print(json.dumps(outcome(call)), file=say, flush=True)


if __name__ == "__main__":
    main()
