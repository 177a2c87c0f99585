# %% [markdown]
# # Deploy
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# Train a small model, write it in three forms that need no Flax any more (StableHLO,
# ONNX, LiteRT), load each as its users would, and compare. Every writer runs what it
# has written and compares it with JAX first; a file that disagrees is not written.

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q "jaxpool[compare,deploy]"
    importlib.invalidate_caches()

# %%
import os
import tempfile

import jax
import jax.numpy as jnp
import jaxpool as jp
import numpy as np
import onnxruntime
import optax
from ai_edge_litert.interpreter import Interpreter
from flax import nnx
from jaxpool.compare.data import load
from jaxpool.deploy import DeployError, to_litert, to_onnx, to_stablehlo
from jaxpool.nnx import MaxPool, RandomMixedPool

FAST = "JAXPOOL_FAST" in os.environ  # a trial run of this notebook
os.chdir(tempfile.mkdtemp())  # for the files that are written here

# Other devices do not round the factors of float32 products, as GPUs and TPUs may.
jax.config.update("jax_default_matmul_precision", "highest")

# %% [markdown]
# ## A model worth deploying
#
# Handwritten digits, without a download. The first pool takes maxima; the second throws
# a coin between maximum and mean in training, and is half of each afterwards; the last
# is a mean.

# %%
data = load("mnist5k")


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.pool1 = MaxPool((2, 2), strides=(2, 2))
        self.pool2 = RandomMixedPool((2, 2), strides=(2, 2), rngs=rngs)
        self.head = nnx.Linear(32 * 3 * 3, 10, rngs=rngs)

    def __call__(self, x):
        x = self.pool1(nnx.relu(self.conv1(x)))
        x = self.pool2(nnx.relu(self.conv2(x)))
        x = jp.avg_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.reshape(x.shape[0], -1))


@nnx.jit
def train_step(model, optimizer, images, labels):
    def loss_of(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


model = CNN(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
order = np.random.default_rng(0)
for _ in range(1 if FAST else 4):
    for rows in order.permutation(len(data.x_train))[:3840].reshape(-1, 64):
        loss = train_step(model, optimizer, data.x_train[rows], data.y_train[rows])
print("loss of the last step:", round(float(loss), 3))

# %% [markdown]
# **Trap: a model in training mode.** It draws random numbers, which a deployed file
# cannot. The writers say so; `model.eval()` is the cure.

# %%
images = data.x_test[:100]  # an example of the input
try:
    to_stablehlo(model, images, out="model.stablehlo")
except DeployError as error:
    print(error)

model.eval()

# %%
answers = {}  # of each form: its size, its difference from JAX, its accuracy


def accuracy(run):
    """The share of the test images that a function of 100 of them gets right."""
    batches = data.x_test.reshape(-1, *images.shape)
    logits = np.concatenate([run(batch) for batch in batches])
    return float((logits.argmax(-1) == data.y_test).mean())


def report(name, artefact, run):
    """Runs an artefact, and shows what it is and how well it does."""
    pools = {kind: n for kind, n in artefact.nodes.items() if "POOL" in kind.upper()}
    kilobytes = artefact.path.stat().st_size / 1000
    answers[name] = (kilobytes, artefact.error, accuracy(run))
    print(f"{name}: {kilobytes:.0f} kB, {answers[name][-1]:.1%} right", pools or "")


print(f"Flax: {accuracy(nnx.jit(model)):.1%} right")

# %% [markdown]
# ## StableHLO
#
# What XLA compiles: one file for CPU, GPU and TPU, for any batch size, with the
# gradient if you want it. Reading it takes jax, and nothing of Flax or jaxpool. Results
# are a list.

# %%
artefact = to_stablehlo(model, images, out="model.stablehlo", gradient=True)
exported = jax.export.deserialize(bytearray(artefact.path.read_bytes()))
print("for", exported.platforms, "of", exported.in_avals[0])
report("StableHLO", artefact, lambda batch: exported.call(batch)[0])

# %%
saliency = jax.grad(lambda x: exported.call(x)[0][:, 3].sum())(jnp.asarray(images[:7]))
print("gradient, batch of 7:", saliency.shape)

# %% [markdown]
# ## ONNX
#
# Maxima and means become ONNX's own pools, which every runtime knows to make fast;
# other methods are composed of them and of simpler nodes. The batch is of any size.

# %%
artefact = to_onnx(model, images, out="model.onnx")
session = onnxruntime.InferenceSession(artefact.path)
name = session.get_inputs()[0].name
report("ONNX", artefact, lambda batch: session.run(None, {name: batch})[0])
print("batch of 1:", session.run(None, {name: images[:1]})[0].shape)

# %% [markdown]
# ## LiteRT (TensorFlow Lite)
#
# For phones and microcontrollers, without TensorFlow. Sizes are fixed, the batch's too:
# write a file for each that you need.


# %%
def runner(path):
    """The function in a .tflite file, of float32 as of int8."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    (made,) = interpreter.get_output_details()

    def run(batch):
        if given["dtype"] == np.int8:
            batch = jp.quantize(batch, jp.QuantParams(*given["quantization"]))
        interpreter.set_tensor(given["index"], np.asarray(batch))
        interpreter.invoke()
        return interpreter.get_tensor(made["index"])

    return run


artefact = to_litert(model, images, out="model.tflite")
report("LiteRT float32", artefact, runner(artefact.path))

# %%
artefact = to_litert(model, images, out="model-f16.tflite", dtype="float16")
report("LiteRT float16", artefact, runner(artefact.path))

# %% [markdown]
# int8 has 256 values for each tensor. Which range they have to cover is measured on
# batches of real data, the calibration. That is coarse, so that more may differ; what
# counts is how many answers stay right. (For these, the integers will do: the largest
# stays the largest.)


# %%
def to_int8(name, calibration):
    artefact = to_litert(
        model,
        images,
        out=f"{name}.tflite",
        dtype="int8",
        calibration=calibration,
        tolerance=0.5,
    )
    report(name, artefact, runner(artefact.path))


to_int8("LiteRT int8", list(data.x_train[:500].reshape(-1, *images.shape)))

# %% [markdown]
# **Trap: calibrating with noise.** Its ranges are not those of images: what lies beyond
# them is cut off.

# %%
noise = np.random.default_rng(1).normal(size=(5, *images.shape)).astype(np.float32)
to_int8("int8 of noise", list(0.1 * noise))

# %% [markdown]
# ## Together
#
# The difference from JAX is the largest, as a part of the largest logit; that of int8
# is on its own calibration, and so does not warn of a bad one.

# %%
print(f"{'':15} {'kB':>6} {'difference':>11} {'right':>7}")
for name, (kilobytes, error, right) in answers.items():
    print(f"{name:15} {kilobytes:6.0f} {error:11.1e} {right:7.1%}")
