"""Every op on two devices: sharded by hand, by the compiler, and as the types say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import (
    CASES,
    VALUE,
    Cells,
    Sampled,
    cells,
    compiled,
    exact,
    passes,
    refusal,
    typed,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

pytestmark = pytest.mark.usefixtures("width")


def layouts(case, x):
    """The axis that each layout splits in two."""
    axes = {"batch": 0, "height": x.ndim - 1 - len(case.sizes), "channels": x.ndim - 1}
    return {layout: a for layout, a in axes.items() if x.shape[a] % 2 == 0}


def split(x, mesh, axis):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * axis, "two")))


@cells
def test_sharding(name, dtype, wide, record):
    """Two devices: sharded by hand, by the compiler, and as the types say."""
    case, found = CASES[name], Cells(record, name, dtype, wide)
    if refusal(case, dtype):
        return
    (x,) = typed([exact(case, dtype, batch=(4,))], dtype)
    f = case.differentiable
    both = passes(case, dtype)(f)
    expected = compiled(both)(x)
    axes = layouts(case, x)
    for layout in {"batch", "height", "channels"} - set(axes):
        for kind in ("auto", "explicit"):
            found.cannot(f"{kind} {layout}", "an odd size has no halves")

    mesh = jax.make_mesh((2,), ("two",), axis_types=(AxisType.Auto,))
    given = {layout: split(x, mesh, a) for layout, a in axes.items()}
    results = compiled(lambda tree: jax.tree.map(both, tree))(given)
    for layout, result in results.items():
        found.hold_both(f"auto {layout}", result, expected)

    rows = PartitionSpec("two")
    mapped = jax.shard_map(both, mesh=mesh, in_specs=rows, out_specs=rows)
    if isinstance(case, Sampled):
        found.cannot("shard_map", "each shard draws as if it were all: give it its key")
    elif not found.refused("shard_map", mapped, x):
        found.hold_both("shard_map", compiled(mapped)(x), expected)

    # A donated array may be written over, where a result fits into it.
    kept = np.asarray(x)
    donated = compiled(lambda x: (f(x), x + x), donate_argnums=0)(jnp.array(x))
    found.hold("donated", donated[0], expected[0], VALUE)
    assert np.array_equal(donated[1], np.asarray(jnp.asarray(kept) + kept))

    mesh = jax.make_mesh((2,), ("two",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        for layout, axis in axes.items():
            explicit = split(x, mesh, axis)
            if found.refused(f"explicit {layout}", f, explicit):
                whole = jax.sharding.auto_axes(both, out_sharding=PartitionSpec())
                found.hold_both("auto_axes", compiled(whole)(explicit), expected)
            else:
                result = compiled(both)(explicit)
                found.hold_both(f"explicit {layout}", result, expected)
    found.judge()
