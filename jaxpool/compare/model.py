"""The network that every method is compared in."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpool.compare.methods import Layer, Method

__all__ = ["build"]


def build(
    method: Method,
    image_shape: tuple[int, int, int],
    widths: Sequence[int],
    classes: int,
    seed: int,
) -> nnx.Sequential:
    """Returns a small CNN that differs between methods only where they act.

    Args:
      method: what follows each block and what precedes the head.
      image_shape: height, width and channels of an image.
      widths: channels of each block (3x3 convolution, ReLU, `method`).
      classes: number of logits.
      seed: what weights and sampled pooling start from.

    Returns:
      A model from images [B, H, W, C] to logits [B, classes]. The head is one dense
      layer on all features, so that what pooling saves in parameters shows.
    """
    rngs = nnx.Rngs(seed)
    layers: list[Layer] = []
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    for width in widths:
        layers += [nnx.Conv(x.shape[-1], width, (3, 3), rngs=rngs), nnx.relu]
        layers.append(method.after_block(x.shape[1:3], rngs))
        x = _output(layers[-3:], x)
    layers.append(method.before_head(rngs))
    x = _output(layers[-1:], x)
    return nnx.Sequential(*layers, nnx.Linear(x.shape[-1], classes, rngs=rngs))


def _output(layers: list[Layer], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of what `layers` make of `x`."""
    return nnx.eval_shape(lambda model, x: model(x), nnx.Sequential(*layers), x)
