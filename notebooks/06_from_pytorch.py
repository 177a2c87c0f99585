# %% [markdown]
# # From PyTorch to jaxpool
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# Port a PyTorch network with its weights, in two steps: first the same calls on JAX
# arrays, then a native Flax model. After each step the outputs are compared. (Colab has
# PyTorch; elsewhere `pip install torch`, of which the CPU build is enough.)

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q jaxpool
    importlib.invalidate_caches()

# %%
import jax
import jax.numpy as jnp
import jaxpool as jp
import jaxpool.compat.torch as F
import numpy as np
import torch
from flax import nnx
from jax import lax
from jaxpool.nnx import AdaptiveAvgPool, AvgPool, MaxPool

# GPUs and TPUs round the factors of float32 products otherwise, and differ by that.
jax.config.update("jax_default_matmul_precision", "highest")


def to_jax(tensor):
    return jnp.asarray(tensor.detach().cpu().numpy())


def difference(ours, theirs):
    """The largest difference between an array and a tensor of the same shape."""
    theirs = theirs.detach().cpu().numpy()
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return f"{np.abs(np.asarray(ours) - theirs).max():.1e}"


# %% [markdown]
# ## A PyTorch network
#
# It has what makes porting hard: channels first, a pool that rounds up, one that does
# not count its padding, and a `flatten` before the dense layer.

# %%
torch.manual_seed(0)


class TorchNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(8, 16, 3, padding=1)
        self.pool1 = torch.nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.pool2 = torch.nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.pool3 = torch.nn.AdaptiveAvgPool2d((3, 3))
        self.head = torch.nn.Linear(16 * 3 * 3, 10)

    def forward(self, x):
        x = self.pool1(torch.relu(self.conv1(x)))
        x = self.pool2(torch.relu(self.conv2(x)))
        return self.head(self.pool3(x).flatten(1))


theirs = TorchNet().eval()
images = torch.randn(4, 3, 32, 32)
expected = theirs(images)
print(images.shape, "->", expected.shape)

# %% [markdown]
# ## Step 1: the same calls
#
# `jaxpool.compat.torch` has the pools of `torch.nn.functional`: the same names,
# arguments and defaults, for JAX arrays with channels first. Only imports change.

# %%
x = to_jax(images)
calls = {
    "max_pool2d(x, 2)": lambda F, x: F.max_pool2d(x, 2),
    "max_pool2d(x, 3, 2, ceil_mode=True)": lambda F, x: F.max_pool2d(
        x, 3, 2, ceil_mode=True
    ),
    "avg_pool2d(x, 3, 2, 1)": lambda F, x: F.avg_pool2d(x, 3, 2, 1),
    "lp_pool2d(x.abs(), 2.0, 3)": lambda F, x: F.lp_pool2d(abs(x), 2.0, 3),
    "adaptive_avg_pool2d(x, (5, 7))": lambda F, x: F.adaptive_avg_pool2d(x, (5, 7)),
}
for name, call in calls.items():
    ours, wanted = call(F, x), call(torch.nn.functional, images)
    print(f"{name:36} {ours.shape!s:16} off by {difference(ours, wanted)}")

# %% [markdown]
# Indices and unpooling go the same way:

# %%
values, indices = F.max_pool2d(x, 2, return_indices=True)
wanted = torch.nn.functional.max_pool2d(images, 2, return_indices=True)
print("values off by ", difference(values, wanted[0]))
print("indices off by", difference(indices, wanted[1]))
unpooled = torch.nn.functional.max_unpool2d(*wanted, 2)
print("unpooled off by", difference(F.max_unpool2d(values, indices, 2), unpooled))

# %% [markdown]
# Modules with their settings are turned into Flax's by `convert`. So the whole network,
# in PyTorch's layout and with PyTorch's weights, is:

# %%
pool1, pool2, pool3 = map(F.convert, (theirs.pool1, theirs.pool2, theirs.pool3))
weights = {name: to_jax(tensor) for name, tensor in theirs.named_parameters()}


def conv(x, name):
    y = lax.conv(x, weights[f"{name}.weight"], (1, 1), "SAME")
    return y + weights[f"{name}.bias"][:, None, None]


def ported(x):
    x = pool1(nnx.relu(conv(x, "conv1")))
    x = pool2(nnx.relu(conv(x, "conv2")))
    x = pool3(x).reshape(len(x), -1)
    return x @ weights["head.weight"].T + weights["head.bias"]


print("logits off by", difference(jax.jit(ported)(x), expected))
print(pool1)

# %% [markdown]
# ## Step 2: a Flax model
#
# Flax's layers have channels last, and so have jaxpool's pools unless `axis=` says
# otherwise. Three things differ from what a PyTorch user expects:
#
# - strides default to 1, not to the window;
# - a convolution's kernel is `[H, W, in, out]`, not `[out, in, H, W]`;
# - `reshape` flattens `[H, W, C]`, not `[C, H, W]`, so the dense layer's rows move.


# %%
class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.pool1 = MaxPool((3, 3), strides=(2, 2), ceil_mode=True)
        self.pool2 = AvgPool((3, 3), (2, 2), 1, count_include_pad=False)
        self.pool3 = AdaptiveAvgPool((3, 3))
        self.head = nnx.Linear(16 * 3 * 3, 10, rngs=rngs)

    def __call__(self, x):
        x = self.pool1(nnx.relu(self.conv1(x)))
        x = self.pool2(nnx.relu(self.conv2(x)))
        return self.head(self.pool3(x).reshape(len(x), -1))


model = Net(nnx.Rngs(0))
for layer in ("conv1", "conv2"):
    kernel = weights[f"{layer}.weight"].transpose(2, 3, 1, 0)
    getattr(model, layer).kernel[...] = kernel
    getattr(model, layer).bias[...] = weights[f"{layer}.bias"]

dense = weights["head.weight"].reshape(10, 16, 3, 3)  # [out, C, H, W]
model.head.kernel[...] = dense.transpose(2, 3, 1, 0).reshape(-1, 10)  # [H W C, out]
model.head.bias[...] = weights["head.bias"]

last = x.transpose(0, 2, 3, 1)  # [N, H, W, C]
print("logits off by", difference(nnx.jit(model)(last), expected))

# %% [markdown]
# **Trap: the dense layer without that move.** It has the right shape, and nothing
# complains:

# %%
wrong = nnx.clone(model)
wrong.head.kernel[...] = weights["head.weight"].T
print("logits off by", difference(wrong(last), expected))

# %% [markdown]
# Where the rest of a program keeps channels first, the native functions do too:

# %%
y = jp.max_pool(x, 3, strides=2, ceil_mode=True, axis=(-2, -1))
print("channels first, off by", difference(y, theirs.pool1(images)))

# %% [markdown]
# ## Gradients
#
# The same images, and the gradient of one logit in both:

# %%
images.requires_grad_(True)
theirs(images)[:, 3].sum().backward()
gradient = jax.grad(lambda x: model(x)[:, 3].sum())(last)
print("gradient off by", difference(gradient.transpose(0, 3, 1, 2), images.grad))

# %% [markdown]
# ## Where the two differ on purpose
#
# In corners that PyTorch leaves undefined, or gets wrong. All of them:

# %%
for each in F.DIFFERENCES:
    print(f"{each.what}\n  PyTorch: {each.theirs}\n  jaxpool: {each.ours}\n")

# %% [markdown]
# [Coming from another framework](../docs/migration.md) has the line for every pooling
# class and function of PyTorch, and of eight more frameworks.
