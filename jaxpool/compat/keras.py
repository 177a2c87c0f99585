"""Keras's pooling on jaxpool: its functions, its layers, and Keras itself.

- `max_pool`, `average_pool`, `adaptive_max_pool`, `adaptive_average_pool` take the
  arguments of `keras.ops`, for code that leaves Keras;
- `convert(layer)` makes a module for Flax out of any pooling layer;
- `use()` runs Keras itself, on its JAX backend, on jaxpool:

    os.environ["KERAS_BACKEND"] = "jax"
    import keras, jaxpool.compat.keras

    jaxpool.compat.keras.use()  # or: with jaxpool.compat.keras.use(): ...

Only `use()` imports Keras. `data_format=None` is what Keras is set to where a program
has imported it, and otherwise Keras's own default, "channels_last".
"""

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Literal

import jax
from jax.typing import ArrayLike

import jaxpool
from jaxpool._core.arguments import as_array
from jaxpool._core.window import as_ints, fail
from jaxpool.compat._switch import Switch, Use, check
from jaxpool.compat._words import Difference, speaking

__all__ = [
    "DIFFERENCES",
    "TESTED",
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "convert",
    "max_pool",
    "restore",
    "use",
]

TESTED = ("3.15.1",)
"""The Keras versions that `use` is tested with."""

DIFFERENCES = (
    Difference(
        "`max_pool` and `average_pool` without `strides`",
        "TypeError: reduce_window got inconsistent window_strides",
        "strides of `pool_size`, as documented",
    ),
    Difference(
        "adaptive pools to 7 or 14 elements",
        "bins from float32 quotients: wrong values or NaN, for inputs of 7, 14, 28, "
        "56, 112 and 224 too (on CPU)",
        "bins from integers",
    ),
    Difference(
        "adaptive pools of long signals",
        "bins from float32 quotients: 44,100 to 1,000 has 64 wrong ones",
        "bins from integers",
    ),
    Difference(
        "`average_pool` in half precision",
        "adds up in the dtype of the input: the mean of 4 x 4 times 10,000 in float16 "
        "is inf",
        "adds up in float32 and rounds once",
    ),
    Difference(
        "gradient of a maximum that is NaN",
        "goes to another element",
        "goes to the NaN",
    ),
    Difference(
        "a list for `pool_size` or `strides`",
        "TypeError: can only concatenate tuple",
        "any sequence of ints",
    ),
    Difference(
        "a window larger than the input with padding `valid`",
        "an empty array",
        "ValueError",
    ),
    Difference(
        "adaptive ops of a symbolic `KerasTensor`",
        "a shape of the wrong rank, and TypeError for an int `output_size` (in "
        "`keras.ops`, which `use` leaves alone; layers are right)",
        "arrays only",
    ),
    Difference(
        "`GlobalAveragePooling1D` with a mask that hides a whole row",
        "NaN",
        "0, in the module that `convert` makes (`where=mask[..., None]`)",
    ),
    Difference(
        "a mask for global max pooling",
        "TypeError",
        "the module that `convert` makes takes `where=`",
        "keras#3777",
    ),
    Difference(
        "gradient of global max pooling among equals",
        "shared by all of them",
        "goes to the first, in the module that `convert` makes",
        "tensorflow#51682",
    ),
)
"""Where a program can tell the two apart."""

Ints = int | Sequence[int]


def max_pool(
    inputs: ArrayLike,
    pool_size: Ints,
    strides: Ints | None = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> jax.Array:
    """`keras.ops.max_pool` by :func:`jaxpool.max_pool`.

    Args:
      inputs: `[N, S..., C]`, or `[N, C, S...]` with `data_format="channels_first"`.
      pool_size: an int, or one for each spatial axis.
      strides: likewise; None is `pool_size`.
      padding: `"valid"` or `"same"`.
      data_format: `"channels_last"`, `"channels_first"`, or None (see this module).

    Returns:
      The largest element of each window, in the layout and the dtype of `inputs`.

    Raises:
      ValueError, TypeError: for arguments that break these rules, or windows larger
        than the padded input.

    Example:
      Without strides, windows lie side by side:

      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import keras
      >>> x = jnp.arange(6.0).reshape(1, 6, 1)
      >>> keras.max_pool(x, 2)[0, :, 0]
      Array([1., 3., 5.], dtype=float32)
    """
    window = (inputs, pool_size, strides, padding, data_format)
    return _windows("max_pool", jaxpool.max_pool, *window)


def average_pool(
    inputs: ArrayLike,
    pool_size: Ints,
    strides: Ints | None = None,
    padding: str = "valid",
    data_format: str | None = None,
) -> jax.Array:
    """`keras.ops.average_pool` by :func:`jaxpool.avg_pool`.

    Arguments and errors as in :func:`max_pool`. Padding does not count; integers give
    floats.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import keras
      >>> x = jnp.array([2.0, 4.0, 6.0]).reshape(1, 3, 1)
      >>> keras.average_pool(x, 3, strides=1, padding="same")[0, :, 0]
      Array([3., 4., 5.], dtype=float32)
    """
    window = (inputs, pool_size, strides, padding, data_format)
    rules = {"count_include_pad": False}
    return _windows("average_pool", jaxpool.avg_pool, *window, **rules)


def adaptive_max_pool(
    inputs: ArrayLike, output_size: Ints, data_format: str | None = None
) -> jax.Array:
    """`keras.ops.adaptive_max_pool` by :func:`jaxpool.adaptive_max_pool`.

    Args:
      inputs, data_format: as in :func:`max_pool`.
      output_size: the output's size: an int, or one for each spatial axis.

    Returns:
      The largest element of each bin, in the layout and the dtype of `inputs`.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import keras
      >>> x = jnp.arange(8.0).reshape(1, 1, 2, 4)
      >>> keras.adaptive_max_pool(x, (1, 2), data_format="channels_first")[0, 0]
      Array([[5., 7.]], dtype=float32)
    """
    op = jaxpool.adaptive_max_pool
    return _bins("adaptive_max_pool", op, inputs, output_size, data_format)


def adaptive_average_pool(
    inputs: ArrayLike, output_size: Ints, data_format: str | None = None
) -> jax.Array:
    """`keras.ops.adaptive_average_pool` by :func:`jaxpool.adaptive_avg_pool`.

    Arguments and errors as in :func:`adaptive_max_pool`; integers give floats.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxpool.compat import keras
      >>> x = jnp.arange(7.0).reshape(1, 7, 1)
      >>> keras.adaptive_average_pool(x, 3)[0, :, 0]
      Array([1., 3., 5.], dtype=float32)
    """
    op = jaxpool.adaptive_avg_pool
    return _bins("adaptive_average_pool", op, inputs, output_size, data_format)


def _windows(
    caller: str,
    op: Callable[..., jax.Array],
    inputs: Any,
    pool_size: Any,
    strides: Any,
    padding: Any,
    data_format: Any,
    **rules: Any,
) -> jax.Array:
    x, axis = _laid(caller, inputs, data_format)
    window = as_ints(caller, "pool_size", pool_size, len(axis), 1)
    steps = window
    if strides is not None:
        steps = as_ints(caller, "strides", strides, len(axis), 1)
    if not isinstance(padding, str) or padding.lower() not in ("valid", "same"):
        raise fail(caller, "padding", "must be 'valid' or 'same'", padding)
    with speaking(caller, x="inputs", window_shape="pool_size"):
        return op(x, window, steps, padding.upper(), axis=axis, **rules)


def _bins(
    caller: str,
    op: Callable[..., jax.Array],
    inputs: Any,
    output_size: Any,
    data_format: Any,
) -> jax.Array:
    x, axis = _laid(caller, inputs, data_format)
    size = as_ints(caller, "output_size", output_size, len(axis), 1)
    with speaking(caller, x="inputs", output_shape="output_size"):
        return op(x, size, axis=axis)


def _laid(
    caller: str, inputs: Any, data_format: Any
) -> tuple[jax.Array, tuple[int, ...]]:
    """Returns the array and its spatial axes."""
    x = as_array(caller, inputs, "inputs")
    if x.ndim < 3:
        rule = "must have a batch axis, spatial axes and a channel axis"
        raise fail(caller, "inputs", rule, x.shape)
    if data_format is None:
        config = getattr(sys.modules.get("keras"), "config", None)
        data_format = getattr(config, "image_data_format", lambda: "channels_last")()
    return x, _spatial(caller, data_format, x.ndim - 2)


def _spatial(caller: str, data_format: Any, length: int) -> tuple[int, ...]:
    first = {"channels_last": -1 - length, "channels_first": -length}
    name = str(data_format).lower()
    if name not in first:
        rule = "must be 'channels_last', 'channels_first' or None"
        raise fail(caller, "data_format", rule, data_format)
    return tuple(range(first[name], first[name] + length))


# Layers.


def convert(layer: Any, framework: Literal["nnx", "linen"] = "nnx") -> Any:
    """A module for Flax that pools as a Keras layer does.

    Args:
      layer: a `MaxPooling`, `AveragePooling`, `GlobalMaxPooling`,
        `GlobalAveragePooling`, `AdaptiveMaxPooling` or `AdaptiveAveragePooling` layer
        in 1D, 2D or 3D. Nothing but its class's name and its configuration is read.
      framework: `"nnx"` for a module of `jaxpool.nnx`, `"linen"` for one of
        `jaxpool.linen`.

    Returns:
      The module: `MaxPool`, `AvgPool`, `GlobalMaxPool`, ... for the layer's data
      format. It keeps the dtype of its input, which a layer casts to its own first;
      the mask of a global pool is `where=`.

    Raises:
      TypeError: for any other layer, a subclass of these too.
      ValueError: for another framework, or a configuration that cannot pool.

    Example:
      >>> import jax.numpy as jnp
      >>> import keras
      >>> import jaxpool.compat.keras
      >>> layer = keras.layers.MaxPooling2D(3, strides=2, padding="same")
      >>> pool = jaxpool.compat.keras.convert(layer)
      >>> type(pool).__name__, pool(jnp.ones((1, 7, 7, 2))).shape
      ('MaxPool', (1, 4, 4, 2))
    """
    if framework not in ("nnx", "linen"):
        raise fail("convert", "framework", "must be 'nnx' or 'linen'", framework)
    name = type(layer).__name__
    match = re.fullmatch(r"(Global|Adaptive|)(Max|Average)Pooling([123])D", name)
    if match is None or not hasattr(layer, "get_config"):
        rule = "must be one of Keras's pooling layers"
        raise fail("convert", "layer", rule, name, TypeError)
    extent, op, length = match.groups()
    config = layer.get_config()
    axis = _spatial("convert", config["data_format"], int(length))
    kind = f"{extent}{op.replace('Average', 'Avg')}Pool"
    module = getattr(importlib.import_module(f"jaxpool.{framework}"), kind)
    if extent == "Global":
        return module(axis=axis, keepdims=config["keepdims"])
    if extent == "Adaptive":
        return module(config["output_size"], axis=axis)
    rules = {} if op == "Max" else {"count_include_pad": False}
    window = (config["pool_size"], config["strides"], config["padding"].upper())
    return module(*window, axis=axis, **rules)


# Keras itself.


def use() -> Use:
    """Runs the pooling functions of Keras's JAX backend on jaxpool, from now on.

    So do `keras.ops` and the layers of existing models, in every thread; the global
    layers, which are means and maxima, stay what they are. What JAX has traced is
    forgotten when the switch turns, so that a model that has been fitted or has
    predicted before takes part.

    Returns:
      What ends it: a context manager, with a method `restore()`. Uses nest; Keras's own
      functions are back when the last one ends.

    Raises:
      RuntimeError: for another backend than JAX, or a Keras whose functions are not
        those that this knows.

    Example:
      Keras adds up in the dtype of its input, jaxpool in float32:

      >>> import os
      >>> os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
      >>> import jax.numpy as jnp
      >>> import keras
      >>> import jaxpool.compat.keras
      >>> x = jnp.full((1, 4, 4, 1), 10_000, jnp.float16)
      >>> keras.ops.average_pool(x, 4, strides=4).item()
      inf
      >>> with jaxpool.compat.keras.use():
      ...     keras.ops.average_pool(x, 4, strides=4).item()
      10000.0
    """
    return _switch.use()


def restore() -> None:
    """Gives Keras its own functions back, however many uses there are.

    Example:
      >>> import os
      >>> os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
      >>> import jax.numpy as jnp
      >>> import keras
      >>> import jaxpool.compat.keras
      >>> uses = [jaxpool.compat.keras.use(), jaxpool.compat.keras.use()]
      >>> jaxpool.compat.keras.restore()
      >>> x = jnp.full((1, 4, 4, 1), 10_000, jnp.float16)
      >>> keras.ops.average_pool(x, 4, strides=4).item()  # Keras's own
      inf
    """
    _switch.restore()


def _pairs() -> dict[FunctionType, FunctionType]:
    keras = importlib.import_module("keras")
    if keras.backend.backend() != "jax":
        backend = keras.backend.backend()
        raise RuntimeError(
            f"`use`: Keras's backend must be 'jax' (KERAS_BACKEND); got {backend!r}."
        )
    module = importlib.import_module("keras.src.backend.jax.nn")
    pairs = {}
    for stand_in in _stand_ins():
        function = getattr(module, stand_in.__name__, None)
        if problem := check(function, stand_in):
            raise RuntimeError(
                f"`use`: Keras {keras.__version__} is not one that "
                f"`jaxpool.compat.keras` knows (tested: {', '.join(TESTED)}): in "
                f"`keras.src.backend.jax.nn`, {problem}."
            )
        pairs[function] = stand_in
    return pairs


def _stand_ins() -> list[FunctionType]:
    # They run in Keras's own module (see `check`): all that they name, they import.

    def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
        import jaxpool.compat.keras as compat

        return compat.max_pool(inputs, pool_size, strides, padding, data_format)

    def average_pool(
        inputs, pool_size, strides=None, padding="valid", data_format=None
    ):
        import jaxpool.compat.keras as compat

        return compat.average_pool(inputs, pool_size, strides, padding, data_format)

    def adaptive_max_pool(inputs, output_size, data_format=None):
        import jaxpool.compat.keras as compat

        return compat.adaptive_max_pool(inputs, output_size, data_format)

    def adaptive_average_pool(inputs, output_size, data_format=None):
        import jaxpool.compat.keras as compat

        return compat.adaptive_average_pool(inputs, output_size, data_format)

    return [max_pool, average_pool, adaptive_max_pool, adaptive_average_pool]


_switch = Switch(_pairs)
