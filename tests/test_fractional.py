"""What is drawn: sequences, their distribution, keys, and who shares them."""

import functools
import itertools
from collections import Counter
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from families.fractional import ORACLES, boundaries
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxpool
from jaxpool._ops.fractional import _divided

pytestmark = pytest.mark.usefixtures("quick_compilation")

equal = np.testing.assert_array_equal
POOLS = [jaxpool.fractional_max_pool, jaxpool.fractional_avg_pool]


def sequences(size, out, u, **more):
    """(start, end), both `[len(u), out]`, of one axis: each row of its own."""
    samples = np.asarray(u, np.float32)[:, None, None]
    spans = jaxpool.fractional_boundaries(
        (len(u), size, 1), (out,), samples=samples, **more
    )
    ((start, end),) = spans
    return np.asarray(start)[:, 0], np.asarray(end)[:, 0]


def values_of_w(size, out):
    """How many pseudo-random sequences there are, and samples amid each one's share."""
    rest = size % out
    bound = min(2 * out - rest, out + rest)
    return bound, (np.arange(bound) + 0.5) / bound


@pytest.mark.parametrize(
    ("size", "out"),
    [(10, 7), (25, 18), (13, 9), (23, 10), (12, 4), (7, 7), (9, 1), (31, 2), (96, 53)],
)
def test_every_pseudo_random_sequence_is_one_of_tensorflow(size, out):
    bound, u = values_of_w(size, out)
    start, end = sequences(size, out, u)
    expected = np.array([boundaries(size, out, sample) for sample in u])
    equal(start, expected[:, :-1])
    equal(end, expected[:, 1:])
    assert set(np.unique(end - start)) <= {size // out, size // out + 1}
    # The last float below 1, and 0, are the last and the first.
    edges = sequences(size, out, [0, np.nextafter(np.float32(1), np.float32(0))])
    equal(edges, (start[[0, bound - 1]], end[[0, bound - 1]]))
    start, end = sequences(size, out, u, overlapping=True)
    equal(start, expected[:, :-1])
    equal(end, np.minimum(expected[:, 1:] + 1, size))


def test_sequences_of_the_paper_and_of_pytorch():
    """From `golden.json`: Graham's boundaries, and those of PyTorch for u."""
    start, _ = sequences(10, 7, values_of_w(10, 7)[1])
    for expected in (
        [0, 2, 3, 5, 6, 8, 9],  # u = 0.1, with the ends of the paper
        [0, 1, 2, 4, 5, 7, 8],
        [0, 1, 3, 4, 6, 7, 9],
        [0, 1, 3, 4, 6, 7, 8],
    ):
        assert expected in start.tolist()
    start, end = sequences(10, 7, [0, 0.3, 0.9], window_shape=2)
    equal(start, [[0, 1, 2, 4, 5, 6, 8], [0, 1, 3, 4, 5, 7, 8], [0, 1, 2, 4, 5, 6, 8]])
    equal(end, start + 2)
    start, _ = sequences(13, 6, [0, 0.3, 0.9], window_shape=3)
    equal(start, [[0, 2, 4, 6, 8, 10]] * 3)


def test_values_by_hand():
    """From `golden.json`: rows [0, 1, 3, 5], columns [0, 2, 3, 5]."""
    i, j = np.indices((5, 5))
    x = (np.arange(25.0).reshape(5, 5) * np.where((i + j) % 2, -1, 1))[..., None]
    pool = functools.partial(
        jaxpool.fractional_max_pool, x, (3, 3), samples=(0.125, 0.375)
    )
    equal(pool()[..., 0], [[0, 2, 4], [10, 12, 14], [20, 22, 24]])
    overlapping = [[6, 8, 8], [16, 18, 18], [22, 22, 24]]
    equal(pool(overlapping=True)[..., 0], overlapping)


def test_long_axes_do_not_overflow():
    size, out = 200_003, 150_001
    ((start, end),) = jaxpool.fractional_boundaries((size, 1), (out,), samples=(0.5,))
    w = min(2 * out - size % out, out + size % out) // 2
    expected = (np.arange(1, out, dtype=np.int64) * size + w) // out
    # In float32, u * V is w only nearly.
    assert np.abs(np.asarray(start)[1:] - expected).max() <= 1
    assert set(np.unique(end - start)) == {1, 2}
    assert (start[0], end[-1]) == (0, size)
    equal(start[1:], end[:-1])


# Chance.


@pytest.mark.parametrize("mode", ["pseudorandom", "random"])
@pytest.mark.parametrize("window", [None, 2])
def test_all_sequences_are_drawn_and_equally_often(mode, window):
    n, size, out = 4000, 7, 5
    ((start, end),) = jaxpool.fractional_boundaries(
        (n, size, 1),
        (out,),
        window_shape=window,
        mode=mode,
        shared=False,
        key=jax.random.key(0),
    )
    start, end = np.asarray(start)[:, 0], np.asarray(end)[:, 0]
    seen = Counter(map(tuple, start.tolist()))
    if window:
        equal(end - start, window)
        steps, total, longer = 4, 5, 1  # sum of the steps between the starts
        if mode == "pseudorandom":  # alpha = 1.25: u < 0.2, 0.4, 0.6, 0.8 and 1
            fractions = Counter()
            for u in np.linspace(0.0005, 0.9995, 1000):
                row = [int((i + u) * 1.25) - int(u * 1.25) for i in range(4)]
                fractions[(*row, 5)] += 1 / 1000
    else:
        steps, total, longer = 5, 7, 2
        equal(start[:, 1:], end[:, :-1])
        equal(end[:, -1], size)
        if mode == "pseudorandom":
            bound, u = values_of_w(size, out)
            fractions = Counter()
            for sample in u:
                fractions[tuple(boundaries(size, out, sample)[:-1])] += 1 / bound
    if mode == "random":
        fractions = Counter()
        for at in itertools.combinations(range(steps), longer):
            sizes = np.full(steps, total // steps)
            sizes[list(at)] += 1
            row = [0, *np.cumsum(sizes).tolist()]
            fractions[tuple(row if window else row[:-1])] += 1
        fractions = {row: 1 / len(fractions) for row in fractions}
    assert set(seen) == set(fractions)
    for row, share in fractions.items():
        # Five standard deviations of a count.
        assert abs(seen[row] - n * share) < 5 * np.sqrt(n * share), row


@pytest.mark.parametrize(
    ("shared", "mode", "window"),
    [
        (True, "random", None),
        ("channels", "pseudorandom", None),
        (False, "random", None),
        (False, "pseudorandom", 3),
        ("channels", "random", 3),
    ],
)
def test_who_shares_regions(shared, mode, window):
    """The op pools what `fractional_boundaries` says, each plane with its own."""
    x = np.random.default_rng(0).standard_normal((4, 3, 11, 9)).astype(np.float32)
    arguments = dict(
        output_shape=(5, 4),
        window_shape=window,
        mode=mode,
        shared=shared,
        key=jax.random.key(2),
        axis=(-1, -2),  # columns first
    )
    columns, rows = jaxpool.fractional_boundaries(x.shape, **arguments)
    lead = {True: (), "channels": (4, 1), False: (4, 3)}[shared]
    assert columns[0].shape == (*lead, 5)
    assert rows[1].shape == (*lead, 4)
    columns, rows = (
        [np.broadcast_to(edges, (4, 3, edges.shape[-1])) for edges in pair]
        for pair in (columns, rows)
    )
    distinct = {edges.tobytes() for edges in columns[0].reshape(12, 5)}
    assert (len(distinct) > 1) == (shared is not True)
    largest, indices = jaxpool.fractional_max_pool_with_argmax(x, **arguments)
    only = jaxpool.fractional_max_pool(x, **arguments)
    means = jaxpool.fractional_avg_pool(x, **arguments)
    equal(only, largest)
    for b, c in np.ndindex(4, 3):
        lines = [
            [(list(range(s, e)), 0) for s, e in np.stack(pair, -1)[b, c]]
            for pair in (rows, columns)
        ]
        values, places = oracle.over_windows(oracle.argmax, x[b, c], lines, (-2, -1))
        equal(largest[b, c], values.astype(np.float32))
        equal(indices[b, c], places)
        mean = oracle.over_windows(oracle.element_mean, x[b, c], lines, (-2, -1))
        # float32 sums of up to 9 numbers around 1
        np.testing.assert_allclose(means[b, c], mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["pseudorandom", "random"])
def test_keys(mode):
    x = np.random.default_rng(0).standard_normal((2, 25, 2)).astype(np.float32)

    def pool(key):
        options = {"mode": mode, "shared": False}
        return jaxpool.fractional_max_pool(x, ratio=(1.5,), key=key, **options)

    keys = jax.random.split(jax.random.key(1), 4)
    each = [pool(key) for key in keys]
    assert each[0].shape == (2, 16, 2)
    assert len({y.tobytes() for y in map(np.asarray, each)}) == 4
    equal(pool(keys[0]), each[0])
    with jax.debug_key_reuse(True):
        equal(jax.jit(pool)(keys[0]), each[0])
    equal(jax.vmap(pool)(keys), np.stack(each))
    with jax.legacy_prng_key("allow"):
        equal(pool(jax.random.key_data(keys[0])), each[0])


def test_deterministic_is_the_middle():
    x = np.random.default_rng(0).standard_normal((2, 13, 12, 2)).astype(np.float32)
    for more in ({}, {"window_shape": 2}):
        middle = jaxpool.fractional_max_pool(x, (8, 9), samples=(0.5, 0.5), **more)
        for mode in ("pseudorandom", "random"):
            y = jaxpool.fractional_max_pool(
                x, (8, 9), deterministic=True, mode=mode, **more
            )
            equal(y, middle)
    # Whole multiples are plain windows, whatever is drawn.
    expected = jaxpool.avg_pool(x[:, :12], (3, 2), (3, 2))
    for key in jax.random.split(jax.random.key(0), 3):
        y = jaxpool.fractional_avg_pool(x[:, :12], (4, 6), key=key)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


# Sizes.


def size_of(size, ratio):
    pool = functools.partial(jaxpool.fractional_max_pool, deterministic=True)
    x = jax.ShapeDtypeStruct((size, 1), jnp.float32)
    return jax.eval_shape(lambda x: pool(x, ratio=(ratio,)), x).shape[0]


def test_ratios_are_the_numbers_they_are_written_as():
    assert size_of(11, 1.1) == 10  # 9.9999... for the double nearest to 1.1
    assert size_of(11, np.float32(1.1)) == 10
    assert size_of(10, 10 / 7) == 7
    assert size_of(10, Fraction(10, 7)) == 7
    assert size_of(10, 1) == 10
    assert size_of(10001, 1.0001) == 10000
    assert size_of(100, 2**0.5) == 70
    for size, out in itertools.product(range(1, 60), repeat=2):
        if out <= size:
            assert _divided("", size, size / out) == out, (size, out)
    for size, percent in itertools.product(range(1, 60), range(101, 300)):
        assert _divided("", size, percent / 100) == 100 * size // percent


def test_none_keeps_a_size_and_an_int_needs_axes():
    x = np.random.default_rng(0).standard_normal((2, 6, 7, 2)).astype(np.float32)
    y = jaxpool.fractional_max_pool(x, (None, 4), deterministic=True)
    equal(y, jaxpool.fractional_max_pool(x, (6, 4), deterministic=True))
    y = jaxpool.fractional_max_pool(x, 4, axis=(1, 2), deterministic=True)
    equal(y, jaxpool.fractional_max_pool(x, (4, 4), deterministic=True))
    y = jaxpool.fractional_max_pool(x, ratio=1.5, axis=(1, 2), deterministic=True)
    equal(y, jaxpool.fractional_max_pool(x, (4, 4), deterministic=True))


# Gradients.


@pytest.mark.parametrize("overlapping", [False, True])
def test_gradient_of_equals_and_nan_goes_to_the_first(overlapping):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (2, 12, 11, 2)).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    arguments = dict(
        output_shape=(5, 4),
        overlapping=overlapping,
        samples=rng.random((2, 2, 2), np.float32),
    )
    pool = functools.partial(jaxpool.fractional_max_pool_with_argmax, **arguments)
    y, pullback, indices = jax.vjp(pool, x, has_aux=True)
    equal(indices, ORACLES["fractional_max_pool_with_argmax"](x, **arguments)[1])
    assert np.isnan(y).any()
    assert not np.isnan(y).all()
    cotangent = rng.integers(1, 9, y.shape).astype(np.float32)
    expected = np.zeros((2, 12 * 11, 2), np.float32)
    for b, o, p, c in np.ndindex(y.shape):
        expected[b, indices[b, o, p, c], c] += cotangent[b, o, p, c]
    equal(pullback(cotangent)[0], expected.reshape(x.shape))


def test_a_mean_keeps_what_is_not_its_own_out():
    x = np.ones((9, 1), np.float32)
    x[4] = np.inf
    y = jaxpool.fractional_avg_pool(x, (4,), samples=(0.5,))
    ((start, end),) = jaxpool.fractional_boundaries((9, 1), (4,), samples=(0.5,))
    equal(np.isinf(y[:, 0]), (start <= 4) & (4 < end))
    equal(y[np.isfinite(y)], 1)
    g = jax.grad(
        lambda x: y_finite(jaxpool.fractional_avg_pool(x, (4,), samples=(0.5,)))
    )
    assert np.isfinite(g(x)).all()


def y_finite(y):
    return jnp.where(jnp.isfinite(y), y, 0).sum()


# Devices and export: planes with regions of their own.


@pytest.mark.parametrize("pool", POOLS)
def test_own_regions_on_several_devices(pool):
    x = np.random.default_rng(0).standard_normal((4, 9, 8, 2)).astype(np.float32)
    samples = np.random.default_rng(1).random((4, 2, 2), np.float32)

    def value_and_gradient(x, samples):
        y, pullback = jax.vjp(lambda x: pool(x, (5, 6), samples=samples), x)
        return y, pullback(y)[0]

    def check(actual):
        for y, e in zip(actual, expected, strict=True):
            # Up to four float32 numbers around 1 are added up.
            np.testing.assert_allclose(y, e, rtol=2e-6, atol=2e-6)

    expected = value_and_gradient(x, samples)
    rows = PartitionSpec("rows")
    manual = Mesh(np.array(jax.devices()), ("rows",))
    mapped = jax.shard_map(
        value_and_gradient, mesh=manual, in_specs=(rows, rows), out_specs=rows
    )
    check(jax.jit(mapped)(x, samples))
    explicit = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        put = functools.partial(jax.device_put, device=NamedSharding(explicit, rows))
        y, g = jax.jit(value_and_gradient)(put(x), put(samples))
    check((y, g))
    assert y.sharding.spec[0] == g.sharding.spec[0] == "rows"


@pytest.mark.parametrize(
    ("shared", "mode"), [(True, "random"), (False, "pseudorandom"), (False, "random")]
)
def test_export_with_a_symbolic_batch_and_a_key(shared, mode):
    x = np.random.default_rng(0).standard_normal((3, 9, 8, 2)).astype(np.float32)
    key = jax.random.key_data(jax.random.key(5))
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 9, 8, 2"), x.dtype)

    def pool(x, key):
        key = jax.random.wrap_key_data(key)
        options = {"shared": shared, "mode": mode}
        return jaxpool.fractional_max_pool(x, (5, 6), key=key, **options)

    exported = jax.export.export(jax.jit(pool))(spec, key)
    equal(exported.call(x, key), pool(x, key))
