"""The numbers, indices and gradients of PyTorch on the CPU, and where they differ."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool
from jaxpool._core.geometry import Geometry, adaptive_bounds
from jaxpool._core.window import Window

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick_compilation")
F = pytest.importorskip("torch.nn.functional")

# Sums in another order, of numbers around 1: a few float32 roundings of the largest.
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
equal = np.testing.assert_array_equal


def to_torch(x, spatial):
    """A channels-last NumPy array as PyTorch's channels-first tensor."""
    return torch.from_numpy(np.moveaxis(x, -1, -1 - spatial).copy())


def from_torch(x, spatial):
    return np.moveaxis(x.detach().numpy(), -1 - spatial, -1)


def torch_op(name, spatial):
    return getattr(F, f"{name}{spatial}d")


def torch_run(fn, x, cotangent, spatial):
    """(outputs, gradient of the first) of a function of one tensor."""
    x = to_torch(x, spatial).requires_grad_()
    out = fn(x)
    first, *rest = out if isinstance(out, tuple) else (out,)
    first.backward(to_torch(cotangent(from_torch(first, spatial).shape), spatial))
    outputs = [from_torch(y, spatial) for y in (first, *rest)]
    return outputs, from_torch(x.grad, spatial)


def jax_run(fn, x, cotangent):
    """The same for a function of one array; it may return (values, indices) too."""

    def outputs_and_gradient(x, cotangent):
        def split(x):
            out = fn(x)
            return (out[0], out[1:]) if isinstance(out, tuple) else (out, ())

        y, pullback, rest = jax.vjp(split, x, has_aux=True)
        return (y, *rest), pullback(cotangent)[0]

    y = jax.eval_shape(fn, x)
    shape = y[0].shape if isinstance(y, tuple) else y.shape
    return jax.jit(outputs_and_gradient)(x, cotangent(shape))


def small_integers(shape):
    """Whole numbers as cotangents: sums of them are exact in any order."""
    rng = np.random.default_rng(np.prod(shape))
    return rng.integers(-8, 9, shape).astype(np.float32)


def normals(shape):
    rng = np.random.default_rng(np.prod(shape) + 1)
    return rng.standard_normal(shape).astype(np.float32)


def with_ties_and_infinities(spatial, channels=2):
    """[4, S..., C]: without ties, with many, half -inf, and -inf alone."""
    shape = (*spatial, channels)
    rng = np.random.default_rng(2)
    plain, ties = normals(shape), rng.integers(0, 3, shape).astype(np.float32)
    mixed = np.where(rng.random(shape) < 0.5, -np.inf, ties)
    alone = np.full(shape, -np.inf)
    return np.stack([plain, ties, mixed, alone]).astype(np.float32)


# Sizes, counts and refusals, for every small configuration.


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_sizes_and_refusals_of_every_small_max_pool(ceil_mode):
    seen = {True: 0, False: 0}
    for size, k, s, d in itertools.product(
        range(1, 13), range(1, 7), range(1, 5), (1, 2, 3)
    ):
        x = torch.zeros(1, 1, size)
        for p in range(k // 2 + 1):  # PyTorch takes no more
            config = (size, k, s, p, d, ceil_mode)
            try:
                theirs = F.max_pool1d(x, k, s, p, d, ceil_mode).shape[-1]
            except RuntimeError:
                theirs = None
            try:
                kwargs = {"window_dilation": d, "ceil_mode": ceil_mode}
                ours = jaxpool.output_shape((size, 1), (k,), s, p, **kwargs)[0]
            except ValueError:
                ours = None
            assert ours == theirs, config
            seen[ours is None] += 1
    assert min(seen.values()) > 100


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_counts_and_refusals_of_every_small_mean(ceil_mode):
    seen = {True: 0, False: 0}
    for size, k, s in itertools.product(range(1, 13), range(1, 7), range(1, 6)):
        ones = torch.ones(1, 1, size)
        for p in range(k // 2 + 1):
            config = (size, k, s, p, ceil_mode)
            try:
                theirs = F.avg_pool1d(ones, k, s, p, ceil_mode).numpy()[0, 0]
            except RuntimeError:
                theirs = None
            window = Window.of("avg_pool", (k,), s, p, 1, ceil_mode)
            try:
                (axis,) = Geometry.of(window, (size, 1)).axes
            except ValueError:
                assert theirs is None, config
                seen[False] += 1
                continue
            assert theirs is not None, config
            counted, elements = axis.counts(True), axis.counts(False)
            expected = elements.astype(np.float32) / counted.astype(np.float32)
            equal(theirs, expected, err_msg=str(config))
            seen[True] += 1
    assert seen[True] > 700
    assert seen[False] > 20


def test_bins_of_every_small_adaptive_pool():
    up = torch.arange(64.0)[None, None]
    for size, out in itertools.product(range(1, 65), repeat=2):
        rising = up[..., :size]
        # The largest element of a rising bin is its last, of a falling one its first.
        _, last = F.adaptive_max_pool1d(rising, out, return_indices=True)
        _, first = F.adaptive_max_pool1d(-rising, out, return_indices=True)
        start, end = adaptive_bounds(size, out)
        equal(start, first.numpy()[0, 0], err_msg=str((size, out)))
        equal(end - 1, last.numpy()[0, 0], err_msg=str((size, out)))


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((3,), dict(window_shape=(4,))),
        ((4,), dict(window_shape=(3,), window_dilation=2)),
        ((5, 2), dict(window_shape=(3, 3))),
        ((5, 1), dict(window_shape=(4, 4), strides=2, padding=1)),
        ((1, 5, 5), dict(window_shape=(2, 2, 2))),
        ((2, 3), dict(window_shape=(5, 2), strides=3, ceil_mode=False)),
    ],
)
def test_refuses_what_would_be_empty(size, arguments):
    spatial = len(size)
    names = {"window_shape": "kernel_size", "strides": "stride"}
    names |= {"window_dilation": "dilation"}
    theirs = {names.get(k, k): v for k, v in arguments.items()}
    theirs.setdefault("stride", 1)
    with pytest.raises(RuntimeError, match="utput size"):
        torch_op("max_pool", spatial)(torch.zeros(1, 1, *size), **theirs)
    for op in (jaxpool.max_pool, jaxpool.avg_pool, jaxpool.max_pool_with_argmax):
        with pytest.raises(ValueError, match="leaves nothing to pool"):
            op(jnp.zeros((1, *size, 1)), **arguments)


# Maximum.

MAX = [
    # size, window, strides, padding, dilation, ceil_mode
    ((9,), (3,), (2,), (0,), (1,), False),
    ((9,), (2,), (2,), (1,), (1,), True),
    ((12,), (3,), (2,), (1,), (3,), False),
    ((3,), (3,), (3,), (0,), (2,), True),  # as many elements as the input has
    ((2,), (3,), (2,), (0,), (1,), True),  # larger than the input
    ((7,), (1,), (3,), (0,), (1,), False),
    ((6, 6), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((7, 8), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((7, 8), (3, 2), (1, 2), (1, 0), (1, 1), True),
    ((9, 8), (3, 2), (2, 3), (1, 1), (2, 3), True),
    ((5, 4), (5, 4), (1, 1), (0, 0), (1, 1), False),  # global
    ((5, 6), (2, 3), (3, 4), (0, 0), (1, 1), False),  # leaves elements out
    ((4, 5, 6), (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1), False),
    ((5, 6, 7), (3, 2, 3), (2, 1, 2), (1, 0, 1), (1, 2, 1), True),
]


@pytest.mark.parametrize("config", MAX, ids=str)
def test_max_pool(config):
    size, k, s, p, d, ceil_mode = config
    spatial = len(size)
    x = with_ties_and_infinities(size)
    (values, indices), gradient = jax_run(
        lambda x: jaxpool.max_pool_with_argmax(
            x, k, s, p, window_dilation=d, ceil_mode=ceil_mode
        ),
        x,
        small_integers,
    )
    theirs, their_gradient = torch_run(
        lambda x: torch_op("max_pool", spatial)(
            x, k, s, p, d, ceil_mode, return_indices=True
        ),
        x,
        small_integers,
        spatial,
    )
    equal(values, theirs[0])
    equal(indices, theirs[1])
    equal(gradient, their_gradient)
    assert indices.dtype == jnp.int32


def test_max_pool_without_indices_is_the_same():
    size, k, s, p, d, ceil_mode = MAX[9]
    x = with_ties_and_infinities(size)
    kwargs = {"window_dilation": d, "ceil_mode": ceil_mode}
    pairs = jaxpool.max_pool, jaxpool.max_pool_with_argmax
    (plain, gradient), (indexed, expected) = (
        jax_run(lambda x, op=op: op(x, k, s, p, **kwargs), x, small_integers)
        for op in pairs
    )
    equal(plain[0], indexed[0])
    equal(gradient, expected)


def test_min_pool_is_the_negated_maximum():
    size, k, s, p, _, ceil_mode = MAX[8]
    x = with_ties_and_infinities(size)
    (y,), gradient = jax_run(
        lambda x: jaxpool.min_pool(x, k, s, p, ceil_mode=ceil_mode), x, small_integers
    )
    (theirs,), expected = torch_run(
        lambda x: -F.max_pool2d(-x, k, s, p, 1, ceil_mode), x, small_integers, 2
    )
    equal(y, theirs)
    equal(gradient, expected)


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_channels_first(leading):
    """PyTorch's own layout through `axis=`, with and without a batch axis."""
    x = normals((*leading, 3, 7, 8))
    flat = torch.from_numpy(x.reshape(-1, 3, 7, 8).copy())
    window = ((3, 2), (2, 2), 1)

    @jax.jit
    def ours(x):
        axis = (-2, -1)
        return (
            *jaxpool.max_pool_with_argmax(x, *window, axis=axis),
            *jaxpool.adaptive_max_pool_with_argmax(x, (3, 5), axis=axis),
            jaxpool.avg_pool(x, *window, axis=axis),
        )

    theirs = (
        *F.max_pool2d(flat, *window, return_indices=True),
        *F.adaptive_max_pool2d(flat, (3, 5), return_indices=True),
        F.avg_pool2d(flat, *window),
    )
    for y, expected in zip(ours(x), theirs, strict=True):
        close(y, expected.numpy().reshape(y.shape))


# NaN.


def test_nan_index_is_the_first_where_that_of_torch_is_the_last():
    x = np.array([1, np.nan, 3, np.nan, 2, 2], np.float32)
    values, indices = jaxpool.max_pool_with_argmax(x[:, None], (6,))
    theirs = F.max_pool1d(torch.from_numpy(x)[None], 6, return_indices=True)
    assert np.isnan(values).all()
    assert np.isnan(theirs[0].numpy()).all()
    assert indices.item() == 1
    assert theirs[1].item() == 3


def test_nan_indices_and_gradients_by_hand():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((12, 13)).astype(np.float32)
    x[rng.random(x.shape) < 0.15] = np.nan
    k, s = (3, 3), (2, 2)
    (values, indices), gradient = jax_run(
        lambda x: jaxpool.max_pool_with_argmax(x, k, s), x[..., None], small_integers
    )
    theirs, _ = torch_run(
        lambda x: F.max_pool2d(x, k, s, return_indices=True),
        x[None, ..., None],
        small_integers,
        2,
    )
    equal(values, theirs[0][0])
    assert np.isnan(values).any()
    assert not np.isnan(values).all()
    cotangent, expected = small_integers(values.shape), np.zeros_like(x)
    differ = 0
    for o, p in np.ndindex(*values.shape[:2]):
        window = [(2 * o + i, 2 * p + j) for i, j in np.ndindex(*k)]
        nans = [position for position in window if np.isnan(x[position])]
        first, last = (nans[0], nans[-1]) if nans else [max(window, key=x.item)] * 2
        assert indices[o, p, 0] == np.ravel_multi_index(first, x.shape)
        assert theirs[1][0, o, p, 0] == np.ravel_multi_index(last, x.shape)
        expected[first] += cotangent[o, p, 0]
        differ += first != last
    assert differ > 2
    equal(gradient[..., 0], expected)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_a_single_nan_gets_the_gradient_in_both(k):
    x = normals((1, 8, 8, 2))
    x[0, 2, 5, 0] = np.nan
    (values, indices), gradient = jax_run(
        lambda x: jaxpool.max_pool_with_argmax(x, (k, k), (2, 2)), x, small_integers
    )
    theirs, expected = torch_run(
        lambda x: F.max_pool2d(x, k, 2, return_indices=True), x, small_integers, 2
    )
    equal(values, theirs[0])
    equal(indices, theirs[1])
    equal(gradient, expected)
    assert np.isnan(values).any()


@pytest.mark.parametrize("op", ["avg_pool", "adaptive_avg_pool"])
def test_a_mean_keeps_nan_and_infinity_where_torch_does(op):
    x = normals((3, 6, 6, 1))
    x[0, 1, 1], x[1, 2, 3], x[2, 4, 4], x[2, 4, 5] = np.nan, np.inf, np.inf, -np.inf
    arguments = ((3, 3),) if op == "adaptive_avg_pool" else ((2, 2), (2, 2))
    theirs = from_torch(torch_op(op, 2)(to_torch(x, 2), *arguments), 2)
    close(getattr(jaxpool, op)(x, *arguments), theirs)
    assert np.isnan(theirs[0]).sum() == np.isinf(theirs[1]).sum() == 1


# Means.

AVERAGE = [
    # size, window, strides, padding, ceil_mode
    ((9,), (3,), (2,), (1,), True),
    ((10,), (4,), (3,), (2,), True),
    ((2,), (3,), (2,), (0,), True),  # larger than the input
    ((6, 6), (2, 2), (2, 2), (0, 0), False),
    ((7, 8), (3, 3), (1, 1), (1, 1), False),
    ((6, 7), (3, 2), (2, 2), (1, 1), True),
    ((5, 4), (5, 4), (1, 1), (0, 0), False),  # global
    ((5, 6), (2, 3), (3, 4), (0, 0), False),  # leaves elements out
    ((4, 5, 6), (3, 2, 4), (2, 2, 3), (1, 0, 2), True),
]


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("config", AVERAGE, ids=str)
def test_avg_pool(config, count_include_pad):
    size, k, s, p, ceil_mode = config
    spatial = len(size)
    x = normals((2, *size, 3))
    (y,), gradient = jax_run(
        lambda x: jaxpool.avg_pool(x, k, s, p, count_include_pad, ceil_mode=ceil_mode),
        x,
        normals,
    )
    (theirs,), expected = torch_run(
        lambda x: torch_op("avg_pool", spatial)(
            x, k, s, p, ceil_mode, count_include_pad
        ),
        x,
        normals,
        spatial,
    )
    close(y, theirs)
    close(gradient, expected)


@pytest.mark.parametrize("divisor", [1, 3, 7, -2])
@pytest.mark.parametrize("config", [AVERAGE[5], AVERAGE[8]], ids=str)
def test_avg_pool_with_a_given_divisor(config, divisor):
    size, k, s, p, ceil_mode = config
    spatial = len(size)
    x = normals((1, *size, 2))
    (y,), gradient = jax_run(
        lambda x: jaxpool.avg_pool(
            x, k, s, p, ceil_mode=ceil_mode, divisor_override=divisor
        ),
        x,
        normals,
    )
    (theirs,), expected = torch_run(
        lambda x: torch_op("avg_pool", spatial)(
            x, k, s, p, ceil_mode, divisor_override=divisor
        ),
        x,
        normals,
        spatial,
    )
    # Undivided sums are larger than the means that `close` is made for.
    bound = 2e-6 * np.prod(k) / abs(divisor)
    np.testing.assert_allclose(y, theirs, rtol=1e-6, atol=bound)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=bound)


def test_a_mean_of_whole_numbers_is_the_same_to_the_last_bit():
    """Their sums are exact, so that only the division rounds."""
    x = small_integers((4, 14, 14, 3))
    for k in (3, 7, 14):
        y = jaxpool.avg_pool(x, (k, k), (k, k))
        equal(y, from_torch(F.avg_pool2d(to_torch(x, 2), k), 2), err_msg=str(k))


# Powers.


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "k", "s"),
    [
        ((9,), (3,), (2,)),
        ((6, 8), (2, 2), (2, 2)),
        ((7, 7), (3, 2), (1, 3)),
        ((4, 5, 6), (2, 3, 2), (2, 1, 2)),
    ],
)
def test_lp_pool_of_positive_inputs(size, k, s, p):
    spatial = len(size)
    window = (k, s) if spatial > 1 else (*k, *s)  # PyTorch takes no tuples in 1-D
    x = np.random.default_rng(4).uniform(0.1, 2, (2, *size, 2)).astype(np.float32)
    (y,), gradient = jax_run(lambda x: jaxpool.lp_pool(x, k, s, p=p), x, normals)
    (theirs,), expected = torch_run(
        lambda x: torch_op("lp_pool", spatial)(x, p, *window), x, normals, spatial
    )
    close(y, theirs)
    close(gradient, expected)


# Adaptive.

# Compiling takes most of the time here, and nothing runs for long.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICKLY)
def every_size(op, out, inputs):
    return [op(x, (out,)) for x in inputs]


# Programs of 64 pools, which take long to compile: without `--full` some outputs do.
EVERY_OUTPUT = [
    pytest.param(out, marks=[] if out in (3, 7) else [pytest.mark.full])
    for out in range(1, 17)
]


@pytest.mark.parametrize("out", EVERY_OUTPUT)
def test_adaptive_avg_pool_of_every_size(out):
    inputs = [normals((size, 1)) for size in range(1, 65)]
    for x, y in zip(
        inputs, every_size(jaxpool.adaptive_avg_pool, out, inputs), strict=True
    ):
        theirs = F.adaptive_avg_pool1d(to_torch(x, 1)[None], out)
        close(y, from_torch(theirs[0], 1), err_msg=str((len(x), out)))


@pytest.mark.parametrize("out", EVERY_OUTPUT)
def test_adaptive_max_pool_of_every_size(out):
    inputs = [small_integers((size, 1)) // 3 for size in range(1, 65)]  # many ties
    op = jaxpool.adaptive_max_pool_with_argmax
    for x, (y, index) in zip(inputs, every_size(op, out, inputs), strict=True):
        pair = F.adaptive_max_pool1d(to_torch(x, 1)[None], out, return_indices=True)
        for ours, theirs in zip((y, index), pair, strict=True):
            equal(ours, from_torch(theirs[0], 1), err_msg=str((len(x), out)))


ADAPTIVE = [
    ((7,), (3,)),
    ((3,), (8,)),
    ((7, 9), (3, 4)),
    ((6, 8), (3, 4)),
    ((7, 5), (None, 2)),
    ((5, 6), (9, None)),
    ((4, 5), (1, 1)),
    ((4, 5, 6), (3, None, 4)),
    ((5, 4, 3), (2, 7, 1)),
]


@pytest.mark.parametrize(("size", "out"), ADAPTIVE)
def test_adaptive_pools_and_their_gradients(size, out):
    spatial = len(size)
    torch_out = out[0] if spatial == 1 else out
    x = normals((2, *size, 3))
    (y,), gradient = jax_run(lambda x: jaxpool.adaptive_avg_pool(x, out), x, normals)
    (theirs,), expected = torch_run(
        lambda x: torch_op("adaptive_avg_pool", spatial)(x, torch_out),
        x,
        normals,
        spatial,
    )
    close(y, theirs)
    close(gradient, expected)

    x = with_ties_and_infinities(size)
    ours, gradient = jax_run(
        lambda x: jaxpool.adaptive_max_pool_with_argmax(x, out), x, small_integers
    )
    theirs, expected = torch_run(
        lambda x: torch_op("adaptive_max_pool", spatial)(
            x, torch_out, return_indices=True
        ),
        x,
        small_integers,
        spatial,
    )
    equal(ours[0], theirs[0])
    equal(ours[1], theirs[1])
    equal(gradient, expected)


def test_adaptive_max_pool_of_nan():
    """One NaN goes to the same place in both; of several, to the last in PyTorch."""
    x = normals((7, 6, 1))
    x[3, 2] = np.nan
    (values, indices), gradient = jax_run(
        lambda x: jaxpool.adaptive_max_pool_with_argmax(x, (3, 4)), x, small_integers
    )
    theirs, expected = torch_run(
        lambda x: F.adaptive_max_pool2d(x, (3, 4), return_indices=True),
        x[None],
        lambda shape: small_integers(shape[1:])[None],
        2,
    )
    equal(values, theirs[0][0])
    equal(indices, theirs[1][0])
    equal(gradient, expected[0])
    assert np.isnan(values).any()

    x = np.array([1, np.nan, 3, np.nan], np.float32)
    _, first = jaxpool.adaptive_max_pool_with_argmax(x[:, None], (1,))
    _, last = F.adaptive_max_pool1d(torch.from_numpy(x)[None], 1, return_indices=True)
    assert (first.item(), last.item()) == (1, 3)


# Unpooling.


@pytest.mark.parametrize(
    ("size", "k", "s", "output_size"),
    [
        ((8,), (2,), (2,), None),
        ((9,), (2,), (2,), (9,)),
        ((6, 8), (2, 2), (2, 2), None),
        ((7, 9), (2, 3), (2, 3), (7, 9)),
        ((7, 9), (2, 3), (2, 3), (6, 10)),  # not that of the input
        ((4, 5, 6), (2, 2, 3), (2, 2, 3), (4, 5, 6)),
    ],
)
def test_max_unpool(size, k, s, output_size):
    spatial = len(size)
    x = to_torch(normals((2, *size, 3)), spatial)
    pooled, indices = torch_op("max_pool", spatial)(x, k, s, return_indices=True)
    values = from_torch(pooled, spatial)
    (theirs,), expected = torch_run(
        lambda v: torch_op("max_unpool", spatial)(
            v, indices, k, s, output_size=output_size
        ),
        values,
        normals,
        spatial,
    )
    shape = theirs.shape[1:-1]
    index = from_torch(indices, spatial).astype(np.int32)
    (y,), gradient = jax_run(
        lambda v: jaxpool.max_unpool(v, index, shape), values, normals
    )
    equal(y, theirs)
    equal(gradient, expected)
    assert np.count_nonzero(y) == values.size


# Half precision: PyTorch adds in float32 too and rounds once.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    x = np.abs(normals((2, 18, 20, 2))) + 0.5
    ours, theirs = jnp.asarray(x, dtype), to_torch(x, 2).to(getattr(torch, dtype))

    @functools.partial(jax.jit, static_argnums=(1, 2, 3))
    def pools(x, *arguments):
        argmax = jaxpool.max_pool_with_argmax(x, *arguments)
        return argmax, jaxpool.avg_pool(x, *arguments)

    for k, s, p in ((2, 2, 0), (3, 2, 1), (7, 5, 3), (16, 1, 0)):
        arguments = ((k, k), (s, s), p)
        y, index = pools(ours, *arguments)[0]
        expected, at = F.max_pool2d(theirs, *arguments, return_indices=True)
        assert y.dtype == dtype
        equal(y.astype(jnp.float32), from_torch(expected.float(), 2))
        equal(index, from_torch(at, 2))
        y = pools(ours, *arguments)[1]
        expected = from_torch(F.avg_pool2d(theirs, *arguments).float(), 2)
        assert y.dtype == dtype
        # Float32 sums in another order: at most one step of the half-precision dtype.
        step = float(jnp.finfo(dtype).eps)
        y = np.asarray(y, np.float32)
        np.testing.assert_allclose(y, expected, rtol=step, atol=0, err_msg=str(k))
        assert np.mean(y == expected) > 0.99, k


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adaptive(dtype):
    x = np.abs(normals((2, 17, 20, 2))) + 0.5
    ours, theirs = jnp.asarray(x, dtype), to_torch(x, 2).to(getattr(torch, dtype))
    y, index = jax.jit(jaxpool.adaptive_max_pool_with_argmax, static_argnums=1)(
        ours, (5, 4)
    )
    expected, at = F.adaptive_max_pool2d(theirs, (5, 4), return_indices=True)
    equal(y.astype(jnp.float32), from_torch(expected.float(), 2))
    equal(index, from_torch(at, 2))
    y = jax.jit(jaxpool.adaptive_avg_pool, static_argnums=1)(ours, (5, 4))
    expected = from_torch(F.adaptive_avg_pool2d(theirs, (5, 4)).float(), 2)
    assert y.dtype == dtype
    step = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=step, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gradient_of_the_maximum(dtype):
    x = normals((2, 8, 8, 2))
    cotangent = small_integers((2, 4, 4, 2))
    _, pullback = jax.vjp(
        lambda x: jaxpool.max_pool(x, (3, 3), (2, 2), 1), jnp.asarray(x, dtype)
    )
    theirs = to_torch(x, 2).to(getattr(torch, dtype)).requires_grad_()
    y = F.max_pool2d(theirs, 3, 2, 1)
    y.backward(to_torch(cotangent, 2).to(y.dtype))
    (gradient,) = pullback(jnp.asarray(cotangent, dtype))
    equal(gradient.astype(jnp.float32), from_torch(theirs.grad.float(), 2))
