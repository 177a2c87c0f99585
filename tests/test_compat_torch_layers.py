"""`compat.torch.convert` of the pooling layers of timm, kornia and antialiased-cnns.

Where these are not installed, stand-ins with their names, attributes and formulas are
converted in their place.
"""

import importlib
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpool
from jaxpool.compat import torch as ours
from jaxpool.compat._torch_modules import _CONVERTERS

torch = pytest.importorskip("torch")
N, F = torch.nn, torch.nn.functional
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def flax_promotes():
    """Flax itself mixes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def binomial(size):
    row = torch.tensor([float(math.comb(size - 1, k)) for k in range(size)])
    return row / row.sum()


class Blur(N.Module):
    """A depthwise convolution by the binomial filter of a padded input."""

    def blurred(self, x, size, pads, mode):
        row = binomial(size)
        kernel = row if x.ndim == 3 else row[:, None] * row
        kernel = kernel.expand(x.shape[1], 1, *kernel.shape)
        x = F.pad(x, pads, mode=mode)
        conv = F.conv1d if x.ndim == 3 else F.conv2d
        return conv(x, kernel, stride=self.stride, groups=x.shape[1])


class BlurPool2d(Blur):  # timm
    def __init__(self, channels=None, filt_size=3, stride=2, pad_mode="reflect"):
        super().__init__()
        self.channels, self.filt_size, self.stride = channels, filt_size, stride
        self.pad_mode = pad_mode
        self.register_buffer("filt", torch.ones(1, 1, filt_size, filt_size))

    def forward(self, x):
        pad = (self.stride - 1 + self.filt_size - 1) // 2
        return self.blurred(x, self.filt_size, (pad,) * 4, self.pad_mode)


class BlurPoolND(Blur):  # antialiased-cnns
    def __init__(self, channels, pad_type="reflect", filt_size=4, stride=2, dims=2):
        super().__init__()
        self.channels, self.filt_size, self.stride = channels, filt_size, stride
        self.pad_off = 0
        self.pad_sizes = [(filt_size - 1) // 2, filt_size // 2] * dims
        pad = {"reflect": "Reflection", "replicate": "Replication", "zero": "Zero"}
        layer = f"{pad[pad_type]}Pad{dims}d"
        self.pad = getattr(N, layer)(self.pad_sizes)
        self.register_buffer("filt", torch.ones(channels, 1, *(filt_size,) * dims))

    def forward(self, x):
        return self.blurred(self.pad(x), self.filt_size, (0, 0), "constant")


class BlurPool1D(BlurPoolND):
    def __init__(self, channels, filt_size=3):
        super().__init__(channels, filt_size=filt_size, dims=1)


class BlurPool(BlurPoolND):
    pass


class BlurPool2D(Blur):  # kornia
    def __init__(self, kernel_size, stride=2):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x):
        low, high = (self.kernel_size - 1) // 2, self.kernel_size // 2
        return self.blurred(x, self.kernel_size, (low, high) * 2, "constant")


class MaxBlurPool2D(BlurPool2D):
    def __init__(self, kernel_size, stride=2, max_pool_size=2):
        super().__init__(kernel_size, stride)
        self.max_pool_size, self.ceil_mode = max_pool_size, False

    def forward(self, x):
        return super().forward(F.max_pool2d(x, self.max_pool_size, 1))


def median(x, kernel, stride, pads, mode):
    x = F.pad(x, pads, mode=mode)
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), 2):
        x = x.unfold(axis, k, s)
    return x.flatten(-2).median(-1).values


class MedianBlur(N.Module):
    def __init__(self, kernel_size, border_type="reflect"):
        super().__init__()
        self.kernel_size, self.border_type = kernel_size, border_type

    def forward(self, x):
        h, w = ((k - 1) // 2 for k in self.kernel_size)
        return median(x, self.kernel_size, (1, 1), (w, w, h, h), self.border_type)


class MedianPool2d(N.Module):  # timm
    def __init__(self, kernel_size=3, stride=1, padding=0, same=False):
        super().__init__()
        self.k, self.stride = (np.broadcast_to(a, 2) for a in (kernel_size, stride))
        self.k, self.stride = tuple(map(int, self.k)), tuple(map(int, self.stride))
        self.padding, self.same = tuple(np.broadcast_to(padding, 4)), same
        self.padding = tuple(map(int, self.padding))

    def forward(self, x):
        pads = self.padding
        if self.same:
            sizes = zip(x.shape[2:], self.k, self.stride, strict=True)
            needs = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sizes]
            (t, b), (le, r) = ((n // 2, n - n // 2) for n in needs)
            pads = (le, r, t, b)
        return median(x, self.k, self.stride, pads, "reflect")


class LsePlus2d(N.Module):
    dims = (2, 3)

    def __init__(self, r=10.0, r_learnable=True, flatten=True):
        super().__init__()
        self.r = N.Parameter(torch.tensor(r), requires_grad=r_learnable)
        self.flatten = flatten

    def forward(self, x):
        count = math.prod(x.shape[a] for a in self.dims)
        y = torch.logsumexp(self.r * x, self.dims, keepdim=not self.flatten)
        return (y - math.log(count)) / self.r


class LsePlus1d(LsePlus2d):
    dims = (1,)

    def __init__(self, r=10.0, r_learnable=True):
        super().__init__(r, r_learnable)


def combined(name, mean, highest, axis):
    return {
        "Avg": lambda: mean,
        "Max": lambda: highest,
        "AvgMax": lambda: (mean + highest) / 2,
        "CatAvgMax": lambda: torch.cat((mean, highest), axis),
    }[name]()


class Fast(N.Module):
    def __init__(self, flatten=False, input_fmt="NCHW"):
        super().__init__()
        self.flatten = flatten
        dims = {"NCHW": (2, 3), "NHWC": (1, 2), "NCL": (2,), "NLC": (1,)}[input_fmt]
        self.channels = 1 if flatten or dims[0] == 2 else -1
        dim = "dim_reduce" if "Cat" in type(self).__name__ else "dim"
        setattr(self, dim, dims)

    def forward(self, x):
        dims = getattr(self, "dim", None) or self.dim_reduce
        pair = (f(x, dims, keepdim=not self.flatten) for f in (torch.mean, torch.amax))
        name = type(self).__name__.removeprefix("FastAdaptive").removesuffix("Pool")
        return combined(name, *pair, self.channels)


class Adaptive(N.Module):
    def __init__(self, output_size=1):
        super().__init__()
        self.output_size = output_size

    def forward(self, x):
        pools = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
        name = type(self).__name__.removeprefix("Adaptive").removesuffix("Pool2d")
        return combined(name, *(pool(x, self.output_size) for pool in pools), 1)


KINDS = ("Avg", "Max", "AvgMax", "CatAvgMax")
FAST = {kind.lower(): type(f"FastAdaptive{kind}Pool", (Fast,), {}) for kind in KINDS}
GIVEN_SIZE = {
    kind.lower(): type(f"Adaptive{kind}Pool2d", (Adaptive,), {}) for kind in KINDS
}


class SelectAdaptivePool2d(N.Module):
    def __init__(
        self, output_size=1, pool_type="fast", flatten=False, input_fmt="NCHW"
    ):
        super().__init__()
        self.pool_type = pool_type
        name = self.pool_type.lower()
        self.pool, self.flatten = N.Identity(), N.Identity()
        if name.startswith("fast") or (name and input_fmt != "NCHW"):
            fast = FAST[name.removeprefix("fast") or "avg"]
            self.pool = fast(flatten, input_fmt)
        else:
            self.pool = GIVEN_SIZE[name](output_size) if name else N.Identity()
            self.flatten = N.Flatten(1) if flatten else N.Identity()

    def forward(self, x):
        return self.flatten(self.pool(x))


timm = SimpleNamespace(
    **{c.__name__: c for c in (*FAST.values(), *GIVEN_SIZE.values())},
    **{c.__name__: c for c in (BlurPool2d, MedianPool2d, LsePlus1d, LsePlus2d)},
    SelectAdaptivePool2d=SelectAdaptivePool2d,
)
kornia = SimpleNamespace(
    BlurPool2D=BlurPool2D, MaxBlurPool2D=MaxBlurPool2D, MedianBlur=MedianBlur
)
antialiased = SimpleNamespace(
    BlurPool=BlurPool, BlurPool1D=BlurPool1D, BlurPoolND=BlurPoolND
)
STAND_INS = {"timm": timm, "kornia": kornia, "antialiased_cnns": antialiased}
# Where the classes are, in the order in which they are looked for.
HOMES = {
    "timm": [
        "timm.layers",
        "timm.layers.adaptive_avgmax_pool",
        "timm.layers.median_pool",
    ],
    "kornia": ["kornia.filters"],
    "antialiased_cnns": ["antialiased_cnns.blurpool"],
}
FIRST = (2, 3, 8, 9)
# Library, class, arguments, and the shape of the input.
LAYERS = [
    *(
        ("timm", "SelectAdaptivePool2d", (1, name, flatten), FIRST)
        for name in ("fast", *(f"fast{k.lower()}" for k in KINDS), "FastMax")
        for flatten in (False, True)
    ),
    *(
        ("timm", "SelectAdaptivePool2d", (1, name, flatten, "NHWC"), (2, 8, 9, 3))
        for name in ("fast", "fastcatavgmax", "avg", "max")
        for flatten in (False, True)
    ),
    *(
        ("timm", "SelectAdaptivePool2d", (size, name, flatten), FIRST)
        for name in ("avg", "max", "avgmax", "catavgmax")
        for size, flatten in ((1, True), ((3, 2), False), ((3, 2), True))
    ),
    ("timm", "SelectAdaptivePool2d", (), FIRST),
    ("timm", "SelectAdaptivePool2d", (1, "", False), FIRST),
    ("timm", "SelectAdaptivePool2d", (1, "", True), FIRST),
    *(("timm", f"FastAdaptive{kind}Pool", (True,), FIRST) for kind in KINDS),
    ("timm", "FastAdaptiveCatAvgMaxPool", (False, "NLC"), (2, 9, 3)),
    ("timm", "FastAdaptiveAvgMaxPool", (True, "NCL"), (2, 3, 9)),
    ("timm", "AdaptiveAvgMaxPool2d", (3,), FIRST),
    ("timm", "AdaptiveCatAvgMaxPool2d", ((2, 3),), FIRST),
    ("timm", "BlurPool2d", (), FIRST),
    ("timm", "BlurPool2d", (3, 5, 2), FIRST),
    ("timm", "BlurPool2d", (None, 4, 3, "constant"), FIRST),
    ("timm", "BlurPool2d", (3, 2, 1, "replicate"), FIRST),
    ("timm", "BlurPool2d", (3, 3, 2, "circular"), FIRST),
    ("timm", "MedianPool2d", (), FIRST),
    ("timm", "MedianPool2d", ((3, 2), (2, 1), (2, 1, 0, 1)), FIRST),
    ("timm", "MedianPool2d", (3, 2, 0, True), FIRST),
    ("timm", "LsePlus2d", (4.0,), FIRST),
    ("timm", "LsePlus2d", (10.0, False, False), FIRST),
    ("timm", "LsePlus1d", (4.0,), (2, 9, 3)),
    ("kornia", "BlurPool2D", (3,), FIRST),
    ("kornia", "BlurPool2D", (4, 3), FIRST),
    ("kornia", "MaxBlurPool2D", (3, 2, 3), FIRST),
    ("kornia", "EdgeAwareBlurPool2D", (3, 1.5, 5), FIRST),
    ("kornia", "MedianBlur", ((3, 5),), FIRST),
    ("kornia", "MedianBlur", ((3, 3), "constant"), FIRST),
    ("kornia", "MedianBlur", ((3, 3), "replicate"), FIRST),
    ("antialiased_cnns", "BlurPool", (3,), FIRST),
    ("antialiased_cnns", "BlurPool", (3, "zero", 3, 3), FIRST),
    ("antialiased_cnns", "BlurPoolND", (3, "replicate", 5), FIRST),
    ("antialiased_cnns", "BlurPoolND", (3, "reflect", 1), FIRST),
    ("antialiased_cnns", "BlurPool1D", (3,), (2, 3, 9)),
]


def found(library, name):
    """The class, in the library or as a stand-in."""
    for home in HOMES[library]:
        try:
            return getattr(importlib.import_module(home), name)
        except (ImportError, AttributeError):
            continue
    if not hasattr(STAND_INS[library], name):
        pytest.skip(f"{library} is not installed")
    return getattr(STAND_INS[library], name)


def agree(actual, expected, channels_last=False):
    expected = expected.detach().numpy()
    if channels_last and expected.ndim > 2:
        expected = np.moveaxis(expected, 1, -1)
    assert actual.shape == expected.shape
    # Sums of up to 72 float32 numbers of the order of 1.
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


def named(case):
    return f"{case[1]}{case[2]}"


def called(module, framework, x):
    if framework == "nnx":
        return module(x)
    return module.apply(module.init(jax.random.key(0), x), x)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
@pytest.mark.parametrize("case", LAYERS, ids=named)
def test_converted_layer(case, framework):
    library, name, arguments, shape = case
    layer = found(library, name)(*arguments)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x = np.exp(x) if "Edge" in name else x
    expected = layer(torch.from_numpy(x))
    agree(called(ours.convert(layer, framework=framework), framework, x), expected)

    def last():
        return ours.convert(layer, framework=framework, channels_last=True)

    if shape[1] != 3:  # it takes channels last itself
        agree(called(last(), framework, x), expected)
    elif np.prod(expected.shape[1:]) > 6 and expected.ndim == 2:
        with pytest.raises(ValueError, match="`channels_last` must be False where"):
            last()
    else:
        y = called(last(), framework, np.moveaxis(x, 1, -1))
        agree(y, expected, channels_last=True)


@pytest.mark.parametrize("learned", [False, True])
def test_lse_is_learned_as_in_timm(learned):
    layer = found("timm", "LsePlus2d")(3.0, learned)
    module = ours.convert(layer)
    assert isinstance(module.r, nnx.Param) == learned


# Classes with weights: their arrays go into `params` by name, docs/migration.md.
WITH_WEIGHTS = {
    *("AttentionPool2d", "RotAttentionPool2d", "AttentionPoolLatent"),
    *("AttentionPoolPrr", "SimPool1d", "SimPool2d", "TestTimePoolHead"),
}


PARTS = {"timm": ("Pool", "Lse", "Blur"), "kornia": ("Pool", "Median")}


@pytest.mark.parametrize("library", PARTS)
def test_every_pooling_class_is_known(library):
    for home in HOMES[library]:
        module = pytest.importorskip(home, exc_type=ImportError)
        for name, value in vars(module).items():
            if isinstance(value, type) and any(part in name for part in PARTS[library]):
                family = re.sub("[12]([dD])", r"N\1", name)
                assert family in _CONVERTERS or name in WITH_WEIGHTS, name


WRONG = [
    (type("BlurPool2d", (N.Module,), {})(), "attributes of the class"),
    (BlurPool2d(3, pad_mode="linear"), "`pad_mode` must be 'reflect', 'replicate'"),
    (SimpleNamespace(), "must be a pooling module of a known class"),
    (
        type("AttentionPool2d", (N.Module,), {})(),
        "must be a pooling module of a known class",
    ),
]


@pytest.mark.parametrize(("layer", "words"), WRONG, ids=str)
def test_convert_refuses(layer, words):
    with pytest.raises((TypeError, ValueError), match=words):
        ours.convert(layer)


def test_offsets_are_refused():
    layer = BlurPool(3)
    layer.pad_off = 1
    with pytest.raises(ValueError, match="`BlurPool`: `pad_off` must be at most 0"):
        ours.convert(layer)


def test_a_border_as_large_as_the_input_is_refused():
    pool = ours.convert(MedianPool2d(3, 1, 2))
    with pytest.raises(ValueError, match="`x` must have at least 3 elements along"):
        pool(jnp.ones((1, 1, 2, 2)))
    assert pool(jnp.ones((1, 1, 3, 3))).shape == (1, 1, 5, 5)


def test_nothing_is_computed_here():
    x = np.random.default_rng(0).normal(size=FIRST).astype(np.float32)
    blur = jaxpool.blur_pool(x, 2, convention="timm", axis=(-2, -1))
    np.testing.assert_array_equal(ours.convert(BlurPool2d())(x), blur)
