"""Every op goes through the same questions; `contract.py` says how to call it."""

import functools
import inspect
import itertools
import math

import jax
import numpy as np
import oracle
import pytest
from contract import (
    CASES,
    COUNTED,
    EXCEPT,
    EXPECTATION,
    STATIC,
    WIDE,
    bad_input,
    parameters,
    typical,
    wrong,
)

import jaxpool
from jaxpool._core.op import OPS
from jaxpool.testing import questions as ask

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

# Families that mask by themselves, and not by the windows that they are made of.
MASKS_OF_ITS_OWN = ("aggregation", "masked", "sequence", "segment", "attention")


# Families that are put together of others, and of what JAX has.
COMPOSED = ("aggregation", "blend", "blur", "frequency", "importance", "masked")
COMPOSED += ("polyphase", "probe", "pyramid", "sequence")


def representatives():
    """The first op of each family that brings derivatives of its own.

    Slow questions are asked of these, and of all others with `--full`.
    """
    first = {op.family: op.name for op in reversed(OPS.values())}
    return {name for family, name in first.items() if family not in COMPOSED}


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


def one_of_each_family(names):
    """Names of ops, of which all but the first of a family are left for `--full`."""
    first = {OPS[name].family: name for name in reversed(names)}
    return [
        pytest.param(name, marks=[] if name in first.values() else pytest.mark.full)
        for name in names
    ]


TYPICAL = typical()
every_case = asked(CASES)
every_gradient = asked(CASES, lambda case, _: any(case is c for c in TYPICAL), ())
every_op = asked(TYPICAL)
slowly = asked(TYPICAL, lambda case, _: False)


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
    ask.equals_the_oracle(case)


@every_op
def test_is_what_its_row_says(case):
    ask.is_what_its_row_says(case)


@every_op
def test_any_layout(case):
    ask.any_layout(case)


@asked(TYPICAL, lambda *_: False, batch=[(), (0,), (2, 1, 3)])
def test_any_number_of_batch_axes(case, batch):
    ask.any_number_of_batch_axes(case, batch)


@every_op
def test_no_channels(case):
    ask.no_channels(case)


@asked(TYPICAL, lambda case, _: case.op.kind == "other")
def test_jit_and_vmap_change_nothing(case):
    ask.jit_and_vmap_change_nothing(case)


@slowly
def test_second_call_compiles_nothing(case):
    channels = 5 + sorted(OPS).index(case.op.name)  # a shape that no other op has met
    ask.second_call_compiles_nothing(case, channels)


@every_gradient
def test_gradient_of_every_case(case, x64):
    ask.gradient_of_every_case(case)


@asked(TYPICAL, lambda _, dtype: dtype == "float16", dtype=["bfloat16", "float16"])
def test_half_precision(case, dtype):
    ask.half_precision(case, dtype)


@asked(
    TYPICAL,
    lambda _, dtype: dtype == "int8",
    dtype=["int8", "uint8", "int32", "bool"],
)
def test_integers(case, dtype):
    ask.integers(case, dtype, WIDE.get(case.op.name))


def test_every_argument_of_integers_is_counted():
    """Whatever refuses another dtype, of all arrays that arrive with a call."""
    found = {("max_unpool", "indices")}  # no case of its own
    for case in TYPICAL:
        for name in case.op.inputs[1:]:
            try:
                case.function(**{name: np.True_})(case.input())
            except TypeError as error:
                if f"`{name}` must be int" in str(error):
                    found.add((case.op.name, name))
            except ValueError:
                continue
    assert found == {(op, name) for op, (name, *_) in COUNTED.items()}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", one_of_each_family(COUNTED))
def test_integer_widths(name, bits, request):
    if bits == 64:
        request.getfixturevalue("x64")
    answer = oracle.ORACLES.get(name, oracle.unpool)
    ask.integer_widths(*COUNTED[name], OPS[name].fn, answer)


@every_op
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(case, special):
    ask.nan_and_infinity(case, special)


@every_op
def test_ties(case):
    ask.ties(case)


@asked([case for case in TYPICAL if not case.op.integer], lambda *_: False)
def test_signed_zeros(case):
    ask.signed_zeros(case)


MASKED = [case for case in TYPICAL if case.op.takes_where]
every_masked_op = asked(MASKED, lambda case, _: case.op.family in MASKS_OF_ITS_OWN)


@every_masked_op
def test_mask(case):
    ask.mask(case)


def every_parameter(learned=False, later=()):
    """Of those that a family has several times, the first; all others with `--full`."""
    rows = [
        (c, name) for c, name in parameters() if not learned or name in c.op.learned
    ]
    first = {(case.op.family, name): case for case, name in reversed(rows)}
    params = []
    for case, name in rows:
        late = first[case.op.family, name] is not case or case.op.family in later
        marks = [pytest.mark.full] if late else []
        params.append(pytest.param(case, name, id=f"{case}-{name}", marks=marks))
    return pytest.mark.parametrize(("case", "name"), params)


@every_parameter()
def test_parameter(case, name):
    ask.parameter(case, name)
    if case.op.kind != "other":
        ask.parameter(case, name, first=True)


@every_parameter(learned=True, later=COMPOSED)
def test_parameter_gradient(case, name, x64):
    ask.parameter_gradient(case, name)


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
