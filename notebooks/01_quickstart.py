# %% [markdown]
# # Quickstart
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# jaxpool is pooling for JAX and Flax. In five minutes: put it into a Flax model, pool
# arrays of any layout, leave out masked elements, differentiate, use modules, and see
# two things that go wrong elsewhere.

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q jaxpool
    importlib.invalidate_caches()

# %%
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxpool as jp
import numpy as np
from flax import nnx

print("jax", jax.__version__, "| flax", flax.__version__, "| jaxpool", jp.__version__)
print("devices:", jax.devices())

# %% [markdown]
# ## Instead of Flax's pools
#
# `max_pool`, `min_pool`, `avg_pool` and `pool` take Flax's arguments, with Flax's
# defaults. An existing model needs a new import, and no other edit.

# %%
x = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))  # [B, H, W, C]

for name in ("max_pool", "avg_pool"):
    ours, theirs = getattr(jp, name), getattr(nn, name)
    for padding in ("VALID", "SAME", ((1, 1), (1, 1))):
        y = ours(x, (3, 3), strides=(2, 2), padding=padding)
        z = theirs(x, (3, 3), strides=(2, 2), padding=padding)
        difference = float(jnp.abs(y - z).max())
        print(f"{name} {padding!s:16} {y.shape}  largest difference {difference:.1e}")

# %% [markdown]
# A model whose source you would rather not touch can be switched from outside:

# %%
import jaxpool.compat.flax


class TheirModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


their_model = TheirModel()
variables = their_model.init(jax.random.key(1), x)
before = their_model.apply(variables, x)
with jaxpool.compat.flax.use():  # within this block, nn.max_pool is jaxpool's
    after = their_model.apply(variables, x)
print("the same logits:", bool(jnp.allclose(before, after)))

# %% [markdown]
# **A trap that Flax's users know:** strides default to 1, not to the window. jaxpool
# keeps that, so that nothing changes silently when you replace the import.

# %%
print("strides not given:", jp.max_pool(x, (2, 2)).shape)
print("strides given:    ", jp.max_pool(x, (2, 2), strides=(2, 2)).shape)
print("asked beforehand: ", jp.output_shape(x.shape, (2, 2), strides=(2, 2)))

# %% [markdown]
# ## Any layout
#
# Channels come last, before them as many axes as the window has entries, and before
# those any number of batch axes, also none. `axis=` names the pooled axes of other
# layouts.

# %%
sound = jnp.ones((4, 100, 16))  # batch, time, channels
volume = jnp.ones((2, 8, 8, 8, 1))  # batch, depth, height, width, channels
video = jnp.ones((2, 5, 32, 32, 3))  # batch, frames, height, width, channels
torch_like = jnp.ones((8, 3, 32, 32))  # batch, channels, height, width

print("1-d:            ", jp.avg_pool(sound, (4,), (4,)).shape)
print("3-d:            ", jp.avg_pool(volume, (2, 2, 2), (2, 2, 2)).shape)
print("frame by frame: ", jp.avg_pool(video, (2, 2), (2, 2)).shape)
print("channels first: ", jp.avg_pool(torch_like, 2, 2, axis=(-2, -1)).shape)
print("whole height:   ", jp.max_pool(torch_like, None, axis=-2).shape)

# %% [markdown]
# A call that cannot be meant gets an error that says what to do. Flax returns an empty
# array for the second of these.

# %%
for window in (3, (64, 64)):
    try:
        jp.max_pool(x, window)
    except ValueError as error:
        print(error, "\n")
print("Flax, of the second:", nn.max_pool(x, (64, 64)).shape)

# %% [markdown]
# ## Masks
#
# With `where=`, only the elements that are True take part: here the means of sentences
# of different lengths, without what fills them up.

# %%
lengths = jnp.array([3, 5])
tokens = jnp.where(jnp.arange(5) < lengths[:, None], 1.0, 999.0)[..., None]
real = (jnp.arange(5) < lengths[:, None])[..., None]

print("with the filling:   ", jp.global_avg_pool(tokens).ravel())
print("without the filling:", jp.global_avg_pool(tokens, where=real).ravel())

# %% [markdown]
# ## Gradients
#
# Every pool has derivatives of every order, forward and backward. Of equal maxima the
# first is *the* maximum, for its index and for its gradient, in either mode.

# %%
ties = jnp.ones((2, 2, 1))


def total(x):
    return jp.max_pool(x, (2, 2)).sum()


print("index:  ", jp.max_pool_with_argmax(ties, (2, 2))[1].ravel())
print("jacrev: ", jax.jacrev(total)(ties).ravel())
print("jacfwd: ", jax.jacfwd(total)(ties).ravel())

# %% [markdown]
# `pool` takes any function of two arguments, as Flax's does. Products have a gradient
# too, which Flax's reduction of them has not:

# %%
numbers = jnp.array([2.0, 3.0, 5.0])[:, None]


def product(pool, x):
    return pool(x, 1.0, jax.lax.mul, (3,), (1,), "VALID").sum()


print("jaxpool:", jax.grad(lambda x: product(jp.pool, x))(numbers).ravel())
try:
    jax.grad(lambda x: product(nn.pool, x))(numbers)
except ValueError as error:
    print("Flax:   ", str(error).splitlines()[0])

# %% [markdown]
# ## Modules
#
# Each function is a module too, for NNX and for Linen: `max_pool` is `MaxPool`. Modules
# learn what can be learned. `GeMPool` is a power mean: p = 1 is the mean, and a large p
# is nearly the maximum. Here each channel learns its own p.

# %%
from jaxpool.nnx import GeMPool, MaxPool


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.pool = MaxPool((2, 2), strides=(2, 2))
        self.gem = GeMPool((16, 16), p=3.0, trainable=True, features=8)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = self.pool(nnx.relu(self.conv(x)))
        return self.head(self.gem(x)[:, 0, 0])


model = CNN(nnx.Rngs(0))
gradient = nnx.grad(lambda model: (model(x) ** 2).mean())(model)
print("logits:", model(x).shape)
print("p:     ", model.gem.p[...])
print("its gradient:", gradient.gem.p[...])

# %% [markdown]
# In Linen the same names are in `jaxpool.linen`:

# %%
from jaxpool.linen import GeMPool as LinenGeMPool

pool = LinenGeMPool((32, 32), trainable=True)
linen_model = nn.Sequential([nn.Conv(8, (3, 3)), pool])
variables = linen_model.init(jax.random.key(0), x)
print(jax.tree.map(jnp.shape, variables))

# %% [markdown]
# ## A mean that is a mean
#
# In half precision, a sum of many elements stops growing: the next element is smaller
# than the last digit. Flax's `avg_pool` adds up in the dtype of its input. jaxpool adds
# up in float32 and rounds once. The mean of numbers between 0 and 1, over 64 by 64
# pixels, in bfloat16:

# %%
pixels = jax.random.uniform(jax.random.key(0), (1, 64, 64, 1), jnp.bfloat16)

print("exact:  ", np.asarray(pixels, np.float64).mean())
print("jaxpool:", jp.avg_pool(pixels, (64, 64)).item())
print("Flax:   ", nn.avg_pool(pixels, (64, 64)).item())

# %% [markdown]
# ## NaN stays visible
#
# A NaN is not lost in a maximum: its window is NaN, and `max_pool_with_argmax` says
# where it came from. Where NaN means "missing", a mask leaves it out, of the gradient
# as well.

# %%
measured = jnp.array([1.0, jnp.nan, 3.0, 2.0])[:, None]
values, indices = jp.max_pool_with_argmax(measured, (2,), (2,))
print("maxima:", values.ravel(), "at", indices.ravel())


def known(x):
    return jp.avg_pool(x, (2,), (2,), where=~jnp.isnan(x))


print("means of what is known:", known(measured).ravel())
print("gradient:", jax.grad(lambda x: known(x).sum())(measured).ravel())

# %% [markdown]
# ## Where to go from here
#
# - [02_pooling_visualised](02_pooling_visualised.ipynb): what windows, padding and
#   methods do to a picture.
# - [03_stochastic_pooling](03_stochastic_pooling.ipynb): keys, and pools that draw.
# - [06_from_pytorch](06_from_pytorch.ipynb): port a model, with its weights.
# - [07_compare_your_images](07_compare_your_images.ipynb): which method is best for
#   your data.
