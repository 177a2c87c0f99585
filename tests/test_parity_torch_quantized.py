"""The integers of PyTorch's quantized pools on the CPU, one by one.

Everything is compared exactly: a rounding too many shows where means are halves. The
inputs are small, so that many are.
"""

import functools

import jax
import numpy as np
import pytest

import jaxpool
from jaxpool import QuantParams

torch = pytest.importorskip("torch")
QF = pytest.importorskip("torch.ao.nn.quantized.functional")

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao is on its way out

equal = np.testing.assert_array_equal

# A window, its strides, padding, ceil_mode, count_include_pad and divisor_override,
# and a zero point: fl(1/82) is not exact enough for halves near a zero point of 0.
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), False, True, None, np.int8, -3),
    ((3, 2), (2, 1), (1, 1), False, True, None, np.uint8, 123),
    ((4, 3), (3, 2), (2, 1), True, False, None, np.int8, 124),
    ((4, 3), (3, 2), (2, 1), True, True, None, np.int8, -128),
    ((2, 5), (1, 3), (1, 2), False, True, 20, np.uint8, 1),
    ((41, 2), (1, 1), (0, 0), False, True, None, np.int8, 0),
    ((41, 2), (1, 1), (20, 1), False, True, None, np.int8, 2),
]


def integers(shape, dtype):
    """Random ones of the whole range, and many of those at its ends."""
    rng, limits = np.random.default_rng(0), np.iinfo(dtype)
    q = rng.integers(limits.min, limits.max + 1, shape)
    ends = np.where(rng.random(shape) < 0.5, limits.min, limits.max)
    return np.where(rng.random(shape) < 0.1, ends, q).astype(dtype)


def in_torch(f, q, zero_point, memory_format=torch.contiguous_format):
    tensor = torch._make_per_tensor_quantized_tensor(
        torch.from_numpy(q), 0.37, zero_point
    )
    return f(tensor.contiguous(memory_format=memory_format)).int_repr().numpy()


@pytest.mark.parametrize(
    ("window", "strides", "padding", "ceil", "include", "divisor", "dtype", "zero"),
    WINDOWS,
    ids=str,
)
def test_avg_pool(window, strides, padding, ceil, include, divisor, dtype, zero):
    q = integers((4, 3, window[0] + 6, window[1] + 6), dtype)
    given = dict(padding=padding, ceil_mode=ceil, divisor_override=divisor)
    peer = functools.partial(
        QF.avg_pool2d,
        kernel_size=window,
        stride=strides,
        count_include_pad=include,
        **given,
    )
    ours = functools.partial(
        jaxpool.quantized_avg_pool,
        window_shape=window,
        strides=strides,
        params=QuantParams(0.37, zero, dtype),
        preset="torch",
        count_include_pad=include,
        axis=(-2, -1),
        **given,
    )
    expected = in_torch(peer, q, zero)
    equal(ours(q), expected)
    # Compiled as a whole, a product and a sum must not become one operation.
    equal(jax.jit(ours)(q), expected)
    # The same for as few channels as its vectorised kernels leave over.
    equal(in_torch(peer, q, zero, torch.channels_last), expected)


def test_avg_pool_of_volumes():
    q = integers((2, 3, 5, 6, 7), np.int8)
    ours = functools.partial(
        jaxpool.quantized_avg_pool,
        window_shape=(2, 3, 2),
        strides=(1, 2, 2),
        padding=(1, 1, 0),
        params=QuantParams(0.37, 7),
        preset="torch",
        axis=(-3, -2, -1),
    )
    peer = functools.partial(
        QF.avg_pool3d, kernel_size=(2, 3, 2), stride=(1, 2, 2), padding=(1, 1, 0)
    )
    equal(jax.jit(ours)(q), in_torch(peer, q, 7))


def test_its_vectorised_kernels_round_halves_otherwise():
    """Channels last and many of them, it adds the zero point after rounding."""
    q = integers((4, 64, 8, 8), np.int8)
    ours = functools.partial(
        jaxpool.quantized_avg_pool,
        window_shape=(2, 2),
        strides=(2, 2),
        preset="torch",
        axis=(-2, -1),
    )
    peer = functools.partial(QF.avg_pool2d, kernel_size=(2, 2))
    sums = q.reshape(4, 64, 4, 2, 4, 2).astype(int).sum((3, 5))
    for zero in (6, 7):
        y = in_torch(peer, q, zero, torch.channels_last)
        differs = np.asarray(ours(q, params=QuantParams(0.37, zero))) != y
        assert not np.any(differs & (sums % 4 != 2))
        assert np.all(np.abs(4 * y.astype(int) - sums) <= 2)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("sizes", [(14, 14), (9, 82)], ids=str)
def test_adaptive_and_global(sizes, dtype):
    q = integers((16, 3, *sizes), dtype)
    for output_shape in ((1, 1), (7, 2), (4, 5)):
        pool = functools.partial(
            jaxpool.quantized_adaptive_avg_pool,
            output_shape=output_shape,
            axis=(-2, -1),
        )
        peer = functools.partial(QF.adaptive_avg_pool2d, output_size=output_shape)
        expected = in_torch(peer, q, 5)
        equal(jax.jit(pool)(q), expected)
        if output_shape == (1, 1):
            y = jaxpool.quantized_global_avg_pool(
                q,
                params=QuantParams(0.37, 5, dtype),
                preset="torch",
                axis=(-2, -1),
                keepdims=True,
            )
            equal(y, expected)
    volumes = q[:, :, :9].reshape(16, 3, 3, 3, sizes[1])
    expected = in_torch(lambda t: QF.adaptive_avg_pool3d(t, (2, 1, 4)), volumes, 5)
    y = jaxpool.quantized_adaptive_avg_pool(volumes, (2, 1, 4), axis=(-3, -2, -1))
    equal(y, expected)


def test_max_pool():
    q = integers((2, 3, 9, 8), np.uint8)
    peer = functools.partial(
        QF.max_pool2d, kernel_size=(3, 2), stride=2, padding=1, dilation=(1, 2)
    )
    y = jaxpool.quantized_max_pool(
        q,
        (3, 2),
        strides=2,
        padding=1,
        window_dilation=(1, 2),
        axis=(-2, -1),
    )
    equal(y, in_torch(peer, q, 7))
