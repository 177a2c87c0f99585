"""What every op gives under every transform, beside the oracle in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms
from cells import (
    CASES,
    INTEGERS,
    USERS,
    VALUE,
    Cells,
    cells,
    compiled,
    error,
    points,
    refusal,
    typed,
)
from contract import WIDE

pytestmark = pytest.mark.usefixtures("width")


@cells
def test_values(name, dtype, wide, record):
    case, found = CASES[name], Cells(record, name, dtype, wide)
    wanted, f = refusal(case, dtype), case.function()
    x, z = points(case, dtype)
    a, b = typed((x, z), dtype)
    if wanted:
        with pytest.raises(TypeError, match=f"`{case.op.name}`: .*{wanted}"):
            f(a)
        for transform in transforms.VALUES:
            found.cannot(transform, wanted)
        return

    of_x, of_z = (jax.tree.leaves(case.expected(np.float64(v))) for v in (x, z))
    if case.op.family == "monoid" and dtype in INTEGERS:  # products wrap around
        of_x, of_z = (
            [y.astype(np.int64).astype(dtype) for y in ys] for ys in (of_x, of_z)
        )
    both = [np.stack(ys) for ys in zip(of_x, of_z, strict=True)]
    expected = {"y": of_x, "both y": both, "every y": both * (a.ndim + 1)}
    table = transforms.VALUES
    results = compiled(
        lambda x, z: {n: t(f, x, z) for n, (_, t) in table.items()},
        as_users_do=(dtype, wide) in USERS,
    )(a, b)
    first = jax.tree.leaves(results["jit"])[0]
    assert first.dtype == result_dtype(case, a)
    for transform, (what, _) in table.items():
        found.hold(transform, results[transform], expected[what], VALUE)
    found.judge()


def result_dtype(case, x):
    """Floats keep their dtype; sums and means of integers widen as jnp's do."""
    wide = {"sum": jnp.sum, "mean": jnp.mean}.get(WIDE.get(case.op.name))
    return wide(x).dtype if wide else x.dtype


@pytest.mark.parametrize("wide", [False])
@pytest.mark.parametrize(
    ("dtype", "actual", "expected", "far"),
    [
        ("float32", [1.0, np.nan], [1.0, 2.0], np.inf),
        ("float32", [1.0, 2.0], [1.0, np.nan], np.inf),
        ("float16", [1.0, np.inf], [1.0, 1e6], 0.0),
        ("float8_e4m3fn", [1.0, np.nan], [1.0, 1e6], 0.0),
        ("float16", [1.0, np.nan], [1.0, 1e6], np.inf),
        ("float32", [1.0, 2.0 + 2**-21], [1.0, 2.0], 2.0),
        ("int32", [1, 3], [1, 2], np.inf),
    ],
)
def test_nothing_hides_from_the_comparison(dtype, actual, expected, far, wide):
    zero = [jnp.zeros(2, dtype)]
    pair = [jnp.asarray(actual).astype(dtype)], [np.asarray(expected)]
    assert error(zero + pair[0], zero + pair[1], 1.0) == far
    assert error(pair[0] + zero, pair[1] + zero, 1.0) == far
