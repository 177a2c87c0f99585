"""Every op goes through the same questions; `contract.py` says how to call it."""

import functools
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from contract import (
    CASES,
    EXCEPT,
    EXPECTATION,
    STATIC,
    WIDE,
    bad_input,
    typical,
    wrong,
)
from jax.test_util import check_grads

import jaxpool
from jaxpool._core.op import OPS

pytestmark = pytest.mark.usefixtures("quick_compilation")

# What is public without being an op.
HELPERS = {
    "QuantParams",
    "dequantize",
    "quantize",
    "feature_multiplier",
    "roi_levels",
    "convert_indices",
    "fractional_boundaries",
    "lowering",
    "mean_over_keys",
    "output_shape",
    "sharded",
}
# float32 rounds at 6e-8; results here are of the order of 1, of up to 60 terms.
F32 = dict(rtol=2e-6, atol=2e-6)


def representatives():
    """The first op of each family that brings derivatives of its own.

    Slow questions are asked of these; of all others, which are put together of theirs
    and of what JAX has, with `--full`.
    """
    composed = ("aggregation", "blend", "blur", "frequency", "importance", "masked")
    composed += ("polyphase", "probe", "pyramid", "sequence")
    first = {op.family: op.name for op in reversed(OPS.values())}
    return {name for family, name in first.items() if family not in composed}


def asked(cases, always=lambda case, value: True, common=None, **values):
    """Parametrises a question with the cases for which it makes sense.

    `values` are those of one further argument. What is not `always` asked, of ops that
    are not `common`, the representatives by default, is left for `--full`.
    """
    common = representatives() if common is None else common
    ((name, each),) = values.items() or [("_", [None])]

    def mark(test):
        question = test.__name__.removeprefix("test_")
        rows = []
        for case, value in itertools.product(cases, each):
            late = case.op.name not in common and not always(case, value)
            if (case.op.name, question) not in EXCEPT:
                row = [case, value] if values else [case]
                name_of = str(case) if value is None else f"{case}-{value}"
                marks = [pytest.mark.full] if late else []
                rows.append(pytest.param(*row, id=name_of, marks=marks))
        return pytest.mark.parametrize(("case", name) if values else "case", rows)(test)

    return mark


TYPICAL = typical()
every_case = asked(CASES)
every_gradient = asked(CASES, lambda case, _: any(case is c for c in TYPICAL), ())
every_op = asked(TYPICAL)
slowly = asked(TYPICAL, lambda case, _: False)


def agree(actual, expected, **tolerance):
    """Compares an op's result, or its several results, with the expected ones."""
    actual, expected = (jax.tree.leaves(tree) for tree in (actual, expected))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        e = np.asarray(e)
        assert a.shape == e.shape
        np.testing.assert_allclose(np.asarray(a, e.dtype), e, **tolerance)


def test_every_op_has_an_oracle_and_a_case():
    tested = {case.op.name for case in CASES}
    assert tested == set(oracle.ORACLES) == set(OPS) - {"max_unpool"}
    assert tested == {case.op.name for case in typical()}
    questions = {name.removeprefix("test_") for name in globals()}
    assert {(op, question) for op, question in EXCEPT} <= {
        (op, question) for op in OPS for question in questions
    }
    assert all(EXCEPT.values())
    assert set(OPS) | HELPERS == set(jaxpool.__all__)


@every_case
def test_equals_the_oracle(case):
    x = case.input()
    agree(jax.jit(case.function())(x), case.expected(x), **F32)


@every_op
def test_is_what_its_row_says(case):
    f = jax.jit(case.differentiable)
    x, z = case.input(), case.input(seed=1)
    mixed, expected = f(2 * x - 3 * z), 2 * f(x) - 3 * f(z)
    assert np.allclose(mixed, expected, rtol=1e-5, atol=1e-5) == case.op.linear
    if case.op.monotone:
        assert np.all(f(x + np.abs(z)) >= f(x))


@every_op
def test_any_layout(case):
    x = case.input()
    if case.op.kind == "global":
        last, first = {"keepdims": True}, {"axis": (-2, -1), "keepdims": True}
    else:
        last, first = {}, {"axis": (-2, -1)}
    moved = jax.jit(case.function(**first))(np.moveaxis(x, -1, 1))
    expected = jax.jit(case.function(**last))(x)
    moved = jax.tree.map(lambda y: jnp.moveaxis(y, 1, -1), moved)
    agree(moved, expected, **F32)


@asked(TYPICAL, lambda *_: False, batch=[(), (0,), (2, 1, 3)])
def test_any_number_of_batch_axes(case, batch):
    x = case.input(batch=batch)
    axis = {"axis": (-3, -2)} if case.op.kind == "global" else {}
    flat = x.reshape(-1, *x.shape[len(batch) :])
    expected = jax.jit(jax.vmap(case.function(**axis)))(flat)
    expected = jax.tree.map(lambda y: y.reshape(*batch, *y.shape[1:]), expected)
    agree(jax.jit(case.function(**axis))(x), expected, **F32)


@every_op
def test_no_channels(case):
    y = jax.tree.leaves(jax.jit(case.function())(case.input(channels=0)))[0]
    assert y.size == 0


@every_op
def test_jit_and_vmap_change_nothing(case):
    f, x = case.function(), case.input()
    agree(jax.jit(f)(x), f(x), **F32)
    stacked = np.stack([x, -x, 2 * x], 1)
    each = [f(stacked[:, i]) for i in range(3)]
    expected = jax.tree.map(lambda *ys: jnp.stack(ys), *each)
    agree(jax.jit(jax.vmap(f, 1))(stacked), expected, **F32)


@slowly
def test_second_call_compiles_nothing(case, compilations):
    channels = 5 + sorted(OPS).index(case.op.name)  # a shape that no other op has met
    f, x = case.function(), jnp.asarray(case.input(batch=(3,), channels=channels))
    with compilations() as first:
        jax.block_until_ready(f(x))
    with compilations() as second:
        jax.block_until_ready(f(x))
    assert first
    assert not second


@every_gradient
def test_gradient_of_every_case(case, x64):
    x = jnp.asarray(case.input(batch=(1,), channels=1, dtype=np.float64))
    f = jax.jit(case.differentiable)
    close = {"eps": 1e-4, "rtol": 1e-4, "atol": 1e-4}
    check_grads(f, (x,), order=1, modes=("rev",), **close)


@asked(TYPICAL, lambda _, dtype: dtype == "float16", dtype=["bfloat16", "float16"])
def test_half_precision(case, dtype):
    """It rounds once, and holds windows of equals, of 0, and of large numbers."""
    f, gradient = case.function(), jax.grad(finite_sum(case))

    @jax.jit  # all of it at once: one compilation
    def results(x):
        y = jax.tree.leaves(f(x))[0]
        return y, gradient(x), gradient(x.astype(jnp.float32))

    x = case.input()
    given = jnp.asarray(x).astype(dtype)
    y, g, wide = results(given)
    expected = jax.tree.leaves(case.expected(np.asarray(given, np.float64)))[0]
    assert y.dtype == g.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    agree(y, expected, rtol=eps, atol=eps / 64)
    agree(g, np.asarray(wide, np.float64), rtol=eps, atol=eps / 64)
    for hard in (x * 0, x * 0 - 1, x * 0 + 1e4, x * 0 - 1e4, np.sign(x) * 1e4):
        y, g, _ = results(jnp.asarray(hard).astype(dtype))
        fits = np.abs(jax.tree.leaves(case.expected(hard))[0]) < jnp.finfo(dtype).max
        assert np.isfinite(np.asarray(y, np.float32)[np.asarray(fits)]).all()
        assert np.isfinite(np.asarray(g, np.float32)).all()


@asked(
    TYPICAL,
    lambda _, dtype: dtype == "int8",
    dtype=["int8", "uint8", "int32", "bool"],
)
def test_integers(case, dtype):
    x = case.input() * 20
    x = (x > 0) if dtype == "bool" else np.abs(x).round().astype(dtype)
    y = jax.tree.leaves(jax.jit(case.function())(x))[0]
    expected = jax.tree.leaves(case.expected(x.astype(np.float64)))[0]
    wide = {"sum": jnp.sum, "mean": jnp.mean}.get(WIDE.get(case.op.name))
    wanted = wide(x).dtype if wide else x.dtype
    if case.op.family == "monoid":
        expected = expected.astype(np.int64).astype(dtype)
    assert y.dtype == wanted
    # The error of a sum goes with its terms: 20 times those of the other tests.
    agree(y, np.asarray(expected, np.float64), rtol=2e-6, atol=20 * 2e-6)


@every_op
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(case, special):
    x = case.input()
    x[0, 2, 3] = x[1, 0, 0] = x[1, 5, 6] = special
    with np.errstate(invalid="ignore"):
        expected = case.expected(x)
    agree(case.function()(x), expected, **F32)


@every_op
def test_ties(case):
    x = np.round(case.input())
    agree(jax.jit(case.function())(x), case.expected(x), **F32)


every_masked_op = asked([c for c in TYPICAL if c.op.takes_where])


@every_masked_op
def test_mask(case):
    x = case.input()
    some = np.random.default_rng(1).random(x.shape) > 0.6
    some[:, :3, :4] = False  # windows without elements

    @jax.jit
    def value(x, where):
        return case.function(where=where)(x)

    @jax.jit
    def gradient(x, where):
        return jax.grad(finite_sum(case, where=where))(x)

    for where in (some, some[:, :1], some[0, ..., :1]):
        expected = case.expected(x, where)
        agree(value(x, where), expected, **F32)
        for secret in (127, -128) if case.op.integer else (np.nan, np.inf):
            hidden = np.where(np.broadcast_to(where, x.shape), x, secret)
            agree(value(hidden, where), expected, **F32)
            if case.op.integer:
                continue
            g = gradient(hidden, where)
            assert np.isfinite(g).all()
            assert not np.any(np.where(np.broadcast_to(where, x.shape), 0, g))
    agree(case.function(where=np.True_)(x), case.function()(x), **F32)
    nothing = case.function(where=np.False_)(x)
    agree(nothing, case.expected(x, np.zeros(x.shape, bool)))


def finite_sum(case, **where):
    """The sum of an op's results, without those of windows without elements."""
    f = case.function(**where)

    def loss(x):
        y = jax.tree.leaves(f(x))[0]
        return jnp.where(jnp.isfinite(y), y, 0).sum()

    return loss


@pytest.mark.parametrize("name", EXPECTATION)
def test_expectation(name):
    """The mean over keys is what evaluation gives, within 4 standard errors."""
    case = next(c for c in TYPICAL if c.op.name == name)
    given = {**EXPECTATION[name], "deterministic": False}
    x = case.input()
    keys = jax.random.split(jax.random.key(0), 4096)
    y = jax.jit(jax.vmap(lambda key: case.function(**given, key=key)(x)))(keys)
    y = np.asarray(y, np.float64)
    expected = case.function(**EXPECTATION[name], deterministic=True)(x)
    error = y.std(0) / math.sqrt(len(keys))
    assert error.max() > 0
    assert np.all(np.abs(y.mean(0) - expected) <= 4 * error + 1e-6)


@pytest.mark.parametrize(
    ("op", "kwargs", "error", "message"),
    [pytest.param(*row, id=f"{row[0].name}-{row[3]}") for row in wrong()],
)
def test_refuses(op, kwargs, error, message):
    with pytest.raises(error) as raised:
        op.fn(bad_input(), **kwargs)
    text = str(raised.value)
    assert text.startswith(f"`{op.name}`: ")
    assert message in text
    assert "; got " in text


@pytest.mark.parametrize("name", sorted(OPS))
def test_refuses_what_is_no_array(name):
    op = OPS[name]
    arrays = dict.fromkeys(op.inputs, "text")
    kwargs = {"window": {"window_shape": (2, 2)}, "adaptive": {"output_shape": (2, 2)}}
    given = {**kwargs.get(op.kind, {}), **STATIC.get(name, {}), **arrays}
    given |= {"params": {}} if op.weights else {}
    given |= {"num_heads": 1} if "num_heads" in op.config else {}
    if name == "pool":
        given |= {"init": 0.0, "reduce_fn": jax.lax.add}
    if "output_shape" in inspect.signature(op.fn).parameters:
        given.setdefault("output_shape", (2, 2))
    with pytest.raises(TypeError, match="must be an array of numbers"):
        op.fn(**given)


def test_traced_window_is_refused():
    f = functools.partial(jaxpool.max_pool, bad_input())
    with pytest.raises(TypeError, match="`window_shape` must be made of ints"):
        jax.jit(lambda k: f((k, 2)))(2)
