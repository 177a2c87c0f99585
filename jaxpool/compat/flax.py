"""Existing Flax models on jaxpool: `jaxpool.compat.flax.use()`.

`max_pool`, `min_pool`, `avg_pool` and `pool` of `flax.linen`, `flax.nnx` and
`flax.core.nn` (the same four functions in each) then run on jaxpool's, for good or
within a `with` block:

    with jaxpool.compat.flax.use():
        y = model.apply(variables, x)

    jaxpool.compat.flax.use()  # on until jaxpool.compat.flax.restore()

It is the functions that change and not the names that lead to them: `from flax.linen
import max_pool` at the top of a file and a `functools.partial` inside a model that is
already built take part. So does the whole process, in every thread. What `jax.jit` has
traced is forgotten when the switch turns, and traced anew; what has been compiled
ahead of time (`.lower().compile()`) stays as it is.

Refuses a Flax in which these functions or their arguments are others than in the
versions in `TESTED`. `DIFFERENCES` says where a model can tell: where Flax is wrong or
raises, or where an error comes instead of a result without elements.
"""

import importlib
from types import FunctionType
from typing import Any

from jaxpool.compat._switch import Switch, Use, check
from jaxpool.compat._words import Difference

__all__ = ["DIFFERENCES", "TESTED", "restore", "use"]

TESTED = ("0.11.2", "0.12.8", "0.12.12")
"""The Flax versions that this is tested with."""

DIFFERENCES = (
    Difference(
        "`avg_pool` in half precision",
        "adds up in the dtype of the input: the mean of 64 x 64 times 0.1 in bfloat16 "
        "is 0.03125, of 1000 in float16 inf",
        "adds up in float32 and rounds once",
    ),
    Difference(
        "`avg_pool` of small integers",
        "adds up in the dtype of the input: the mean of 4 x 4 times 100 in int8 is 4",
        "adds up in a wide enough dtype, as `jnp.mean` does",
    ),
    Difference(
        "dtype of `avg_pool(..., count_include_pad=False)` in half precision",
        "float32",
        "that of the input",
    ),
    Difference(
        "(low, high) padding with other than one batch axis",
        "ValueError of `safe_zip`",
        "any number of batch axes",
    ),
    Difference(
        "gradient of a maximum that is NaN",
        "goes to another element",
        "goes to the NaN",
    ),
    Difference(
        "gradient of `pool` with a function other than max, min or add",
        "ValueError from within the linearization",
        "that of the function, in every mode",
        "jax#7815",
    ),
    Difference(
        "an int for the window, the strides or the padding",
        "TypeError: object of type 'int' has no len()",
        "an int is repeated; for the window an error says what to pass",
        "flax#4494, flax#5495",
    ),
    Difference(
        "a list for the window or the strides",
        "TypeError: can only concatenate tuple",
        "any sequence of ints",
    ),
    Difference(
        "`avg_pool(..., count_include_pad=False)` of nothing but padding",
        "NaN",
        "ValueError",
    ),
    Difference("a window larger than the padded input", "an empty array", "ValueError"),
    Difference("negative padding", "crops the input", "ValueError"),
    Difference("strides of length 0", "are 1", "ValueError"),
)
"""Where a model can tell the two apart."""


def use() -> Use:
    """Runs Flax's pooling functions on jaxpool, from now on.

    Returns:
      What ends it: a context manager, with a method `restore()`. Uses nest; Flax's own
      functions are back when the last one ends.

    Raises:
      RuntimeError: for a Flax whose functions are not those that this knows.

    Example:
      Flax adds up in the dtype of its input, jaxpool in one that is wide enough:

      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.flax
      >>> x = jnp.full((1, 4, 4, 1), 100, jnp.int8)
      >>> nn.avg_pool(x, (4, 4)).item()
      4.0
      >>> with jaxpool.compat.flax.use():
      ...     nn.avg_pool(x, (4, 4)).item()
      100.0
    """
    return _switch.use()


def restore() -> None:
    """Gives Flax its own functions back, however many uses there are.

    Example:
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> import jaxpool.compat.flax
      >>> uses = [jaxpool.compat.flax.use(), jaxpool.compat.flax.use()]
      >>> jaxpool.compat.flax.restore()
      >>> x = jnp.full((1, 4, 4, 1), 100, jnp.int8)
      >>> nn.avg_pool(x, (4, 4)).item()  # Flax's own
      4.0
    """
    _switch.restore()


# Run in Flax's own module (see `check`): all that they name, they import.


def avg_pool(
    inputs, window_shape, strides=None, padding="VALID", count_include_pad=True
):
    """Runs `jaxpool.avg_pool` with Flax's arguments."""
    from jaxpool.compat.flax import _call

    rest = (window_shape, strides, padding, count_include_pad)
    return _call("avg_pool", inputs, *rest)


def max_pool(inputs, window_shape, strides=None, padding="VALID"):
    """Runs `jaxpool.max_pool` with Flax's arguments."""
    from jaxpool.compat.flax import _call

    return _call("max_pool", inputs, window_shape, strides, padding)


def min_pool(inputs, window_shape, strides=None, padding="VALID"):
    """Runs `jaxpool.min_pool` with Flax's arguments."""
    from jaxpool.compat.flax import _call

    return _call("min_pool", inputs, window_shape, strides, padding)


def pool(inputs, init, reduce_fn, window_shape, strides, padding):
    """Runs `jaxpool.pool` with Flax's arguments."""
    from jaxpool.compat.flax import _call

    return _call("pool", inputs, init, reduce_fn, window_shape, strides, padding)


def _call(name: str, *arguments: Any) -> Any:
    import jaxpool
    from jaxpool.compat._words import speaking

    with speaking(name, x="inputs"):
        return getattr(jaxpool, name)(*arguments)


_HOLDERS = {  # where Flax shows which of them
    "flax.linen": ("avg_pool", "max_pool", "pool"),
    "flax.nnx": ("avg_pool", "max_pool", "min_pool", "pool"),
    "flax.core.nn": ("avg_pool", "max_pool"),
}


def _pairs() -> dict[FunctionType, FunctionType]:
    module = importlib.import_module("flax.linen.pooling")
    pairs = {}
    for stand_in in (avg_pool, max_pool, min_pool, pool):
        function = getattr(module, stand_in.__name__, None)
        if problem := check(function, stand_in):
            raise _unknown(f"in `flax.linen.pooling`, {problem}")
        pairs[function] = stand_in
    for holder, names in _HOLDERS.items():
        for name in names:
            shown = getattr(importlib.import_module(holder), name, None)
            if shown not in pairs:
                raise _unknown(f"`{holder}.{name}` is not that of `flax.linen.pooling`")
    return pairs


def _unknown(problem: str) -> RuntimeError:
    version = importlib.import_module("flax.version").__version__
    return RuntimeError(
        f"`use`: Flax {version} is not one that `jaxpool.compat.flax` knows (tested: "
        f"{', '.join(TESTED)}): {problem}."
    )


_switch = Switch(_pairs)
