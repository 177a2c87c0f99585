"""TensorFlow's pools: its documented examples, and a slow NumPy restatement."""

import functools
import inspect
import itertools
import platform

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool.compat import tf

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Sums of at most 27 float32 numbers around 1, in another order.
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
equal = np.testing.assert_array_equal

# The input of the examples for `tf.nn.max_pool`.
MATRIX = [[0, 0, 1, 7], [0, 2, 0, 0], [5, 2, 0, 0], [0, 0, 9, 8]]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ties(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 3, shape).astype(np.float32)


def matrix(dtype="int32"):
    return jnp.array(MATRIX, dtype)[None, :, :, None]


def windows(size, k, stride, padding, dilation=1):
    """The indices of each window's elements along one axis; none is padding."""
    span = (k - 1) * dilation + 1
    if padding == "SAME":
        out = -(-size // stride)
        low = max((out - 1) * stride + span - size, 0) // 2
    else:
        low, high = (0, 0) if padding == "VALID" else padding
        out = (size + low + high - span) // stride + 1
    for o in range(out):
        taps = (o * stride - low + j * dilation for j in range(k))
        yield [i for i in taps if 0 <= i < size]


def by_hand(x, window, strides, padding, op, dilations=None):
    """Each window's `op(elements [n, N, C], their places)`, channels last."""
    sizes = x.shape[1:-1]
    pads = [padding] * len(sizes) if isinstance(padding, str) else padding[1:-1]
    dilations = dilations or [1] * len(sizes)
    axes = [
        list(windows(*spec))
        for spec in zip(sizes, window, strides, pads, dilations, strict=True)
    ]
    results = []
    for taps in itertools.product(*axes):
        places = list(itertools.product(*taps))
        results.append(op(np.array([x[:, *p] for p in places], np.float64), places))
    out = [len(a) for a in axes]
    return np.moveaxis(np.array(results), 0, 1).reshape(len(x), *out, x.shape[-1])


OPS = {"MAX": lambda v, _: v.max(0), "AVG": lambda v, _: v.mean(0)}


# Examples that TensorFlow documents.


@pytest.mark.parametrize(
    ("ksize", "strides", "padding", "expected"),
    [
        (2, 2, "SAME", [[2, 7], [5, 9]]),
        (3, 2, "SAME", [[5, 7], [9, 9]]),
        (3, 3, "SAME", [[2, 7], [5, 9]]),
        (3, 3, "VALID", [[5]]),
    ],
)
def test_documented_examples(ksize, strides, padding, expected):
    y = tf.max_pool(matrix(), ksize=ksize, strides=strides, padding=padding)
    assert y.dtype == jnp.int32
    equal(y[0, :, :, 0], expected)


def test_same_padding_does_not_count():
    x = jnp.arange(1.0, 4.0).reshape(1, 3, 1)
    equal(tf.avg_pool(x, 2, 1, "SAME")[0, :, 0], [1.5, 2.5, 3.0])
    equal(tf.pool(x, [2], "AVG", padding="SAME")[0, :, 0], [1.5, 2.5, 3.0])


# Every form of every argument.

CASES = [
    # shape, ksize, strides, padding, the same for the spatial axes
    ((2, 7, 3), 3, 2, "SAME", (3,), (2,)),
    ((2, 7, 3), [3], None, "VALID", (3,), (1,)),
    ((2, 7, 3), [1, 2, 1], [1, 3, 1], "SAME", (2,), (3,)),
    ((1, 6, 5, 2), 2, 2, "VALID", (2, 2), (2, 2)),
    ((1, 6, 5, 2), (3, 2), (1, 2), "SAME", (3, 2), (1, 2)),
    ((2, 6, 5, 2), [1, 2, 3, 1], [1, 2, 1, 1], "SAME", (2, 3), (2, 1)),
    ((1, 5, 4, 4, 2), 2, 2, "SAME", (2, 2, 2), (2, 2, 2)),
    ((1, 4, 4, 3, 2), [1, 3, 2, 1, 1], [2, 1, 1], "VALID", (3, 2, 1), (2, 1, 1)),
]


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("op", ["MAX", "AVG"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_windows(case, op, first):
    shape, ksize, strides, padding, window, steps = case
    x = draw(*shape)
    n = len(shape) - 2
    expected = by_hand(x, window, steps, padding, OPS[op])
    data_format = None
    if first:
        x, expected = np.moveaxis(x, -1, 1), np.moveaxis(expected, -1, 1)
        data_format = {1: "NCW", 2: "NCHW", 3: "NCDHW"}[n]
        ksize, strides = (
            [1, *(v[a] for a in (-1, *range(1, n + 1)))]
            if isinstance(v, list) and len(v) == n + 2
            else v
            for v in (ksize, strides)
        )
    name = {"MAX": "max_pool", "AVG": "avg_pool"}[op]
    close(getattr(tf, name)(x, ksize, strides, padding, data_format), expected)
    numbered = getattr(tf, f"{name}{n}d")
    formats = {"data_format": data_format} if data_format else {}
    close(numbered(x, ksize, strides, padding, **formats), expected)
    if all(s <= k for s, k in zip(steps, window, strict=True)):
        pooled = tf.pool(x, window, op, steps, padding, data_format)
        close(pooled, expected)


def test_explicit_padding():
    x = draw(2, 4, 5, 2)
    pads = [[0, 0], [1, 0], [0, 2], [0, 0]]
    expected = by_hand(x, (2, 3), (2, 1), pads, OPS["MAX"])
    equal(tf.max_pool(x, (2, 3), (2, 1), pads), expected.astype(np.float32))
    moved, pads = np.moveaxis(x, -1, 1), [pads[0], pads[3], *pads[1:3]]
    y = tf.max_pool(moved, (2, 3), (2, 1), pads, "NCHW")
    equal(np.moveaxis(y, 1, -1), expected.astype(np.float32))


@pytest.mark.parametrize("op", ["MAX", "AVG"])
def test_dilations(op):
    x = draw(2, 7, 8, 2)
    expected = by_hand(x, (2, 3), (1, 1), "VALID", OPS[op], (2, 3))
    close(tf.pool(x, (2, 3), op, dilations=(2, 3)), expected)


def test_gradients():
    """To the first maximum, and to each element that counts."""
    x, cotangent = jnp.asarray(ties(1, 5, 4, 2)), draw(1, 3, 2, 2, seed=1)
    expected = {"MAX": np.zeros(x.shape), "AVG": np.zeros(x.shape)}
    taps = [list(windows(n, 3, 2, "SAME")) for n in x.shape[1:3]]
    for (o, rows), (p, columns) in itertools.product(*map(enumerate, taps)):
        places = list(itertools.product(rows, columns))
        for c in range(2):
            values = [float(x[0, *place, c]) for place in places]
            first = places[values.index(max(values))]
            expected["MAX"][0, *first, c] += cotangent[0, o, p, c]
            for place in places:
                expected["AVG"][0, *place, c] += cotangent[0, o, p, c] / len(places)
    for name, op in (("MAX", tf.max_pool), ("AVG", tf.avg_pool)):
        _, pullback = jax.vjp(lambda x, op=op: op(x, 3, 2, "SAME"), x)
        close(pullback(cotangent)[0], expected[name])


# Indices.


def first_maximum(x, height_width, with_batch):
    """The place of each window's first maximum, counted as TensorFlow counts."""
    (height, width), channels = height_width, x.shape[-1]

    def index(values, places):
        chosen = np.array(places)[values.argmax(0)]  # [N, C, 2]
        flat = (chosen[..., 0] * width + chosen[..., 1]) * channels
        flat += np.arange(channels)
        if with_batch:
            flat += np.arange(len(x))[:, None] * height * width * channels
        return flat

    return index


@pytest.mark.parametrize("with_batch", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_max_pool_with_argmax(padding, with_batch):
    x = ties(2, 5, 6, 3)
    y, argmax = result = tf.max_pool_with_argmax(
        x, (3, 2), 2, padding, include_batch_in_index=with_batch
    )
    assert result._fields == ("output", "argmax")
    assert argmax.dtype == jnp.int32  # there is no int64 here
    index = first_maximum(x, (5, 6), with_batch)
    equal(argmax, by_hand(x, (3, 2), (2, 2), padding, index))
    equal(y, by_hand(x, (3, 2), (2, 2), padding, OPS["MAX"]))
    if with_batch:  # what the index is for
        equal(x.reshape(-1)[argmax], y)


def test_argmax_by_hand():
    y, argmax = tf.max_pool_with_argmax(matrix("float32"), 2, 2, "VALID")
    equal(y[0, :, :, 0], [[2, 7], [5, 9]])
    equal(argmax[0, :, :, 0], [[5, 3], [8, 14]])
    two = jnp.concatenate([matrix(), -matrix()], -1)  # places double, channels count
    _, argmax = tf.max_pool_with_argmax(two, 2, 2, "VALID")
    equal(argmax[0, :, :, 0], [[10, 6], [16, 28]])
    equal(argmax[0, :, :, 1], [[1, 13], [25, 21]])


@pytest.mark.usefixtures("x64")
def test_argmax_dtype():
    for dtype in ("int32", jnp.int64):
        argmax = tf.max_pool_with_argmax(ties(1, 4, 4, 1), 2, 2, "SAME", "NHWC", dtype)
        assert argmax.argmax.dtype == dtype


def test_argmax_overflow_is_refused():
    x = jax.ShapeDtypeStruct((3, 1 << 15, 1 << 15, 1), jnp.int8)
    pool = functools.partial(
        tf.max_pool_with_argmax, ksize=2, strides=2, padding="VALID"
    )
    assert jax.eval_shape(pool, x).argmax.dtype == jnp.int32
    with pytest.raises(ValueError, match="`output_dtype` must hold indices"):
        jax.eval_shape(functools.partial(pool, include_batch_in_index=True), x)


def test_symbolic_batch():
    x = ties(2, 4, 6, 2)
    pool = jax.jit(
        lambda x: tf.max_pool_with_argmax(x, 2, 2, "SAME", include_batch_in_index=True)
    )
    shape = jax.export.symbolic_shape("b, 4, 6, 2")
    exported = jax.export.export(pool)(jax.ShapeDtypeStruct(shape, x.dtype))
    jax.tree.map(equal, tuple(exported.call(x)), tuple(pool(x)))


# Fractional pools.

FRACTIONAL = {
    "fractional_max_pool": lambda v: v.max((1, 2)),
    "fractional_avg_pool": lambda v: v.mean((1, 2)),
}


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("pseudo_random", [False, True])
@pytest.mark.parametrize("name", FRACTIONAL)
def test_fractional(name, pseudo_random, overlapping):
    x = draw(2, 10, 9, 3)
    op, sizes = getattr(tf, name), (10, 9)
    seen = set()
    for seed in range(1, 6):
        result = op(x, [1.0, 1.44, 1.73, 1.0], pseudo_random, overlapping, seed)
        y, *sequences = result
        assert y.shape == (2, 6, 5, 3)
        for sequence, size, out in zip(sequences, sizes, (6, 5), strict=True):
            steps = np.diff(sequence)
            assert (sequence[0], sequence[-1]) == (0, size)
            assert len(sequence) == out + 1
            assert set(steps.tolist()) == {size // out, size // out + 1}
        rows, columns = map(np.asarray, sequences)
        for i, j in np.ndindex(6, 5):
            part = x[
                :,
                rows[i] : rows[i + 1] + overlapping,
                columns[j] : columns[j + 1] + overlapping,
            ]
            close(y[:, i, j], FRACTIONAL[name](part.astype(np.float64)))
        seen.add((*rows.tolist(), *columns.tolist()))
        same = op(x, (1.44, 1.73), pseudo_random, overlapping, key=jax.random.key(seed))
        jax.tree.map(equal, tuple(same), tuple(result))
    assert len(seen) > 1
    fields = ("output", "row_pooling_sequence", "col_pooling_sequence")
    assert result._fields == fields


def test_one_ratio_for_both():
    y, rows, columns = tf.fractional_max_pool(draw(1, 8, 6, 1), 2, seed=1)
    assert y.shape == (1, 4, 3, 1)
    equal(rows, [0, 2, 4, 6, 8])
    equal(columns, [0, 2, 4, 6])


# Signatures and errors.


def test_signatures():
    window = "input ksize strides padding data_format name"
    fractional = "value pooling_ratio pseudo_random overlapping seed name key"
    expected = {
        "pool": "input window_shape pooling_type strides padding data_format dilations "
        "name",
        "max_pool_with_argmax": "input ksize strides padding data_format output_dtype "
        "include_batch_in_index name",
        **dict.fromkeys(FRACTIONAL, fractional),
    }
    for name in tf.__all__:
        if name.islower():
            parameters = inspect.signature(getattr(tf, name)).parameters
            assert " ".join(parameters) == expected.get(name, window), name
    defaults = {n: f"N{'DHW'[3 - n :]}C" for n in (1, 2, 3)}
    for n, op in itertools.product(defaults, ("max", "avg")):
        parameters = inspect.signature(getattr(tf, f"{op}_pool{n}d")).parameters
        assert parameters["data_format"].default == defaults[n]


X = np.zeros((1, 4, 4, 2), np.float32)
WRONG = [
    (lambda: tf.max_pool(X, 0, 1, "SAME"), "max_pool", "ksize"),
    (lambda: tf.max_pool(X, 5, 1, "VALID"), "max_pool", "ksize"),
    (lambda: tf.max_pool(X, [1, 2, 2], 1, "SAME"), "max_pool", "ksize"),
    (lambda: tf.max_pool(X, [1, 2, 2, 2], 1, "SAME"), "max_pool", "ksize"),
    (lambda: tf.max_pool(X, 2.0, 1, "SAME"), "max_pool", "ksize"),
    (lambda: tf.avg_pool(X, 2, [2, 2, 2, 1], "SAME"), "avg_pool", "strides"),
    (lambda: tf.avg_pool(X, 2, 0, "SAME"), "avg_pool", "strides"),
    (lambda: tf.avg_pool2d(X, 2, 1, "same"), "avg_pool2d", "padding"),
    (lambda: tf.avg_pool(X, 2, 1, [[0, 0]] * 4), "avg_pool", "padding"),
    (lambda: tf.max_pool(X, 2, 1, [[0, 0]] * 2), "max_pool", "padding"),
    (lambda: tf.max_pool(X, 2, 1, [[0, 0]] * 3 + [[1, 0]]), "max_pool", "padding"),
    (lambda: tf.max_pool(X, 2, 1, [[0, 0], [2, 0]] * 2), "max_pool", "padding"),
    (lambda: tf.max_pool2d(X, 2, 1, "SAME", "NWC"), "max_pool2d", "data_format"),
    (lambda: tf.max_pool1d(X, 2, 1, "SAME"), "max_pool1d", "input"),
    (lambda: tf.max_pool(X[0, 0], 2, 1, "SAME"), "max_pool", "input"),
    (lambda: tf.max_pool("x", 2, 1, "SAME"), "max_pool", "input"),
    (lambda: tf.max_pool(X * 1j, 2, 1, "SAME"), "max_pool", "input"),
    (lambda: tf.pool(X, 2, "MAX"), "pool", "window_shape"),
    (lambda: tf.pool(X, (2,) * 4, "MAX"), "pool", "window_shape"),
    (lambda: tf.pool(X, (5, 5), "MAX"), "pool", "window_shape"),
    (lambda: tf.pool(X, (2, 2), "max"), "pool", "pooling_type"),
    (lambda: tf.pool(X, (2, 2), "MAX", (3, 1)), "pool", "strides"),
    (lambda: tf.pool(X, (2, 2), "MAX", (2, 1), dilations=(1, 2)), "pool", "strides"),
    (lambda: tf.pool(X, (2, 2), "AVG", None, "SAME", None, (2, 1)), "pool", "padding"),
    (lambda: tf.pool(X, (2, 2), "AVG", padding=1), "pool", "padding"),
    (lambda: tf.pool(X, (2, 2), "AVG", dilations=(0, 1)), "pool", "dilations"),
    (lambda: tf.pool(X, (2, 2), "AVG", data_format="NHC"), "pool", "data_format"),
    (
        lambda: tf.max_pool_with_argmax(X, 2, 2, "SAME", "NCHW"),
        "max_pool_with_argmax",
        "data_format",
    ),
    (
        lambda: tf.max_pool_with_argmax(X, 2, 2, "SAME", output_dtype="int8"),
        "max_pool_with_argmax",
        "output_dtype",
    ),
    (
        lambda: tf.max_pool_with_argmax(X, 2, 2, [[0, 0]] * 4),
        "max_pool_with_argmax",
        "padding",
    ),
    (lambda: tf.fractional_max_pool(X, 1.5), "fractional_max_pool", "key"),
    (
        lambda: tf.fractional_avg_pool(X, 1.5, seed=1, key=jax.random.key(0)),
        "fractional_avg_pool",
        "seed",
    ),
    (
        lambda: tf.fractional_max_pool(X, 0.5, seed=1),
        "fractional_max_pool",
        "pooling_ratio",
    ),
    (
        lambda: tf.fractional_max_pool(X, (1, 2, 2, 2), seed=1),
        "fractional_max_pool",
        "pooling_ratio",
    ),
    (
        lambda: tf.fractional_avg_pool(X, (1, 2, 1), seed=1),
        "fractional_avg_pool",
        "pooling_ratio",
    ),
    (lambda: tf.fractional_max_pool(X[0], 2, seed=1), "fractional_max_pool", "value"),
]


@pytest.mark.parametrize(("call", "function", "argument"), WRONG)
def test_errors(call, function, argument):
    with pytest.raises((ValueError, TypeError)) as raised:
        call()
    message = str(raised.value)
    assert message.startswith(f"`{function}`: `{argument}` "), message
    assert "; got " in message


def test_differences_are_data():
    for row in tf.DIFFERENCES:
        assert len(row) == 4
        assert all(isinstance(entry, str) for entry in row)
    x = jnp.array([1.0, 2.0, 1.0, 3.0])[None, :, None]
    _, tangent = jax.jvp(lambda x: tf.avg_pool(x, 2, 2, "VALID"), (x,), (x,))
    equal(tangent[0, 1, 0], 2.0)


NANS = [[np.nan, 3.0], [1.0, np.nan], [np.nan, np.nan]]


@pytest.mark.parametrize("window", NANS, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 17])
def test_nan_is_the_maximum_in_every_channel(channels, window):
    row = np.repeat(np.array(window, np.float32)[None, :, None], channels, -1)
    for n in (1, 2, 3):
        x = row.reshape(1, *(1,) * (n - 1), 2, channels)
        k = (1,) * (n - 1) + (2,)
        pooled = [
            getattr(tf, f"max_pool{n}d")(x, k, k, "VALID"),
            tf.max_pool(x, k, k, "VALID"),
            tf.pool(x, k, "MAX"),
        ]
        for y in pooled:
            equal(np.ravel(y), [np.nan] * channels)
        gradient = jax.grad(lambda x, k=k: tf.max_pool(x, k, k, "VALID").sum())(x)
        first = int(np.argmax(np.isnan(window)))
        equal(np.reshape(gradient, row.shape)[0, first], [1.0] * channels)
    values, indices = tf.max_pool_with_argmax(row[:, None], (1, 2), (1, 2), "VALID")
    equal(np.ravel(values), [np.nan] * channels)
    equal(np.ravel(indices), first * channels + np.arange(channels))


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 17])
def test_nan_in_tensorflow_is_as_the_table_says(channels):
    tensorflow = pytest.importorskip("tensorflow")
    if platform.machine() != "x86_64":
        pytest.skip("on other processors it depends on the channel")
    lowest = np.finfo(np.float32).min
    for window, value, kept in zip(
        NANS, [3.0, 1.0, lowest], [np.nan, 1.0, np.nan], strict=True
    ):
        x = np.repeat(np.array(window, np.float32)[None, None, :, None], channels, -1)
        call = tensorflow.constant(x), (1, 2), (1, 2), "VALID"
        equal(np.ravel(tensorflow.nn.max_pool2d(*call)), [value] * channels)
        equal(np.ravel(tensorflow.nn.max_pool_with_argmax(*call)[0]), [kept] * channels)
