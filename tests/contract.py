"""The table that every op goes through: how to call it, and what it must refuse.

A call site is a `Case`: the op, its arguments, and the oracle's answer. The tests in
`test_contract.py` read `CASES` and `WRONG` and know no op by name.

A family whose ops bring more than a window has a file of its own in `families/`, named
as in the op's row, with any of

  ORACLES   the answer, for each op: of one window's elements as in `oracle.py`, or, for
            an op of kind "other", `f(x, where=None, **arguments)` of the whole input
  CASES     for each op, `(sizes, arguments)`, then `batch`, then `groups`: shapes of
            `x` without batch and channels; `batch` (or None) where its leading axes are
            not free; `groups` where channels come in multiples of a number. For an op
            that learns several arrays, its module's arguments, with the number of
            channels as `features`: `params` are drawn to fit them
  OWN       for each op, arguments that are added to the shared cases of its kind
  STATIC    for each op, arguments that it cannot do without
  WRONG     for each op, `(arguments, error, part of its message)`
  COUNTED   for each op with an argument of integers, that argument; how many things it
            counts, more than 8 bits name if that is cheap; and `f(integers)`, the array
            and the arguments of a call, for as many integers as there are
  WIDE      the ops whose integers promote: "sum" or "mean"; all others keep the dtype
  GOLDEN    for each key of `golden.json`, what an op gives: `f(a, b)`, of its A and B
  EXPECTATION   for each op that samples, arguments with which the mean of its samples
            is what it gives with `deterministic=True`
  EXCEPT    `{(op, question): reason}`: questions of `test_contract.py` (their names
            without `test_`) that make no sense for an op, and why
"""

import functools
import importlib
import inspect
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import oracle

from jaxpool._core.op import OPS
from jaxpool._core.window import Window
from jaxpool.testing import cases as testing
from jaxpool.testing.cases import EXTENTS, OUTPUTS, WINDOWS


class Case(testing.Case):
    """One way to call an op of jaxpool, with what its tables say of it."""

    @functools.cached_property
    def arguments(self):
        """The op's arguments."""
        given = {**STATIC.get(self.op.name, {}), **self.kwargs}
        if not self.op.weights:
            return given
        defaults = {n: p.default for n, p in self.op.settings.items()}
        weights = self.op.weights_for({**defaults, **given})
        rng = np.random.default_rng(len(weights))
        params = {
            name: rng.normal(size=shape).astype(np.float32) / math.sqrt(shape[0])
            for name, (shape, _) in weights.items()
        }
        at_call = {*self.op.config, "deterministic"}
        called = {n: v for n, v in given.items() if n in at_call}
        return {**called, "params": params}

    def input(self, *, channels=2, **more):
        """Distinct numbers; as many channels as there are weights for."""
        if self.op.weights:
            channels = self.kwargs["features"]
        return super().input(channels=channels, **more)

    @property
    def oracle(self):
        """The op's row in the tables of oracles."""
        return oracle.ORACLES[self.op.name]


# Arguments that an op cannot do without.
STATIC = {
    "pool": {"init": 1.0, "reduce_fn": jnp.multiply},
    "stochastic_pool": {"deterministic": True},
}

# For ops whose windows are those of the ops before, with another formula on top.
_FEW_WINDOWS = [WINDOWS[i] for i in (1, 4, 5, 6, 10)]
# What one op alone takes, added to a case that all ops of its kind share.
OWN = {
    "avg_pool": [dict(count_include_pad=False), dict(divisor_override=3)],
    "gem_pool": [dict(p=1.5, eps=0.11)],
    "lp_pool": [dict(p=1.0), dict(p=3.5, normalize=True), dict(p=math.inf)],
    "mixed_pool": [dict(alpha=0.2)],
    "global_lp_pool": [dict(p=1.0, normalize=True)],
    "global_gem_pool": [dict(p=1.5, eps=0.11)],
    "global_lse_pool": [dict(r=10.0)],
}


WIDE = {
    name: "sum" if "sum" in name else "mean"
    for name, op in OPS.items()
    if op.family in ("average", "power", "exponential", "blend", "stochastic")
    or name == "adaptive_avg_pool"
}
COUNTED = {
    "max_unpool": (
        "indices",
        70_000,
        lambda indices: (
            np.arange(1, len(indices) + 1, dtype=np.float32)[:, None],
            dict(indices=indices[:, None], output_shape=(70_000,)),
        ),
    )
}
EXCEPT = {}  # filled by the families
GOLDEN = {}
EXPECTATION = {}
_FAMILY_CASES = {}


def _read_families():
    """Adds the tables of `families/` to those of this file."""
    tables = {
        "ORACLES": oracle.ORACLES,
        "CASES": _FAMILY_CASES,
        "OWN": OWN,
        "STATIC": STATIC,
        "WRONG": OWN_WRONG,
        "COUNTED": COUNTED,
        "WIDE": WIDE,
        "EXCEPT": EXCEPT,
        "GOLDEN": GOLDEN,
        "EXPECTATION": EXPECTATION,
    }
    families = sorted(Path(__file__).parent.joinpath("families").glob("[a-z]*.py"))
    for path in families:
        family = importlib.import_module(f"families.{path.stem}")
        for name, table in tables.items():
            rows = getattr(family, name, {})
            assert not set(rows) & set(table), f"{path.stem}: {name} says it twice"
            table.update(rows)


def _cases():
    kinds = {"window": WINDOWS, "adaptive": OUTPUTS, "global": EXTENTS}
    for op in OPS.values():
        if op.name in _FAMILY_CASES:
            yield from (Case(op, *row) for row in _FAMILY_CASES[op.name])
        elif op.kind in kinds and op.inputs == ("x",):
            shared = kinds[op.kind]
            if op.kind == "window" and op.family not in ("extremum", "average"):
                shared = _FEW_WINDOWS
            for sizes, kwargs in shared:
                yield Case(op, sizes, kwargs)
            for own in OWN.get(op.name, []):
                for sizes, kwargs in (shared[1], shared[-1]):
                    yield Case(op, sizes, {**kwargs, **own})


def typical(kind=None):
    """One 2-D case for each op (of a kind): overlapping, padded where it can be."""
    chosen = {}
    for case in CASES:
        if case.op.kind == "other":
            chosen.setdefault(case.op.name, case)
        padded = case.kwargs.get("padding") == ((1, 1), (2, 0))
        if len(case.sizes) == 2 and (case.op.kind != "window" or padded):
            chosen.setdefault(case.op.name, case)
    return [c for c in chosen.values() if kind in (None, c.op.kind)]


_PLANE = (5, 5)
# What a parameter is asked about: many elements, few, and the whole extent.
_PARAMETER_WINDOWS = [
    dict(window_shape=(4, 4)),
    dict(window_shape=(2, 2), padding="SAME"),
    dict(window_shape=_PLANE),
]


def parameters():
    """(case, name) of every argument of an op that is a number, or one a channel."""
    window = inspect.signature(Window.of).parameters
    for case in typical():
        op, cases = case.op, [case]
        if op.kind in ("window", "global") and op.inputs == ("x",):
            windows = _PARAMETER_WINDOWS if op.kind == "window" else [{}]
            own = {n: v for n, v in case.kwargs.items() if n not in window}
            cases = [Case(op, _PLANE, {**own, **more}) for more in windows]
        for name, p in op.config.items():
            kind = str(p.annotation)
            number = "float" in kind and "Sequence" not in kind
            required = p.default is p.empty and p.annotation is not float  # an array
            if number and not required and (op.per_channel or name not in op.learned):
                yield from ((case, name) for case in cases)


_X = np.zeros((2, 6, 7, 3), np.float32)
_W = dict(window_shape=(2, 2))
# For each kind of op: what is wrong, the arguments, and what the error must say.
WRONG = {
    "window": [
        (dict(window_shape=2), ValueError, "`window_shape` must be a sequence"),
        (dict(window_shape=None), ValueError, "`window_shape` must be a sequence"),
        (dict(window_shape=()), ValueError, "`window_shape` must not be empty"),
        (dict(window_shape=(0, 2)), ValueError, "`window_shape` must be at least 1"),
        (dict(window_shape=(-1, 2)), ValueError, "at least 1; got -1"),
        (dict(window_shape=(2.0, 2)), TypeError, "must be made of ints; got 2.0"),
        (dict(window_shape=("2", 2)), TypeError, "must be made of ints; got '2'"),
        (dict(window_shape=(True, 2)), TypeError, "must be made of ints; got True"),
        (dict(window_shape=(2, 2, 2, 2)), ValueError, "must have at least 5 axes"),
        (dict(window_shape=(7, 2)), ValueError, "leaves nothing to pool"),
        (dict(window_shape=(2**31 - 1, 2)), ValueError, "leaves nothing to pool"),
        (dict(window_shape=(2**62, 2)), ValueError, "must be at most 2147483647"),
        (dict(window_shape=range(2**40)), ValueError, "must have at most 64 entries"),
        (dict(window_shape=iter((2, 2))), ValueError, "must be a sequence"),
        (dict(window_shape=b"\2\2"), ValueError, "must be a sequence"),
        (dict(window_shape={2: 2, 3: 3}), ValueError, "must be a sequence"),
        (dict(window_shape=(10**5000, 2)), ValueError, "got int of thousands of"),
        (dict(_W, ceil_mode=(10**5000,)), TypeError, "got tuple of thousands of"),
        (dict(_W, strides=(2, 2, 2)), ValueError, "`strides` must have 2 entries"),
        (dict(_W, strides=0), ValueError, "`strides` must be at least 1; got 0"),
        (dict(_W, strides=10**30), ValueError, "must be at most 2147483647"),
        (dict(_W, strides=[1] * 10**5), ValueError, "`strides` must have 2 entries"),
        (dict(_W, strides=1.5), TypeError, "`strides` must be made of ints"),
        (dict(_W, padding="FULL"), ValueError, "`padding` must be one of VALID"),
        (dict(_W, padding=-1), ValueError, "`padding` must be at least 0; got -1"),
        (dict(_W, padding=((1, 1),)), ValueError, "`padding` must be one of VALID"),
        (dict(_W, padding=((1, 1, 1), 0)), ValueError, "`padding` must be one of"),
        (dict(_W, window_dilation=0), ValueError, "`window_dilation` must be at"),
        (dict(_W, window_dilation=(6, 1)), ValueError, "leaves nothing to pool"),
        (dict(_W, padding=range(2**40)), ValueError, "`padding` must be one of"),
        (dict(_W, padding=(range(2**40), 0)), ValueError, "`padding` must be one of"),
        (dict(_W, ceil_mode=1), TypeError, "`ceil_mode` must be True or False"),
        (dict(_W, axis=(1, 1)), ValueError, "`axis` must name each axis once"),
        (dict(_W, axis=(1, 4)), ValueError, "`axis` must lie within the 4 axes"),
        (dict(_W, axis=1), ValueError, "`axis` must have 2 entries"),
        (dict(_W, axis=()), ValueError, "`axis` must name at least one axis"),
        (
            dict(window_shape=None, axis=(1, 2), padding="SAME"),
            ValueError,
            "`padding` must be 'VALID' where the window is the whole extent",
        ),
        (
            dict(window_shape=None, axis=(1, 2), window_dilation=2),
            ValueError,
            "`window_dilation` must be 1 where the window is the whole extent",
        ),
    ],
    "global": [
        (dict(axis=9), ValueError, "`axis` must lie within"),
        (dict(axis=10**30), ValueError, "`axis` must be at most"),
        (dict(axis=range(2**40)), ValueError, "`axis` must have at most 64 entries"),
        (dict(axis=()), ValueError, "`axis` must name at least one axis"),
        (dict(axis=(1, -3)), ValueError, "`axis` must name each axis once"),
        (dict(axis=1.0), TypeError, "`axis` must be made of ints"),
    ],
    "adaptive": [
        (dict(output_shape=2), ValueError, "`output_shape` must be a sequence"),
        (dict(output_shape=None), ValueError, "`output_shape` must be a sequence"),
        (dict(output_shape=(0, 2)), ValueError, "`output_shape` must be at least 1"),
        (dict(output_shape=(-1, 2)), ValueError, "`output_shape` must be at least 1"),
        (dict(output_shape=(2.0, 2)), TypeError, "must be made of ints"),
        (dict(output_shape=(2**31, 2)), ValueError, "`output_shape` must be at most"),
        (dict(output_shape=(2**20, 2**20)), ValueError, "must have fewer than 2**31"),
        (dict(output_shape=range(1, 2**40)), ValueError, "at most 64 entries"),
        (dict(output_shape=()), ValueError, "`output_shape` must have between 1 and"),
        (dict(output_shape=(1,) * 4), ValueError, "`output_shape` must have between"),
        (dict(output_shape=(2, 2), axis=1), ValueError, "must have 1 entries"),
    ],
}
MASKS = [
    (dict(where=np.ones((2, 6, 7, 3), np.float32)), TypeError, "must be boolean"),
    (dict(where=np.ones((5, 1), bool)), ValueError, "`where` must broadcast to `x`"),
    (dict(where=np.ones((1,) * 5, bool)), ValueError, "`where` must broadcast to"),
    (dict(where="all"), TypeError, "`where` must be an array of numbers"),
    (dict(where=10**30), TypeError, "`where` must be an array of numbers"),
    (dict(where=[[True], [True, False]]), TypeError, "`where` must be an array of"),
]
# A window of nothing but padding has a value in a plain reduction alone.
REDUCTIONS = ("extremum", "average", "monoid")
PADDED = [
    (dict(_W, padding=2), ValueError, "`padding` must be less than the window's"),
    (dict(_W, padding=((0, 0), (0, 3))), ValueError, "`padding` must be less than"),
]
OWN_WRONG = {
    "avg_pool": [
        *[({**kwargs, "count_include_pad": False}, *rest) for kwargs, *rest in PADDED],
        (dict(_W, divisor_override=0), ValueError, "must be a number other than 0"),
        (dict(_W, divisor_override="2"), TypeError, "must be a number other than 0"),
        (dict(_W, divisor_override=math.nan), ValueError, "other than 0"),
        (dict(_W, count_include_pad=2), TypeError, "must be True or False"),
    ],
    "global_max_pool": [
        (dict(keepdims=1), TypeError, "`keepdims` must be True or False"),
        (dict(keepdims=[True]), TypeError, "`keepdims` must be True or False"),
    ],
    "lp_pool": [
        (dict(_W, p=0), ValueError, "`p` must be finite and greater than 0"),
        (dict(_W, p=-1.0), ValueError, "`p` must be finite and greater than 0"),
        (dict(_W, p="2"), TypeError, "`p` must be an array of numbers"),
        (dict(_W, p=2**63), TypeError, "`p` must be an array of numbers"),
        (dict(_W, p=np.int64(2**62)), ValueError, "`p` must hold integers of int32"),
        (dict(_W, p=1j), TypeError, "`p` must be real"),
        (dict(_W, normalize=2), TypeError, "`normalize` must be True or False"),
        (dict(_W, p=math.nan), ValueError, "`p` must be finite and greater than 0"),
    ],
    "gem_pool": [
        (dict(_W, p=0), ValueError, "`p` must be finite and greater than 0"),
        (dict(_W, eps=0.0), ValueError, "`eps` must be finite and greater than 0"),
    ],
    "global_lp_pool": [(dict(p=0), ValueError, "`p` must be finite and greater")],
    "global_gem_pool": [
        (dict(p=0), ValueError, "`p` must be finite and greater than 0"),
        (dict(eps=0.0), ValueError, "`eps` must be finite and greater than 0"),
    ],
    "global_lse_pool": [(dict(r=-1.0), ValueError, "`r` must be finite and greater")],
    "mixed_pool": [
        (dict(_W, alpha=np.ones((1,) * 5)), ValueError, "`alpha` must broadcast"),
    ],
    "stochastic_pool": [
        (dict(_W, deterministic=False), ValueError, "pass `key=jax.random.key"),
        (dict(_W, deterministic=2), TypeError, "`deterministic` must be True or"),
        *[
            (dict(_W, deterministic=False, key=key), TypeError, "must be one PRNG key")
            for key in (3, "key", np.zeros(3, np.uint32), np.zeros((2, 2), np.uint32))
        ],
    ],
    "pool": [
        (dict(_W, init=np.zeros(2)), ValueError, "`init` must be a scalar"),
        (dict(_W, init=None), TypeError, "`init` must be an array of numbers"),
        (dict(_W, reduce_fn="max"), TypeError, "`reduce_fn` must be a function"),
    ],
}


def wrong():
    """(op, arguments, error, message) for each call that has to be refused."""
    for op in OPS.values():
        rows = WRONG.get(op.kind, []) + OWN_WRONG.get(op.name, [])
        required = {"window": _W, "global": {}}.get(op.kind)
        if op.kind == "window" and op.family not in REDUCTIONS:
            rows = rows + PADDED
        if op.takes_where and required is not None:
            rows = rows + [({**required, **m}, e, text) for m, e, text in MASKS]
        for kwargs, error, message in rows:
            yield op, {**STATIC.get(op.name, {}), **kwargs}, error, message


def bad_input():
    """The `x` that wrong calls are made with."""
    return jnp.asarray(_X)


_read_families()
CASES = list(_cases())

__all__ = [
    "CASES",
    "COUNTED",
    "EXCEPT",
    "EXPECTATION",
    "GOLDEN",
    "STATIC",
    "WIDE",
    "Case",
    "bad_input",
    "parameters",
    "typical",
    "wrong",
]
