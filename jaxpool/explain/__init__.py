"""What a chain of layers or a whole Flax model does with an input: `jaxpool shape`.

:func:`explain` follows a model, a module of Flax NNX or Linen or any function, without
computing it: each layer's windows, its output's shape, how far it sees, which pools
remove nothing or everything, where it breaks and what would mend it.
:func:`explain_chain` does so for a few layers written as text, and :func:`memory` says
what XLA needs for a batch, before and after pools are exchanged.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool._core.window import as_shape, fail, resolve_axes
from jaxpool.explain.chain import as_program, parse
from jaxpool.explain.findings import Finding, findings
from jaxpool.explain.layers import Layer, Seen, WindowAxis, layers_of, seen_of
from jaxpool.explain.memory import Memory, Need, memory
from jaxpool.explain.mends import Break, Tries, break_of
from jaxpool.explain.programs import program
from jaxpool.explain.report import Explanation
from jaxpool.explain.trace import Trace, trace

__all__ = [
    "Break",
    "Explanation",
    "Finding",
    "Layer",
    "Memory",
    "Need",
    "Seen",
    "WindowAxis",
    "explain",
    "explain_chain",
    "memory",
]


def explain(
    model: Any,
    input_shape: Sequence[int],
    *,
    axis: Sequence[int] | int | None = None,
    dtype: Any = jnp.float32,
    **options: Any,
) -> Explanation:
    """Explains what a model does with an input of a shape.

    The model is followed as it evaluates: pools and dropout that sample are
    deterministic and norms take running averages; `train`, `deterministic` and the like
    are passed where its call has them. Nothing is computed, and the model stays as it
    is.

    Args:
      model: a module of Flax NNX or Linen, or a function of an array.
      input_shape: sizes of all axes of its input, the batch too.
      axis: the input's spatial axes; by default all but the first and the last.
      dtype: the input's.
      **options: further arguments of the model's call.

    Returns:
      The explanation; where the model breaks for this input, it says in which layer.

    Raises:
      TypeError: for what is no model, or no shape.
      ValueError: for a shape without elements, or an axis that it does not have.

    Example:
      >>> import jaxpool
      >>> from jaxpool.explain import explain
      >>> def model(x):
      ...     x = jaxpool.max_pool(x, (3, 3), strides=(2, 2), padding=1)
      ...     return jaxpool.global_avg_pool(x)
      >>> explanation = explain(model, (1, 32, 32, 8))
      >>> [layer.output_shape for layer in explanation.layers]
      [(1, 16, 16, 8), (1, 8)]
      >>> explanation.layers[0].seen[0].size, explanation.layers[0].windows[0].padded
      (3, 1)
    """
    shape = _checked("explain", input_shape)
    axes = _axes("explain", axis, shape)
    x = jax.ShapeDtypeStruct(shape, dtype)

    def build(x):
        return program(model, x, options, training=False)

    return _explanation(Tries(build, x, axes), trace(build(x), x, axes), batched=True)


def explain_chain(input_shape: Sequence[int], layers: Sequence[str]) -> Explanation:
    """Explains what layers written as text do with an input of a shape.

    The text is `NAME[:SIZE][/STRIDE][pPADDING][dDILATION][:WORD]`: an op as `jaxpool
    compare` calls it, `conv` or `flatten`; a number for all axes or `3x2`; the words
    `SAME`, `SAME_LOWER`, `VALID`, `ceil`, or `cN` for the channels of a convolution.
    What is not said is as in Flax: strides of 1, no padding.

    Args:
      input_shape: sizes of the spatial axes and the channels, without a batch.
      layers: the layers, first to last.

    Returns:
      The explanation; where a layer breaks, it says which.

    Raises:
      TypeError: for what is no shape.
      ValueError: for a shape without elements or without channels, and for a layer
        that breaks the grammar.

    Example:
      >>> from jaxpool.explain import explain_chain
      >>> print(explain_chain((224, 224, 3), ["conv:7/2:SAME", "max:3/2", "avg:2"]))
         layer          window    output     field  jump  start  lost  padded
      ───────────────────────────────────────────────────────────────────────
         input                    224x224x3
      1  conv:7/2:SAME  7/2 p2+3  112x112x3      7     2     -2     0     663
      2  max:3/2        3/2       55x55x3       11     4     -2     1       0
      3  avg:2          2         54x54x3       15     4     -2     0       0
      <BLANKLINE>
      The middle one sees 15x15 of the input's 224x224.
    """
    shape = (1, *_checked("explain_chain", input_shape))
    axes = tuple(range(1, len(shape) - 1))
    if not axes:
        rule = "must have spatial axes and channels"
        raise fail("explain_chain", "input_shape", rule, input_shape)
    if isinstance(layers, str) or not layers:
        rule = "must be texts, at least one"
        raise fail("explain_chain", "layers", rule, layers)
    chain = as_program([parse(text, len(axes)) for text in layers])
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    tries = Tries(lambda x: chain, x, axes, tuple(layers))
    return _explanation(tries, trace(chain, x, axes), batched=False)


def _checked(caller: str, input_shape: Any) -> tuple[int, ...]:
    shape = as_shape(caller, "input_shape", input_shape)
    if 0 in shape:
        raise fail(caller, "input_shape", "must have no size of 0", input_shape)
    return shape


def _axes(caller: str, axis: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(1, len(shape) - 1))
    return tuple(sorted(a % len(shape) for a in resolve_axes(caller, axis, len(shape))))


def _explanation(tries: Tries, traced: Trace, batched: bool) -> Explanation:
    layers = layers_of(traced, tries.texts)
    deps = [traced.result, *(e.seen_after for e in traced.events)]
    rough = [dep.rough for dep in deps if dep]
    return Explanation(
        input_shape=tuple(tries.x.shape),
        spatial_axes=tuple(tries.axes),
        layers=tuple(layers),
        output_shape=traced.shape,
        seen=seen_of(traced.result),
        findings=tuple(findings(layers, traced)),
        broken=break_of(traced, tries) if traced.error else None,
        inexact=tuple(sorted(frozenset().union(*rough))),
        batched=batched,
    )
