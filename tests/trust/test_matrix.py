"""Every op under every transform, with every dtype, with and without 64-bit types.

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
from contract import EXCEPT, WIDE, Case, typical
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_contract import representatives
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


SOME = representatives()
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
every_op = pytest.mark.parametrize(
    CELL, rows(lambda op, *_: op in SOME, dtypes=["float64"])
)


@pytest.fixture(autouse=True)
def width(request, quick_compilation):
    """64-bit types as the cell wants them."""
    wide = request.node.callspec.params["wide"]
    jax.config.update("jax_enable_x64", wide)
    yield
    jax.config.update("jax_enable_x64", False)


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
        worst = error(actual, expected, scale)
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
    """
    actual, expected = (jax.tree.leaves(tree) for tree in (actual, expected))
    assert len(actual) == len(expected)
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == np.shape(e)
        e = np.asarray(e, np.float64)
        distance = np.abs(np.asarray(a, np.float64) - e).max(initial=0)
        if jnp.issubdtype(a.dtype, jnp.floating):
            unit = float(jnp.finfo(a.dtype).eps) * max(np.abs(e).max(initial=0), scale)
            worst = max(worst, float(distance / unit))
        else:
            worst = max(worst, 0.0 if distance == 0 else np.inf)
    return worst


# Epsilons, of results of which the largest is of the order of 1 to 100. A value in half
# precision is rounded once, to half an epsilon of itself; float32 and float64 add up
# tens of terms. A derivative goes through several such steps.
VALUE, FIRST, SECOND = 8, 16, 32
BOUNDS = {"hessian": SECOND, "hvp": SECOND, "third order": SECOND}


def points(case, dtype, **sizes):
    """Two inputs, exact in the dtype."""
    return [exact(case, dtype, seed=seed, **sizes) for seed in (0, 1)]


def typed(arrays, dtype):
    return [jnp.asarray(a).astype(dtype) for a in arrays]


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
    results = jax.jit(lambda x, z: {n: t(f, x, z) for n, (_, t) in table.items()})(a, b)
    first = jax.tree.leaves(results["jit"])[0]
    assert first.dtype == result_dtype(case, a)
    for transform, (what, _) in table.items():
        found.hold(transform, results[transform], expected[what], VALUE)
    found.judge()


def result_dtype(case, x):
    """Floats keep their dtype; sums and means of integers widen as jnp's do."""
    wide = {"sum": jnp.sum, "mean": jnp.mean}.get(WIDE.get(case.op.name))
    return wide(x).dtype if wide else x.dtype


@functools.lru_cache(maxsize=4)
def reference(name, narrow):
    """Derivatives at a point that bfloat16 or a float8 holds, for all wider types."""
    case = CASES[name]
    return transforms.Reference(case.differentiable, *points(case, narrow, **ONE))


ONE = {"batch": (1,), "channels": 1}


@cells
def test_derivatives(name, dtype, wide, record):
    case, found = CASES[name], Cells(record, name, dtype, wide)
    table = dict(transforms.DERIVATIVES)
    if case.op.family in ("extremum", "average"):
        table |= transforms.THIRD
    f = case.differentiable
    if dtype in INTEGERS:
        x = jnp.asarray(exact(case, dtype)).astype(dtype)
        with pytest.raises(TypeError, match="requires real- or complex-valued inputs"):
            jax.grad(lambda x: f(x).sum())(x)
        for transform in table:
            found.cannot(transform, "integers have no derivative")
        return
    if case.op.integer:
        for transform in table:
            found.cannot(transform, refusal(case, dtype))
        return
    expected = reference(name, dtype if "float8" in dtype else "bfloat16")
    x, v = typed((expected.x, expected.z), dtype)
    results = jax.jit(lambda x, v: {n: t(f, x, v) for n, (_, t) in table.items()})(x, v)
    assert results["grad"].dtype == dtype
    for transform, (what, _) in table.items():
        bound = BOUNDS.get(transform, FIRST)
        scale = max(1.0, expected.moves.get(what, 0.0))
        largest = max(1.0, np.abs(expected[what]).max())
        assert scale < 1e3 * largest, f"{what} jumps here: nothing would be asked"
        found.hold(transform, results[transform], expected[what], bound, scale)
    found.judge()


@every_op
def test_derivatives_are_those_of_the_values(name, dtype, wide):
    """By central differences of what is one order lower, for every element."""
    if CASES[name].op.integer:
        return
    expected = reference(name, "bfloat16")
    for what, slopes in expected.differences().items():
        scale = max(np.abs(slopes).max(), 1)
        assert np.abs(slopes - expected[what]).max() <= 1e-8 * scale, what


def gradient_of(case):
    """The gradient of the loss, where the op has one."""
    if case.op.integer:
        return None
    return jax.grad(transforms.loss_of(case.differentiable))


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
    f, g = case.differentiable, None if dtype in INTEGERS else gradient_of(case)

    def both(x):
        return [f(x)] if g is None else [f(x), g(x)]

    expected = jax.jit(both)(x)
    axes = layouts(case, x)
    for layout in {"batch", "height", "channels"} - set(axes):
        for kind in ("auto", "explicit"):
            found.cannot(f"{kind} {layout}", "an odd size has no halves")

    mesh = jax.make_mesh((2,), ("two",), axis_types=(AxisType.Auto,))
    given = {layout: split(x, mesh, a) for layout, a in axes.items()}
    results = jax.jit(lambda tree: jax.tree.map(both, tree))(given)
    for layout, result in results.items():
        found.hold(f"auto {layout}", result, expected, VALUE)

    rows = PartitionSpec("two")
    mapped = jax.shard_map(both, mesh=mesh, in_specs=rows, out_specs=rows)
    if isinstance(case, Sampled):
        found.cannot("shard_map", "each shard draws as if it were all: give it its key")
    elif not found.refused("shard_map", mapped, x):
        found.hold("shard_map", jax.jit(mapped)(x), expected, VALUE)

    # A donated array may be written over, where a result fits into it.
    kept = np.asarray(x)
    donated = jax.jit(lambda x: (f(x), x + x), donate_argnums=0)(jnp.array(x))
    found.hold("donated", donated[0], expected[0], VALUE)
    assert np.array_equal(donated[1], np.asarray(jnp.asarray(kept) + kept))

    mesh = jax.make_mesh((2,), ("two",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        for layout, axis in axes.items():
            explicit = split(x, mesh, axis)
            if found.refused(f"explicit {layout}", f, explicit):
                whole = jax.sharding.auto_axes(both, out_sharding=PartitionSpec())
                found.hold("auto_axes", jax.jit(whole)(explicit), expected, VALUE)
            else:
                result = jax.jit(both)(explicit)
                found.hold(f"explicit {layout}", result, expected, VALUE)
    found.judge()


@cells
def test_export(name, dtype, wide, record):
    """One artefact for all platforms, with its derivative, read again and called."""
    case, found = CASES[name], Cells(record, name, dtype, wide)
    if refusal(case, dtype):
        return
    (x,) = typed([exact(case, dtype)], dtype)
    f = case.differentiable
    smooth = dtype not in INTEGERS and not case.op.integer
    symbols = {"export batch": 1, "export sizes": 1 + len(case.sizes)}
    for transform, count in symbols.items():
        sizes = [f"n{i}" if i < count else str(n) for i, n in enumerate(x.shape)]
        least = [f"n{i} >= {x.shape[i]}" for i in range(1, count)]
        shape = jax.export.symbolic_shape(",".join(sizes), constraints=least)
        spec = jax.ShapeDtypeStruct(shape, x.dtype)
        if found.refused(transform, f, spec):
            continue
        program = jax.export.export(jax.jit(f), platforms=PLATFORMS)(spec)
        again = jax.export.deserialize(program.serialize(vjp_order=int(smooth)))
        assert set(again.platforms) == set(PLATFORMS)
        found.hold(transform, again.call(x), jax.jit(f)(x), VALUE)
        if smooth:
            loss = transforms.loss_of(again.call)
            wanted = gradient_of(case)(x)
            found.hold(f"{transform}, grad", jax.grad(loss)(x), wanted, FIRST)
    found.judge()


PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
