"""Every op as one artefact for all platforms, with its derivative."""

import jax
import pytest
from cells import (
    CASES,
    FIRST,
    VALUE,
    Cells,
    cells,
    compiled,
    exact,
    passes,
    refusal,
    typed,
)

pytestmark = pytest.mark.usefixtures("width")

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@cells
def test_export(name, dtype, wide, record):
    """One artefact for all platforms, with its derivative, read again and called."""
    case, found = CASES[name], Cells(record, name, dtype, wide)
    if refusal(case, dtype):
        return
    (x,) = typed([exact(case, dtype)], dtype)
    f, both = case.differentiable, passes(case, dtype)
    expected = compiled(both(f))(x)
    symbols = {"export batch": 1, "export sizes": 1 + len(case.sizes)}
    for transform, count in symbols.items():
        sizes = [f"n{i}" if i < count else str(n) for i, n in enumerate(x.shape)]
        least = [f"n{i} >= {x.shape[i]}" for i in range(1, count)]
        shape = jax.export.symbolic_shape(",".join(sizes), constraints=least)
        spec = jax.ShapeDtypeStruct(shape, x.dtype)
        if found.refused(transform, f, spec):
            continue
        program = jax.export.export(jax.jit(f), platforms=PLATFORMS)(spec)
        again = jax.export.deserialize(program.serialize(len(expected) - 1))
        assert set(again.platforms) == set(PLATFORMS)
        value, *gradient = compiled(both(again.call))(x)
        found.hold(transform, value, expected[0], VALUE)
        for g in gradient:
            found.hold(f"{transform}, grad", g, expected[1], FIRST)
    found.judge()
