"""Every op with every dtype, with and without 64-bit types: the cells of the matrix.

Four parts ask them: `test_values`, `test_derivatives`, `test_sharding`, `test_export`.
What is asked of one op with one dtype is compiled as one program where that can be,
since most of the time goes into compiling. A failure names the transforms.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms
from contract import EXCEPT, Case, typical
from test_keys import sampled

import jaxpool
from jaxpool._core.op import OPS

FLOATS = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "bool")
DTYPES = FLOATS + INTEGERS
ONLY_X64 = ("float64", "int64")


class Unpooled(Case):
    """`max_unpool` of what `max_pool_with_argmax` gives, as a function of one array."""

    def function(self, **_):
        def f(x):
            y, indices = jaxpool.max_pool_with_argmax(x, (2, 2), (2, 2))
            return jaxpool.max_unpool(y, indices, self.sizes)

        return f

    def expected(self, x, where=None):
        wide = np.asarray(x, np.float64)
        y = np.zeros_like(wide)
        for b, h, w, c in itertools.product(*(range(n) for n in wide.shape)):
            corner = h // 2 * 2, w // 2 * 2
            block = wide[b, corner[0] : corner[0] + 2, corner[1] : corner[1] + 2, c]
            if block.shape == (2, 2):
                first = np.unravel_index(np.argmax(block), (2, 2))
                if (h - corner[0], w - corner[1]) == first:
                    y[b, h, w, c] = wide[b, h, w, c]
        return y


class Sampled(Case):
    """An op in training, with one key; the oracle is the op, called and no more."""

    def function(self, **_):
        f = sampled(Case(self.op, self.sizes, self.kwargs, self.batch, self.groups))
        return lambda x: f(x, jax.random.key(0))

    @property
    def differentiable(self):
        return self.function()

    def expected(self, x, where=None):
        with transforms.double():
            return jax.jit(self.function())(x)


def named():
    """The cases by name; ops that sample twice, in evaluation and in training."""
    for case in [*typical(), Unpooled(OPS["max_unpool"], (6, 7), {})]:
        yield case.op.name, case
        if case.op.takes_key:
            facts = {f.name: getattr(case, f.name) for f in dataclasses.fields(case)}
            yield f"{case.op.name}, sampling", Sampled(**facts)


CASES = dict(named())


def rows(quick, dtypes=DTYPES):
    """A row for each op, dtype, and state of 64-bit types; what is `quick`, always."""
    return [
        pytest.param(
            *(name, dtype, wide),
            id=f"{name}-{dtype}-x64={'on' if wide else 'off'}",
            marks=[] if quick(name, dtype, wide) else [pytest.mark.full],
        )
        for name in CASES
        for dtype in dtypes
        for wide in (False, True)
        if wide or dtype not in ONLY_X64
    ]


# Asked always: an op for each way to compute a window, and one of tokens.
SOME = {"max_pool", "lp_pool", "lse_pool", "rank_pool", "attention_pool"}
CELL = ("name", "dtype", "wide")
cells = pytest.mark.parametrize(
    CELL,
    rows(
        lambda op, dtype, wide: (
            (op in SOME and dtype == "float32" and not wide)
            or (op == "avg_pool" and wide)
        )
    ),
)


def exact(case, dtype, **sizes):
    """An input of the case that `dtype` holds exactly, as all wider types do."""
    x = case.input(**sizes)
    if case.op.integer:
        return abs(x) if dtype == "uint8" else x
    if dtype in INTEGERS:
        # No more, for powers of e of them to be exact enough. Times 8, a contrast would
        # be the very threshold of `edge_aware_blur_pool`: (20 / 12) (15 / 16) = 1.25².
        x = np.round(x * 7)
        return x > 0 if dtype == "bool" else abs(x) if dtype == "uint8" else x
    narrow = dtype if "float8" in dtype else "bfloat16"
    return x.astype(narrow).astype(np.float64)


def refusal(case, dtype):
    """What the error has to say where an op does not take a dtype, else None."""
    if case.op.integer:
        return None if dtype in ("int8", "uint8") else "must be int8 or uint8"
    refuses = dtype in INTEGERS and (case.op.name, "integers") in EXCEPT
    return "must be floating" if refuses else None


class Cells:
    """What one test found of its transforms: kept, and judged together."""

    def __init__(self, record, name, dtype, wide):
        self.names, self.wrong = [CASES[name].op.name], []
        if isinstance(CASES[name], Unpooled):  # which calls two ops
            self.names.append("max_pool_with_argmax")
        self.record = functools.partial(record, op=name, dtype=dtype, x64=wide)

    def hold(self, transform, actual, expected, bound, scale=1.0):
        """Notes the largest error, as a multiple of the dtype's epsilon."""
        self._note(transform, error(actual, expected, scale), bound)

    def hold_both(self, transform, actual, expected):
        """The same of a value and the gradient, if any: that nearer to its bound."""
        errors = [error(a, e, 1.0) for a, e in zip(actual, expected, strict=True)]
        pairs = zip(errors, (VALUE, FIRST), strict=False)
        self._note(transform, *max(pairs, key=lambda pair: pair[0] / pair[1]))

    def _note(self, transform, worst, bound):
        self.record(transform=transform, error=worst, bound=bound)
        if not worst <= bound:
            self.wrong.append(f"{transform}: {worst:.3g} is more than {bound}")

    def cannot(self, transform, reason):
        self.record(transform=transform, reason=reason)

    def refused(self, transform, f, x):
        """Whether the op refuses the input, and says so as it has to."""
        try:
            jax.eval_shape(f, x)
        except ValueError as error:
            name, _, rest = str(error).partition(": ")
            if name.strip("`") not in self.names or "; got " not in rest:
                raise
            self.cannot(transform, rest.split("; got ")[0])
            return True
        return False

    def judge(self):
        assert not self.wrong, "; ".join(self.wrong)


def error(actual, expected, scale):
    """The largest difference, in epsilons of the dtype times the largest value.

    Or times `scale`, where that is more. Of integers, 0 or infinity: they are exact.
    Infinity, too, where one is not finite, but for what does not fit into the dtype.
    """
    actual, expected = (jax.tree.leaves(tree) for tree in (actual, expected))
    assert len(actual) == len(expected)
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == np.shape(e)
        result, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        if floating:
            with np.errstate(over="ignore", invalid="ignore"):
                nearest = e.astype(a.dtype).astype(np.float64)
            same = (result == nearest) | np.isnan(result) & np.isnan(nearest)
            beyond = same & ~np.isfinite(nearest)  # the dtype, as it should be
            result, e = (np.where(beyond, 0, b) for b in (result, e))
        distance = np.abs(result - e).max(initial=0)
        if floating and np.isfinite(distance):
            unit = float(jnp.finfo(a.dtype).eps) * max(np.abs(e).max(initial=0), scale)
            worst = max(worst, float(distance / unit))
        elif distance != 0:  # or NaN, which `max` would lose
            worst = np.inf
    return worst


# Epsilons, of results of which the largest is of the order of 1 to 100. A value in half
# precision is rounded once, to half an epsilon of itself; float32 and float64 add up
# tens of terms. A derivative goes through several such steps.
VALUE, FIRST, SECOND = 8, 16, 32


def points(case, dtype, **sizes):
    """Two inputs, exact in the dtype."""
    return [exact(case, dtype, seed=seed, **sizes) for seed in (0, 1)]


def typed(arrays, dtype):
    return [jnp.asarray(a).astype(dtype) for a in arrays]


def passes(case, dtype):
    """All that is asked of a function: its result, and its loss's gradient if any."""
    if dtype in INTEGERS or case.op.integer:
        return lambda f: lambda x: [f(x)]
    return lambda f: lambda x: [f(x), jax.grad(transforms.loss_of(f))(x)]


def compiled(f, as_users_do=False, **options):
    """`f`, compiled with all of XLA's optimisations or in a third of the time."""
    return jax.jit(f, compiler_options=None if as_users_do else QUICKLY, **options)


QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_llvm_disable_expensive_passes": True,
}
# (dtype, 64-bit types) whose values and derivatives are compiled as users' are.
USERS = {
    ("float32", False),
    ("bfloat16", False),
    ("float16", False),
    ("float64", True),
}
