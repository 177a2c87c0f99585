"""Every operand of every op on its own: the same on all devices, or split over them.

Within `jax.shard_map`, whose types say what varies over which axes of the mesh: the
gradient of what is the same everywhere is a sum over devices. The reference calls the
op for one device after the other, without a mesh.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import typical
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_contract import representatives

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPLIT, SAME = PartitionSpec("d"), PartitionSpec()
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)


@pytest.fixture
def full(request):
    return request.config.getoption("full")


@pytest.fixture
def compiled(full):
    """`jax.jit`, in half of the time: by XLA's older emitters, where it has them."""
    older = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=older)()
    except jax.errors.JaxRuntimeError:
        return jax.jit
    return jax.jit if full else functools.partial(jax.jit, compiler_options=older)


class Operands:
    """An op as a function of all its arrays, and what these are on two devices."""

    def __init__(self, case, samples):
        self.op, self.fixed = case.op, dict(case.arguments)
        arrays = {"x": case.input()}
        for name, value in case.arguments.items():
            leaves = jax.tree.leaves(value)
            if leaves and all(isinstance(leaf, np.ndarray) for leaf in leaves):
                arrays[name] = self.fixed.pop(name)
        defaults = inspect.signature(self.op.fn).parameters
        for name in self.op.learned:
            start = self.fixed.get(name, defaults[name].default)
            if isinstance(start, int | float) and np.isfinite(start):
                self.fixed.pop(name, None)
                arrays[name] = np.float32(start)
        if samples:
            self.fixed = {**self.fixed, "deterministic": False}
            self.fixed.pop("samples", None)
            arrays["key"] = jax.random.key(0)
        arrays |= self._mask(arrays)
        others = jax.tree.map(another, arrays)
        self.devices = jax.tree.map(jnp.asarray, [arrays, others])

    def _mask(self, arrays):
        """A mask with the shape of `x`, or without channels where that is refused."""
        for shape in (arrays["x"].shape, arrays["x"].shape[:-1]):
            if self.op.takes_where and "where" not in self.fixed:
                mask = {"where": np.random.default_rng(0).random(shape) < 0.8}
                try:
                    jax.eval_shape(self.loss, {**arrays, **mask})
                except ValueError:
                    continue
                return mask
        return {}

    def loss(self, arrays):
        """A number with a second derivative, of all finite results."""
        total = jnp.zeros(())
        x, others = arrays["x"], {n: a for n, a in arrays.items() if n != "x"}
        for y in jax.tree.leaves(self.op.fn(x, **self.fixed, **others)):
            if jnp.issubdtype(y.dtype, jnp.floating):
                y = jnp.where(jnp.isfinite(y), y, 0)
                total += jnp.sum(direction(y) * y + y * y / 2)
        return total


def another(a):
    """Other values of the same kind; those that point somewhere stay."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(a, 1)
    if a.dtype == bool:
        return np.roll(a, 1)
    if np.issubdtype(a.dtype, np.integer):
        return a
    return np.flip(a) if a.ndim else np.float32(0.75) * a


def direction(a):
    """Numbers of the shape of `a`."""
    return jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape)


def floating(arrays):
    """The operands that have a derivative, and the others."""
    some = {
        n: a
        for n, a in arrays.items()
        if all(jnp.issubdtype(b.dtype, jnp.floating) for b in jax.tree.leaves(a))
    }
    return some, {n: a for n, a in arrays.items() if n not in some}


def gradient(loss, arrays):
    some, others = floating(arrays)
    return jax.grad(lambda some: loss({**some, **others}))(some)


def slope(loss, arrays, tangents):
    """The derivative along tangents of the operands that have one."""
    some, others = floating(arrays)
    return jax.jvp(lambda some: loss({**some, **others}), (some,), (tangents,))[1]


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def add(trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


class Mapped:
    """The loss on each device, where the operands named in `split` differ."""

    def __init__(self, given, split):
        here, there = given.devices
        self.given, self.split = given, split
        self.devices = [here, {n: there[n] if n in split else here[n] for n in here}]
        self.arrays = {
            n: stack([here[n], there[n]]) if n in split else here[n] for n in here
        }
        mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
        specs = {n: SPLIT if n in split else SAME for n in here}
        self.map = lambda f, *more: jax.shard_map(
            f, mesh=mesh, in_specs=(specs, *more), out_specs=SPLIT
        )

    def own(self, arrays):
        """What a device has."""
        first = functools.partial(jax.tree.map, lambda leaf: leaf[0])
        return {n: first(a) if n in self.split else a for n, a in arrays.items()}

    def total(self, arrays):
        """The sum of the losses of both devices."""
        loss = lambda arrays: self.given.loss(self.own(arrays))[None]  # noqa: E731
        return self.map(loss)(arrays).sum()

    def slopes(self, arrays, tangents, spec):
        """The derivative of each loss along tangents, which may be split too."""

        def f(arrays, tangents):
            if spec == SPLIT:
                tangents = jax.tree.map(lambda leaf: leaf[0], tangents)
            return slope(self.given.loss, self.own(arrays), tangents)[None]

        return self.map(f, spec)(arrays, tangents)

    def gathered(self, each):
        """A derivative in the operands of the total, of those of each loss."""
        return {
            n: (stack if n in self.split else add)([e[n] for e in each])
            for n in each[0]
        }


def choices(names, full):
    """Sets of operands to split, such that any one is split while any other is not.

    Those whose number has a bit that is 1, or 0, for each of the bits in which numbers
    differ; in `full`, each operand alone, and all but each.
    """
    names = list(names)
    bits = range(max(1, (len(names) - 1).bit_length()))
    some = [frozenset(n for i, n in enumerate(names) if i >> bit & 1) for bit in bits]
    if full:
        some = [frozenset([name]) for name in names]
    pairs = ((one, frozenset(names) - one) for one in some)
    return list(dict.fromkeys(one for pair in pairs for one in pair))


@pytest.mark.parametrize("count", range(1, 9))
def test_choices(count):
    for full in (False, True):
        sets = choices(range(count), full)
        for one, other in itertools.permutations(range(count), 2):
            assert any(one in split and other not in split for split in sets)
        # Both of the first two, where tangents are asked too.
        assert sets[0] | sets[1] == set(range(count))
        assert not sets[0] & sets[1]


def every_op(always):
    """Ops with real derivatives, those that sample in training too."""
    rows = []
    for case in typical():
        for samples in [False, True] if case.op.takes_key else [False]:
            if not case.op.integer:
                name = case.op.name + ", sampling" * samples
                marks = [] if always(case.op.name) else [pytest.mark.full]
                rows.append(pytest.param(case, samples, id=name, marks=marks))
    return pytest.mark.parametrize(("case", "samples"), rows)


@every_op(lambda name: True)
def test_first_derivatives(case, samples, full, compiled):
    given = Operands(case, samples)
    reference = compiled(functools.partial(gradient, given.loss))
    along = compiled(functools.partial(slope, given.loss))
    same = jax.tree.map(direction, floating(given.devices[0])[0])
    other = jax.tree.map(jnp.negative, same)
    for number, split in enumerate(choices(given.devices[0], full)):
        mapped = Mapped(given, split)
        here, there = mapped.devices
        expected = [mapped.gathered([reference(here), reference(there)])]
        both = full or number < 2  # each operand split and not: with either tangent
        if both:
            expected.append(stack([along(here, same), along(there, same)]))
            expected.append(stack([along(here, same), along(there, other)]))

        @compiled
        def results(arrays, same, other, mapped=mapped, both=both):
            found = [gradient(mapped.total, arrays)]
            if both:
                found.append(mapped.slopes(arrays, same, SAME))
                found.append(mapped.slopes(arrays, stack([same, other]), SPLIT))
            return found

        jax.tree.map(close, results(mapped.arrays, same, other), expected)


@every_op(representatives().__contains__)
def test_second_derivatives(case, samples, full, compiled):
    """The derivative of the gradient of the total, and of that within the map."""
    given = Operands(case, samples)
    same = jax.tree.map(direction, floating(given.devices[0])[0])

    def second(loss, arrays, tangents):
        some, others = floating(arrays)
        f = lambda some: gradient(loss, {**some, **others})  # noqa: E731
        return jax.jvp(f, (some,), (tangents,))[1]

    reference = compiled(functools.partial(second, given.loss))
    for split in choices(given.devices[0], full):
        mapped = Mapped(given, split)
        tangents = mapped.gathered([same, same])
        tangents |= {n: t for n, t in same.items() if n not in split}
        actual = compiled(functools.partial(second, mapped.total))(
            mapped.arrays, tangents
        )
        expected = [reference(device, same) for device in mapped.devices]
        jax.tree.map(close, actual, mapped.gathered(expected))


@every_op(representatives().__contains__)
def test_explicit_meshes(case, samples, compiled):
    """Each operand alone is split along its batch axis, outside of any map."""
    given = Operands(case, samples)
    (arrays, _), rank = given.devices, given.devices[0]["x"].ndim
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Explicit,))

    def results(arrays):
        return given.loss(arrays), gradient(given.loss, arrays)

    def refused(arrays):
        """Whether the op reads that axis as one, and says so."""
        try:
            jax.eval_shape(results, arrays)
        except ValueError as error:
            if "must not be sharded explicitly" not in str(error):
                raise
            return True
        return False

    expected = compiled(results)(arrays)
    batched = [n for n, a in arrays.items() if getattr(a, "ndim", 0) == rank]
    with jax.set_mesh(mesh):
        for name in (n for n in batched if arrays[n].shape[0] == 2):
            specs = {n: SPLIT if n == name else SAME for n in arrays}
            placed = {
                n: jax.device_put(a, NamedSharding(mesh, specs[n]))
                for n, a in arrays.items()
            }
            if not refused(placed):
                jax.tree.map(close, compiled(results)(placed), expected)


@pytest.mark.parametrize("case", [c for c in typical() if c.op.name == "soft_pool"])
def test_out_of_jit(case):
    mapped = Mapped(Operands(case, False), {"x", "where"})
    actual = gradient(mapped.total, mapped.arrays)
    expected = [gradient(mapped.given.loss, device) for device in mapped.devices]
    jax.tree.map(close, actual, mapped.gathered(expected))
