"""Models ported from PyTorch train as they do there: one for each family of pools.

Each is a small member of its family, written in PyTorch and in Flax NNX with the same
weights. After three steps of gradient descent the losses of all steps agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpool as jp
import jaxpool.nnx as jpn

pytestmark = pytest.mark.usefixtures("quick_compilation")

torch = pytest.importorskip("torch")
tnn, F = torch.nn, torch.nn.functional

STEPS, RATE, SIZE = 3, 0.1, 16


@pytest.fixture(autouse=True)
def flax_promotes():
    """Flax itself mixes dtypes and ranks."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def conv(inputs, outputs, size=3, **more):
    """A convolution with bias that keeps height and width."""
    kernel = (size, size)
    return nnx.Conv(
        inputs, outputs, kernel, padding=size // 2, rngs=nnx.Rngs(0), **more
    )


def tconv(inputs, outputs, size=3, **more):
    return tnn.Conv2d(inputs, outputs, size, padding=size // 2, **more)


class SegNet(nnx.Module):
    """Pools with indices on the way down, unpools with them on the way up."""

    def __init__(self):
        self.down = nnx.List([conv(3, 8), conv(8, 12)])
        self.up = nnx.List([conv(12, 8), conv(8, 5)])

    def __call__(self, x):
        taken = []
        for layer in self.down:
            x = nnx.relu(layer(x))
            size = x.shape[1:3]
            x, indices = jp.max_pool_with_argmax(x, (2, 2), (2, 2))
            taken.append((indices, size))
        for layer, (indices, size) in zip(self.up, taken[::-1], strict=True):
            x = layer(jp.max_unpool(x, indices, size))
        return x.mean((1, 2))


class TorchSegNet(tnn.Module):
    def __init__(self):
        super().__init__()
        self.down = tnn.ModuleList([tconv(3, 8), tconv(8, 12)])
        self.up = tnn.ModuleList([tconv(12, 8), tconv(8, 5)])

    def forward(self, x):
        taken = []
        for layer in self.down:
            x, indices = F.max_pool2d(F.relu(layer(x)), 2, return_indices=True)
            taken.append(indices)
        for layer, indices in zip(self.up, taken[::-1], strict=True):
            x = layer(F.max_unpool2d(x, indices, 2))
        return x.mean((-2, -1))


class SPPF(nnx.Module):
    """YOLO's block: three 5x5 maxima, one after the other, all of them kept."""

    def __init__(self):
        self.reduce, self.merge = conv(3, 6, 1), conv(24, 5, 1)

    def __call__(self, x):
        parts = [nnx.silu(self.reduce(x))]
        for _ in range(3):
            parts.append(jp.max_pool(parts[-1], (5, 5), padding=2))
        return self.merge(jnp.concatenate(parts, -1)).mean((1, 2))


class TorchSPPF(tnn.Module):
    def __init__(self):
        super().__init__()
        self.reduce, self.merge = tconv(3, 6, 1), tconv(24, 5, 1)
        self.pool = tnn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x):
        parts = [F.silu(self.reduce(x))]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.merge(torch.cat(parts, 1)).mean((-2, -1))


class MobileNet(nnx.Module):
    """A separable convolution, and the global mean before the classifier."""

    def __init__(self):
        self.stem = conv(3, 8)
        self.depth = conv(8, 8, feature_group_count=8)
        self.point = conv(8, 12, 1)
        self.pool = jpn.GlobalAvgPool()
        self.head = nnx.Linear(12, 5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = jax.nn.relu6(self.stem(x))
        return self.head(self.pool(jax.nn.relu6(self.point(self.depth(x)))))


class TorchMobileNet(tnn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depth = tconv(3, 8), tconv(8, 8, groups=8)
        self.point, self.head = tconv(8, 12, 1), tnn.Linear(12, 5)

    def forward(self, x):
        x = F.relu6(self.point(self.depth(F.relu6(self.stem(x)))))
        return self.head(tnn.AdaptiveAvgPool2d(1)(x).flatten(1))


class BlurNet(nnx.Module):
    """A residual network whose strides are anti-aliased."""

    def __init__(self):
        self.stem, self.block, self.skip = conv(3, 8), conv(8, 12), conv(8, 12, 1)
        self.blur = jpn.BlurPool((2, 2), convention="timm")
        self.head = nnx.Linear(12, 5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = jp.max_pool(nnx.relu(self.stem(x)), (3, 3), padding=1)
        x = self.blur(x)
        x = nnx.relu(self.blur(nnx.relu(self.block(x))) + self.skip(self.blur(x)))
        return self.head(jp.global_avg_pool(x))


class TorchBlurNet(tnn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.skip = tconv(3, 8), tconv(8, 12), tconv(8, 12, 1)
        self.head = tnn.Linear(12, 5)

    @staticmethod
    def blur(x):
        row = torch.tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, kernel, stride=2, groups=x.shape[1])

    def forward(self, x):
        x = self.blur(F.max_pool2d(F.relu(self.stem(x)), 3, stride=1, padding=1))
        x = F.relu(self.blur(F.relu(self.block(x))) + self.skip(self.blur(x)))
        return self.head(x.mean((-2, -1)))


class CLIPNet(nnx.Module):
    """Attention among the pixels of a small map, in which their mean asks."""

    def __init__(self):
        self.stem = conv(3, 8)
        self.pool = jpn.CLIPAttentionPool(
            8, num_heads=2, position_shape=(8, 8), fused=True, rngs=nnx.Rngs(0)
        )
        self.head = nnx.Linear(8, 5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(self.pool(jp.avg_pool(nnx.relu(self.stem(x)), (2, 2), (2, 2))))


class TorchCLIPNet(tnn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = tconv(3, 8), tnn.Linear(8, 5)
        self.positions = tnn.Parameter(torch.randn(65, 8) / 8**0.5)
        self.attention = tnn.MultiheadAttention(8, 2)
        tnn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.stem(x)), 2).flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x]) + self.positions[:, None]
        return self.head(self.attention(x[:1], x, x, need_weights=False)[0][0])


# What CLIP's pool calls the arrays of PyTorch's attention.
ATTENTION = {
    "qkv_kernel": "attention.in_proj_weight",
    "qkv_bias": "attention.in_proj_bias",
    "out_kernel": "attention.out_proj.weight",
    "out_bias": "attention.out_proj.bias",
    "positions": "positions",
}

FAMILIES = {
    "max-unpooling (SegNet)": (SegNet, TorchSegNet),
    "pyramid (YOLO's SPPF)": (SPPF, TorchSPPF),
    "global head (MobileNet)": (MobileNet, TorchMobileNet),
    "blur (anti-aliased ResNet)": (BlurNet, TorchBlurNet),
    "attention (CLIP's head)": (CLIPNet, TorchCLIPNet),
}


def copy(theirs, ours):
    """Copies a PyTorch model's weights into its NNX twin, whose names are the same."""
    given = dict(theirs.named_parameters())
    for path, leaf in nnx.to_flat_state(nnx.state(ours, nnx.Param)):
        *names, last = path
        name = ".".join([*map(str, names), "bias" if last == "bias" else "weight"])
        weight = given.pop(ATTENTION.get(last, name)).detach().numpy()
        if last.endswith("kernel"):  # [O, I, ...] to [..., I, O]
            weight = np.moveaxis(weight, (0, 1), (-1, -2))
        assert leaf.shape == weight.shape, path
        leaf[...] = jnp.array(weight)
    assert not given


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps(family):
    ours, theirs = (build() for build in FAMILIES[family])
    torch.manual_seed(0)
    copy(theirs, ours)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, 5, 4)

    optimizer = nnx.Optimizer(ours, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            logits = model(x)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.asarray(labels)
            ).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(ours, optimizer)) for _ in range(STEPS)]
    descent = torch.optim.SGD(theirs.parameters(), lr=RATE)
    expected = []
    for _ in range(STEPS):
        descent.zero_grad()
        logits = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
        loss = F.cross_entropy(logits, torch.from_numpy(labels))
        loss.backward()
        descent.step()
        expected.append(loss.item())
    assert expected[-1] < expected[0]
    # Sums of some hundred float32 products, in another order, three steps on.
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
