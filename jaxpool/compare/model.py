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
      method: what follows each block, or precedes the dense layer.
      image_shape: height, width and channels of an image.
      widths: channels of each block (3x3 convolution, ReLU, `method`).
      classes: number of logits.
      seed: what weights and sampled pooling start from.

    Returns:
      A model from images [B, H, W, C] to logits [B, classes]. The head is one dense
      layer on all features, so that what pooling saves in parameters shows.
    """
    rngs = nnx.Rngs(seed)
    own = nnx.Rngs(rngs())  # the convolutions' first weights are those of all methods
    layers: list[Layer] = []
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def add(*more: Layer) -> None:
        nonlocal x
        x = nnx.eval_shape(lambda model, x: model(x), nnx.Sequential(*more), x)
        layers.extend(more)

    for width in widths:
        add(nnx.Conv(x.shape[-1], width, (3, 3), rngs=rngs), nnx.relu)
        add(*method.after_block(x, own))
    add(*method.before_head(x, own))
    return nnx.Sequential(*layers, nnx.Linear(x.shape[-1], classes, rngs=rngs))
