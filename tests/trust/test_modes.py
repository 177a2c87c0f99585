"""Every op with JAX at its strictest, and with Python's assertions taken away.

Strict promotion of dtypes and ranks, and the refusal of raw keys, hold in all tests:
see `conftest.py` above.
"""

import contextlib
import gc
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import typical
from test_contract import representatives
from test_keys import sampled

from jaxpool.testing.questions import F32, agree

MODES = {
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "checking_leaks": jax.checking_leaks,
    "debug_key_reuse": lambda: jax.debug_key_reuse(True),
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
    "jax_enable_checks": lambda: option("jax_enable_checks"),
}
ALWAYS = ("numpy_dtype_promotion", "numpy_rank_promotion", "legacy_prng_key")


@contextlib.contextmanager
def option(name):
    jax.config.update(name, True)
    yield
    jax.config.update(name, False)


@pytest.fixture
def old_objects_left_alone():
    """JAX looks for leaks among all objects that Python's collector knows."""
    gc.freeze()
    yield
    gc.unfreeze()


def marked(cases):
    some = representatives()
    late = pytest.mark.full
    return [
        pytest.param(c, id=c.op.name, marks=[] if c.op.name in some else [late])
        for c in cases
    ]


@pytest.mark.parametrize("case", marked(typical()))
@pytest.mark.usefixtures("old_objects_left_alone", "quick_compilation")
def test_strict_modes(case, record):
    f, x = case.function(), jnp.asarray(case.input())
    if case.op.takes_key:  # as in training
        f = lambda x: sampled(case)(x, jax.random.key(0))  # noqa: E731
    functions = [f]
    if not case.op.integer:
        functions += [jax.grad(lambda x: jax.tree.leaves(f(x))[0].sum())]
    expected = [jax.jit(g)(x) for g in functions]
    with contextlib.ExitStack() as modes:
        for enter in MODES.values():
            modes.enter_context(enter())
        results = [jax.jit(g)(x) for g in functions]
    agree(results, expected, rtol=0, atol=0)
    with jax.disable_jit():
        agree([g(x) for g in functions], expected, **F32)
    for mode in (*MODES, *ALWAYS, "disable_jit"):
        record(op=case.op.name, mode=mode)


@pytest.mark.parametrize(
    ("mode", "f"),
    [
        ("debug_nans", lambda x: x * jnp.nan),
        ("debug_infs", lambda x: x / 0),
        ("transfer_guard", lambda x: x + np.ones(1, np.float32)),
    ],
)
def test_and_this_test_would_see_it(mode, f):
    x = jnp.ones(1)
    with MODES[mode](), pytest.raises(Exception, match=r"nan|inf|Disallowed"):
        jax.block_until_ready(f(x))


WITHOUT_ASSERTIONS = """
from contract import bad_input, typical, wrong
import conftest, numpy as np
assert False, "assertions are on"
some = {names}
for op, kwargs, error, message in wrong():
    try:
        op.fn(bad_input(), **kwargs)
    except error as refused:
        if message in str(refused):
            continue
    raise SystemExit(f"{{op.name}} did not refuse {{kwargs}}")
for case in typical():
    if not some or case.op.name in some:
        np.testing.assert_allclose(
            *(np.asarray(y[0] if type(y) in (tuple, list) else y, np.float64)
              for y in (case.function()(case.input()), case.expected(case.input()))),
            rtol=1e-5, atol=1e-5)
print("all as ever")
"""


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.full)])
def test_python_without_assertions(whole, record):
    """`python -O` takes `assert` away: the library must not rest on it."""
    names = {"max_pool", "avg_pool"} if not whole else set()
    done = subprocess.run(
        [sys.executable, "-O", "-c", WITHOUT_ASSERTIONS.format(names=names)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["all as ever"], done.stderr
    record(mode="python -O", ops=len(names) or len(typical()))
