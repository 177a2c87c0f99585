"""The ops that timm and kornia define, against them, values and gradients.

Both sides add the same float32 terms in different orders: results of the order of 1
that are sums of up to 81 terms agree within a few units of 6e-8.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("quick_compilation")
CLOSE = {"rtol": 3e-6, "atol": 3e-6}
FIRST = {"axis": (-2, -1)}  # channels first


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.fixture
def kornia():
    pytest.importorskip("kornia")
    return pytest.importorskip("kornia.filters.blur_pool")


def agree(ours, theirs, x):
    """Compares values, and gradients of a sum with random weights."""
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf)
    actual, pull = jax.vjp(jax.jit(ours), jnp.asarray(x))
    assert actual.shape == tuple(expected.shape)
    np.testing.assert_allclose(actual, expected.detach().numpy(), **CLOSE)
    weights = np.random.default_rng(1).normal(size=actual.shape).astype(np.float32)
    expected.backward(torch.tensor(weights))
    (gradient,) = pull(jnp.asarray(weights))
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), **CLOSE)


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_timm_blur(timm, size, stride, mode):
    theirs = timm.layers.BlurPool2d(filt_size=size, stride=stride, pad_mode=mode)
    ours = functools.partial(
        jaxpool.blur_pool,
        strides=(stride, stride),
        filter_size=size,
        convention="timm",
        mode=mode,
        **FIRST,
    )
    agree(ours, theirs, data(2, 3, 9, 8))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_kornia_blur(kornia, size, stride):
    blur = {"filter_size": size, "mode": "constant", **FIRST}
    steps = (stride, stride)
    x = data(2, 3, 9, 8)
    agree(
        lambda x: jaxpool.blur_pool(x, steps, **blur),
        lambda x: kornia.blur_pool2d(x, size, stride),
        x,
    )
    agree(
        lambda x: jaxpool.max_blur_pool(x, (2, 2), steps, **blur),
        lambda x: kornia.max_blur_pool2d(x, size, stride, 2),
        x,
    )


@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("spread", [1, 3])
@pytest.mark.parametrize("threshold", [1.25, 4.0])
@pytest.mark.parametrize("signed", [False, True])
def test_kornia_edge_aware_blur(kornia, size, spread, threshold, signed):
    x = data(2, 2, 12, 11)
    # Smooth along the rows, so that both branches are taken.
    x = np.cumsum(x, -1) * 0.1
    x = x if signed else np.exp(x)
    agree(
        lambda x: jaxpool.edge_aware_blur_pool(
            x,
            (size, size),
            edge_threshold=threshold,
            edge_dilation_kernel_size=spread,
            **FIRST,
        ),
        lambda x: kornia.edge_aware_blur_pool2d(x, size, threshold, spread),
        x,
    )


@pytest.mark.parametrize("kernel", [2, 3, (3, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_timm_median(timm, kernel, stride, padding):
    from timm.layers.median_pool import MedianPool2d

    window = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = data(2, 3, 9, 8)  # all different: no ties
    if padding == "same":
        theirs = MedianPool2d(kernel, stride, same=True)
        rests = [n % stride or stride for n in x.shape[2:]]
        needs = [max(k - r, 0) for k, r in zip(window, rests, strict=True)]
        widths = [(0, 0), (0, 0), *((n // 2, n - n // 2) for n in needs)]
    else:
        theirs = MedianPool2d(kernel, stride, padding)
        widths = [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2]

    def ours(x):
        x = jnp.pad(x, widths, mode="reflect")
        return jaxpool.median_pool(x, window, (stride, stride), **FIRST)

    agree(ours, theirs, x)


@pytest.mark.parametrize("r", [0.5, 10.0])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_timm_lse(timm, r, scale):
    from timm.layers.other_pool import LsePlus1d, LsePlus2d

    ours = functools.partial(jaxpool.global_lse_pool, r=r)
    x = data(2, 3, 5, 6) * np.float32(scale)
    agree(functools.partial(ours, **FIRST), LsePlus2d(r=r), x)
    agree(functools.partial(ours, axis=1), LsePlus1d(r=r), data(2, 9, 4))
    windowed = functools.partial(jaxpool.lse_pool, window_shape=(5, 6), r=r, **FIRST)
    agree(windowed, lambda x: LsePlus2d(r=r, flatten=False)(x), x)
    # The derivative in r too.
    module = LsePlus2d(r=r)
    module(torch.tensor(x)).sum().backward()
    gradient = jax.grad(lambda r: jaxpool.global_lse_pool(x, r=r, **FIRST).sum())(r)
    np.testing.assert_allclose(gradient, module.r.grad.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["avg", "max", "avgmax", "catavgmax", ""])
@pytest.mark.parametrize("size", [1, (3, 2)])
@pytest.mark.parametrize("flatten", [False, True])
def test_timm_select(timm, name, size, flatten):
    theirs = timm.layers.SelectAdaptivePool2d(size, name, flatten)
    ours = functools.partial(
        jaxpool.select_adaptive_pool,
        output_shape=size,
        pool_type=name,
        flatten=flatten,
        **FIRST,
    )
    agree(ours, theirs, data(2, 3, 7, 9))
    assert jaxpool.feature_multiplier(name) == theirs.feat_mult()


@pytest.mark.parametrize(
    "name", ["fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax"]
)
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_timm_select_fast(timm, name, flatten, layout):
    theirs = timm.layers.SelectAdaptivePool2d(1, name, flatten, layout)
    ours = functools.partial(
        jaxpool.select_adaptive_pool,
        pool_type=name,
        flatten=flatten,
        **(FIRST if layout == "NCHW" else {}),
    )
    agree(ours, theirs, data(*((2, 3, 7, 9) if layout == "NCHW" else (2, 7, 9, 3))))
    assert jaxpool.feature_multiplier(name) == theirs.feat_mult()


def test_timm_test_time_head(timm):
    from timm.layers.test_time_pool import TestTimePoolHead

    class Base(torch.nn.Module):
        num_features, num_classes = 3, 5

        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 5)

        def get_classifier(self):
            return self.fc

        def reset_classifier(self, classes):
            del classes

        def forward_features(self, x):
            return x

    base = Base()
    kernel, bias = (p.detach().numpy() for p in (base.fc.weight.T, base.fc.bias))
    ours = functools.partial(
        jaxpool.dense_head_pool, window_shape=(4, 4), classifier=(kernel, bias), **FIRST
    )
    agree(ours, TestTimePoolHead(base, 4), data(2, 3, 7, 6))
