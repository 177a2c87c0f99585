"""Quantization-aware training with qwix: its providers see jaxpool's pools.

qwix puts itself in place of functions that it knows by name, Flax's pools among them.
"""

import functools
import importlib
from typing import Any, TypeVar

import jaxpool  # noqa: F401 (fills the op table)
from jaxpool._core.op import OPS
from jaxpool._core.window import fail
from jaxpool.deploy.agreement import need

__all__ = ["register"]

_Provider = TypeVar("_Provider")

# What LiteRT computes with one scale for input and output, as Flax's pools in qwix.
_ONE_SCALE = (
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool",
    "global_max_pool",
    "global_min_pool",
    "max_pool",
    "median_pool",
    "min_pool",
)


def register(provider: _Provider) -> _Provider:
    """Makes a provider for LiteRT treat jaxpool's pools as it treats Flax's.

    Pools by windows, of the whole extent and adaptive ones, as functions and as modules
    of `jaxpool.nnx` and `jaxpool.linen`: maxima, means and medians keep the scale of
    their input, all others get one of their own. Pools that learn arrays are made of
    products that qwix knows already. A rule's `op_names` are the functions' names. The
    other providers of qwix leave pools alone, Flax's too, and need nothing.

    Args:
      provider: a `qwix.OdmlQatProvider` or `qwix.OdmlConversionProvider`.

    Returns:
      The same provider.

    Raises:
      TypeError: for anything else.
      RuntimeError: for a version of qwix that is built in another way.
      ModuleNotFoundError: if qwix is not installed.

    Example:
      >>> import qwix
      >>> from jaxpool.deploy.qwix import register
      >>> rules = [qwix.QuantizationRule(weight_qtype="int8", act_qtype="int8")]
      >>> provider = register(qwix.OdmlQatProvider(rules))
    """
    qwix = need("qwix", "qwix", "register")
    if not isinstance(provider, qwix.OdmlQatProvider):
        rule = "must be a qwix.OdmlQatProvider; other providers leave pools alone"
        raise fail("register", "provider", rule, provider, TypeError)
    try:
        known: Any = vars(provider)["_ops"]
        kinds = importlib.import_module("qwix._src.providers.odml_ops")
        one_scale, own_scale = known["flax.linen.max_pool"], kinds.QuantizedOp
    except (KeyError, ModuleNotFoundError, AttributeError) as error:
        problem = f"`register` does not know this version of qwix ({error})."
        raise RuntimeError(problem) from error
    own_scale = functools.partial(own_scale, input_idx=(0,))
    for op in OPS.values():
        # The first argument alone is quantized; the rest is configuration.
        if op.kind == "other" or op.integer or op.outputs > 1 or op.learned_arrays:
            continue
        known[f"jaxpool.{op.name}"] = one_scale if op.name in _ONE_SCALE else own_scale
    return provider
