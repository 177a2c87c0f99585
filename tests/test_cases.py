"""Every call of docs/cases.md gives the value that is right."""

import ast
import itertools
import re

import cases
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool
import jaxpool.compat.torch

pytestmark = pytest.mark.usefixtures("quick_compilation")

OURS = {"jax": jax, "jnp": jnp, "jp": jaxpool, "compat": jaxpool.compat.torch}
NUMBERS = {"np": np, "nan": np.nan, "inf": np.inf}
ALL = list(itertools.chain(*cases.CASES.values()))


def evaluated(code, names):
    """The value of the last expression."""
    *steps, last = ast.parse(code).body
    assert isinstance(last, ast.Expr), "the last statement must be an expression"
    names = dict(names)
    exec(compile(ast.Module(steps, []), "<case>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<case>", "eval"), names)


def same(actual, right):
    if isinstance(right, tuple):
        assert len(actual) == len(right)
        for a, r in zip(actual, right, strict=True):
            same(a, r)
    elif isinstance(right, str):
        assert actual == right
    else:
        actual, right = np.asarray(actual), np.asarray(right)
        assert actual.shape == right.shape
        wide = np.result_type(actual.dtype.type(0), np.float64)
        # Sums of at most 81 numbers of float32, or one that is rounded to bfloat16.
        np.testing.assert_allclose(actual.astype(wide), right, rtol=1e-6)


@pytest.mark.parametrize("case", ALL, ids=lambda c: f"{c.source}: {c.report}")
def test_case(case):
    if case.needs:
        pytest.importorskip(case.needs, exc_type=ImportError)
    right = evaluated(case.right, NUMBERS)
    if isinstance(right, type) and issubclass(right, Exception):
        with pytest.raises(right, match=r"^`\w+`: `\w+` "):
            evaluated(case.call, OURS | NUMBERS)
    else:
        same(evaluated(case.call, OURS | NUMBERS), right)


def test_every_case_says_all_there_is_to_say():
    assert len({(case.report, case.call) for case in ALL}) == len(ALL)
    for case in ALL:
        assert all((case.source, case.report, case.call, case.right)), case
        assert "\n" not in case.report + case.call + case.right
        assert cases.linked(case.source)


def test_every_repository_is_referred_to():
    said = " ".join(case.source for case in ALL)
    assert set(re.findall(r"([\w-]+)#\d", said)) == set(cases.REPOSITORIES)


def test_the_page_is_made_of_the_cases():
    assert cases.PAGE.read_text() == cases.page()
