"""What the contract table does not ask of pools that read whole tokens."""

import jax
import numpy as np
import pytest
from contract import CASES, typical

pytestmark = pytest.mark.usefixtures("quick_compilation")

FAMILIES = ("attention", "aggregation", "probe")
every_case = pytest.mark.parametrize(
    "case", [c for c in CASES if c.op.family in FAMILIES and c.op.weights], ids=str
)
every_pool = pytest.mark.parametrize(
    "case",
    [c for c in typical() if c.op.family in FAMILIES and c.op.weights],
    ids=lambda case: case.op.name,
)
CLOSE = dict(rtol=5e-6, atol=5e-6)


@every_case
def test_masks_hide_whole_tokens(case):
    x = case.input(batch=(3,))
    where = np.random.default_rng(1).random(x.shape[:-1]) > 0.4
    where[0] = False
    where.reshape(3, -1)[1:, :2] = [True, True], [False, True]
    secret = np.where(where[..., None], x, np.nan)

    @jax.jit
    def all_of_it(x, params):
        y, vjp = jax.vjp(
            lambda *a: case.function(where=where, params=a[1])(a[0]), x, params
        )
        return y, vjp(y)

    y, (of_x, of_params) = all_of_it(secret, case.arguments["params"])
    np.testing.assert_allclose(y, case.expected(x, where), **CLOSE)
    assert not y[0].any()
    assert not np.where(where[..., None], 0, of_x).any()
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((of_x, of_params)))


@every_pool
def test_masks_broadcast(case):
    x = case.input(batch=(3,))
    some = np.random.default_rng(1).random(x.shape[1:-1]) > 0.4
    some.flat[0] = True
    for where in (some, np.True_):
        full = np.broadcast_to(where, x.shape[:-1])
        y = jax.jit(case.function(where=where))(x)
        np.testing.assert_allclose(y, case.expected(x, full), **CLOSE)


@every_pool
def test_a_bad_token_spoils_its_own_sample_alone(case):
    x = case.input()
    f = jax.jit(case.function())
    expected = f(x)
    x[0, 0, 1] = np.nan
    y = f(x)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], expected[1])


@every_pool
def test_integers_are_refused(case):
    with pytest.raises(TypeError, match="`x` must be floating; got dtype"):
        case.function()(case.input().astype(np.int32))
