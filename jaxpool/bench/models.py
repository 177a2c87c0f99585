"""Training steps of whole networks, with one pooling function or another."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import jaxpool
from jaxpool.bench.contestants import compiled
from jaxpool.bench.results import Row
from jaxpool.bench.timing import interleave, spread

__all__ = ["MODELS", "POOLS", "Network", "measure", "networks"]

Pool = Callable[..., jax.Array]
"""A function of an array, a window, strides and padding."""

STRIDE, TOLERANCE = "stride", 1e-4


def stride(x, window_shape, strides, padding="VALID"):
    """Takes every n-th pixel: the shape of a pool, for next to no work."""
    shape = jaxpool.output_shape(x.shape, window_shape, strides, padding)
    height, width = shape[1:3]
    return x[:, :: strides[0], :: strides[1]][:, :height, :width]


POOLS: dict[str, Pool] = {
    STRIDE: stride,
    "jaxpool": jaxpool.max_pool,
    "flax": linen.max_pool,
}
"""What stands in the networks; the first is the unit of time."""


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
      name: what to call it.
      shape: batch, height, width and channels of its input.
      build: makes it from a pooling function and the source of its weights; it gives
        logits for an image, or for each pixel.
      pools: the window of its pools as text.
    """

    name: str
    shape: tuple[int, int, int, int]
    build: Callable[[Pool, nnx.Rngs], Callable[[jax.Array], jax.Array]]
    pools: str = "2/2/0"


def _halve(pool: Pool) -> Callable[[jax.Array], jax.Array]:
    return partial(pool, window_shape=(2, 2), strides=(2, 2))


def _keep(x: jax.Array) -> jax.Array:
    return x


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def _average(x: jax.Array) -> jax.Array:
    return x.mean((1, 2))


def _small(size: int, pool: Pool, rngs: nnx.Rngs) -> nnx.Sequential:
    """Three convolutions with a pool behind each, for images of 32 x 32."""
    layers: list[Callable[..., Any]] = []
    width = 3
    for features in (32, 64, 64):
        conv = nnx.Conv(width, features, (size, size), rngs=rngs)
        layers += [conv, nnx.relu, _halve(pool)]
        width = features
    head = nnx.Linear(4 * 4 * width, 10, rngs=rngs)
    return nnx.Sequential(*layers, _flatten, head)


class _Residual(nnx.Module):
    """ResNet's basic block."""

    def __init__(self, width: int, features: int, step: int, rngs: nnx.Rngs):
        def conv(width, size, step):
            strides = (step, step)
            convolution = nnx.Conv(
                width, features, (size, size), strides, use_bias=False, rngs=rngs
            )
            return [convolution, nnx.BatchNorm(features, rngs=rngs)]

        self.body = nnx.Sequential(
            *conv(width, 3, step), nnx.relu, *conv(features, 3, 1)
        )
        changes = step > 1 or width != features
        self.shortcut = nnx.Sequential(*conv(width, 1, step)) if changes else _keep

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.body(x) + self.shortcut(x))


def _resnet18(widths: tuple[int, ...], pool: Pool, rngs: nnx.Rngs) -> nnx.Sequential:
    """ResNet-18: a stem that pools by 3/2/1, and four stages of two blocks."""
    width, *_ = widths
    stem = nnx.Conv(3, width, (7, 7), (2, 2), use_bias=False, rngs=rngs)
    window = {"window_shape": (3, 3), "strides": (2, 2), "padding": ((1, 1), (1, 1))}
    layers: list[Callable[..., Any]] = [
        stem,
        nnx.BatchNorm(width, rngs=rngs),
        nnx.relu,
        partial(pool, **window),
    ]
    for stage, features in enumerate(widths):
        layers.append(_Residual(width, features, 2 if stage else 1, rngs))
        layers.append(_Residual(features, features, 1, rngs))
        width = features
    head = nnx.Linear(width, 10, rngs=rngs)
    return nnx.Sequential(*layers, _average, head)


class _Level(nnx.Module):
    """One resolution of a U-Net, with those below it."""

    def __init__(self, width: int, widths: tuple[int, ...], pool: Pool, rngs: nnx.Rngs):
        features, *lower = widths

        def convolve(width):
            first = nnx.Conv(width, features, (3, 3), rngs=rngs)
            second = nnx.Conv(features, features, (3, 3), rngs=rngs)
            return nnx.Sequential(first, nnx.relu, second, nnx.relu)

        self.before = convolve(width)
        self.pool = _halve(pool)
        self.lower = _Level(features, tuple(lower), pool, rngs) if lower else None
        self.after = convolve(features + lower[0]) if lower else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.before(x)
        if self.lower is None or self.after is None:
            return x
        below = self.lower(self.pool(x))
        above = below.repeat(2, axis=1).repeat(2, axis=2)
        return self.after(jnp.concatenate([x, above], axis=-1))


def _unet(widths: tuple[int, ...], pool: Pool, rngs: nnx.Rngs) -> nnx.Sequential:
    """A U-Net that classifies each pixel."""
    head = nnx.Conv(widths[0], 10, (1, 1), rngs=rngs)
    return nnx.Sequential(_Level(3, widths, pool, rngs), head)


MODELS = {
    "small": (
        Network("small CNN", (64, 32, 32, 3), partial(_small, 3)),
        Network("small CNN, 1x1 convolutions", (64, 32, 32, 3), partial(_small, 1)),
    ),
    "resnet18": (
        Network(
            "ResNet-18",
            (8, 112, 112, 3),
            partial(_resnet18, (64, 128, 256, 512)),
            pools="3/2/1",
        ),
    ),
    "unet": (Network("U-Net", (4, 96, 96, 3), partial(_unet, (16, 32, 64, 128))),),
}
"""Networks by the name that a user gives."""


def networks(model: str) -> list[Network]:
    """Returns the networks of a key of `MODELS`, or of all of them."""
    names = MODELS if model == "all" else [model]
    return [network for name in names for network in MODELS[name]]


def measure(network: Network, rounds: int) -> list[Row]:
    """Returns the row of a network's training step."""
    losses, calls, costs = {}, {}, {}
    for name, pool in POOLS.items():
        calls[name], costs[name] = _training(network, pool)
        losses[name] = [calls[name]() for _ in range(2)]  # before and after a step
    notes = {}
    same = np.allclose(losses["jaxpool"], losses["flax"], rtol=TOLERANCE)
    if not same:
        notes["flax"] = f"disagrees (losses {losses['flax']}, not {losses['jaxpool']})"
        del calls["flax"]
    times = {name: spread(t) for name, t in interleave(calls, rounds).items()}
    return [
        Row(
            suite="models in training",
            case=network.name,
            op="max",
            window=network.pools,
            direction="train step",
            dtype="f32",
            layout="channels_last",
            shape=network.shape,
            input_bytes=4 * math.prod(network.shape),
            outputs=network.shape[0],
            base=STRIDE,
            times=times,
            notes=notes,
            costs=costs,
        )
    ]


def _training(network: Network, pool: Pool):
    """Returns a call that trains a network by one step, and what it cost to compile."""
    model = network.build(pool, nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.sgd(1e-2)
    images = jax.random.normal(jax.random.key(0), network.shape)
    logits = nnx.eval_shape(lambda model, images: model(images), model, images)
    key = jax.random.key(1)
    labels = jax.random.randint(key, logits.shape[:-1], 0, logits.shape[-1])

    def step(state, images, labels):
        params, rest, memory = state

        def loss_and_rest(params):
            model = nnx.merge(graph, params, rest, copy=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                model(images), labels
            )
            return losses.mean(), nnx.state(model, nnx.Not(nnx.Param))

        grad = jax.value_and_grad(loss_and_rest, has_aux=True)
        (loss, rest), grads = grad(params)
        updates, memory = optimizer.update(grads, memory, params)
        return (optax.apply_updates(params, updates), rest, memory), loss

    state = (params, rest, optimizer.init(params))
    program, costs = compiled(step, state, images, labels, donate_argnums=0)

    def call() -> float:
        nonlocal state
        state, loss = jax.block_until_ready(program(state, images, labels))
        return float(loss)

    return call, costs
