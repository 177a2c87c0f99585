r"""Polyphase pools: a subsampling that moves with its input.

Subsampling by s keeps one of the polyphase components of its input,

.. math:: x^{(p)}_o = x_{s o + p}, \qquad 0 \le p < s \text{ along each pooled axis},

always the first one; so its output changes with a shift of the input by one. The pools
here choose the component by what is in it. Components are numbered in row-major order
of p: (0, 0), (0, 1), (1, 0), (1, 1) for strides of 2. A circular shift of the input
permutes the components and shifts them; what is chosen is the same one, shifted, unless
rounding decides between components that score the same.

References:
  Anadi Chaman, Ivan Dokmanić: Truly Shift-Invariant Convolutional Neural Networks, 2021
  (adaptive polyphase sampling).
  Renan Rojas-Gomez, Teck-Yian Lim, Alexander Schwing, Minh Do, Raymond Yeh: Learnable
  Polyphase Sampling for Shift Invariant and Equivariant Convolutional Networks, 2022.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import (
    as_array,
    as_key,
    as_parameter,
    check_whole,
    int32_of,
    output_axes,
)
from jaxpool._core.engine import window_taps
from jaxpool._core.geometry import Geometry, static_size
from jaxpool._core.numerics import (
    accumulation_dtype,
    mean_dtype,
    power_of_two_scale,
)
from jaxpool._core.op import Example, Weight, pool_op
from jaxpool._core.sharding import split_alike
from jaxpool._core.weights import module_size, scaled_normal
from jaxpool._core.window import (
    Ints,
    Window,
    as_flag,
    as_int,
    as_ints,
    as_number,
    fail,
    is_sequence,
)

__all__ = ["learned_polyphase_pool", "polyphase_pool"]

_NORMS = (1, 2, math.inf)


@pool_op(
    "polyphase",
    "other",
    inputs=("x", "index"),
    outputs=2,
    example=Example([(2, 4, 4, 16), (2,)]),
)
def polyphase_pool(
    x: ArrayLike,
    strides: Ints,
    *,
    index: ArrayLike | None = None,
    norm: float = 2,
    axis: Ints | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The polyphase component with the largest norm, and which one that is.

    .. math:: y = x^{(i)}, \qquad
        i = \min \arg\max_p \Big(\sum_{o, c} |x^{(p)}_{o, c}|^q\Big)^{1/q}

    over all places and channels, for each sample. What else is added to the result, as
    the other branch of a residual block, has to be sampled alike: pass it `index`.
    Convolutions in front must be circular for the whole to move with its input.

    Gradient: that of the output, to the chosen component.

    Args:
      x: `[B..., S..., C]`, of any dtype.
      strides: :math:`s` for each pooled axis, which divides its size; an int needs
        `axis=`.
      index: which component to take, int of a shape broadcastable to `[B...]`; one
        that there is not is refused, and under `jit`, where values are not known, gives
        0. Or weights `[B..., number of components]` to add them up with, floating, as
        :func:`learned_polyphase_pool` returns them.
      norm: :math:`q`, one of 1, 2 and infinity.
      axis: the pooled axes, by default those before a trailing channel axis. Channels
        are the last axis that is not among them, and the rest are samples.

    Returns:
      values: `[B..., S/s..., C]` in the dtype of `x`; integers, weighted, as floats.
      index: int32 `[B...]`, or the weights that were given. A component with NaN has
        the largest norm of all.

    Raises:
      ValueError, TypeError: for arguments that break these rules.

    Example:
      The input moves by one, and what is chosen moves with it:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 5.0, 2.0, 6.0])[:, None]
      >>> y, index = jp.polyphase_pool(x, (2,))
      >>> y[:, 0], int(index)
      (Array([5., 6.], dtype=float32), 1)
      >>> y, index = jp.polyphase_pool(jnp.roll(x, 1), (2,))
      >>> y[:, 0], int(index)
      (Array([6., 5.], dtype=float32), 0)
    """
    caller = "polyphase_pool"
    rule = "must be one of 1, 2 and infinity"
    norm = as_number(caller, "norm", norm, rule, lambda n: n in _NORMS)
    phases = _phases(caller, x, strides, axis)
    if index is None:
        chosen = jnp.argmax(_sizes(phases, norm), -1).astype(jnp.int32)
        return phases.chosen(chosen), chosen
    given = as_array(caller, index, "index")
    count, batch = len(phases.parts), phases.batch
    if jnp.issubdtype(given.dtype, jnp.floating):
        if given.shape[-1:] != (count,) or not _fits(given.shape[:-1], batch):
            rule = f"must have a weight for each of {count} components of {batch}"
            raise fail(caller, "index", rule, given.shape)
        given = jnp.broadcast_to(given, (*batch, count))
        return phases.blend(given), given
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise fail(caller, "index", "must be int or floating", given.dtype, TypeError)
    if not _fits(given.shape, batch):
        rule = f"must broadcast to the shape of the samples, {batch}"
        raise fail(caller, "index", rule, given.shape)
    if not isinstance(given, Tracer):
        numbers = np.asarray(given).astype(np.int64)
        if np.any((numbers < 0) | (numbers >= count)):
            raise fail(caller, "index", f"must lie in [0, {count})", index)
    given = jnp.broadcast_to(int32_of(given), batch)
    return phases.chosen(given), given


def _learned_weights(
    features: int,
    strides: Ints,
    *,
    axis: Ints | None = None,
    hidden_features: int | None = None,
) -> dict[str, Weight]:
    """The convolution starts LeCun-normal, with biases at 0; so does what follows it.

    Args:
      features: channels C of the input.
      hidden_features: channels H of the convolution, C by default.
    """
    caller = "LearnedPolyphasePool"
    channels = as_int(caller, "features", features, 1)
    hidden = module_size(caller, "hidden_features", hidden_features, channels)
    named: Any = strides if axis is None else axis
    spatial = len(named) if is_sequence(named) else 1
    if axis is None and not is_sequence(strides):
        rule = "must be a sequence with one int for each pooled axis, unless `axis=`"
        raise fail(caller, "strides", f"{rule} is given", strides)
    as_ints(caller, "strides", strides, spatial, 1)
    kernel = (3,) * spatial
    return {
        "conv_kernel": ((*kernel, channels, hidden), initializers.lecun_normal()),
        "conv_bias": ((hidden,), initializers.zeros),
        "out_kernel": ((hidden,), scaled_normal(hidden)),
    }


@pool_op(
    "polyphase",
    "other",
    takes_key=True,
    weights=_learned_weights,
    outputs=2,
    example=Example([(2, 4, 4, 16), (2, 4)]),
)
def learned_polyphase_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    strides: Ints,
    *,
    key: Any = None,
    deterministic: bool = False,
    temperature: ArrayLike = 1.0,
    axis: Ints | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The polyphase component that a small network prefers, or in training a blend.

    With the scores :math:`z_p = v^T \operatorname{mean}_o \operatorname{relu}
    (w * x^{(p)} + b)_o` of a circular convolution with 3 taps along each axis,

    .. math:: y = \sum_p g_p x^{(p)}, \quad
        g = \operatorname{softmax}((z + \epsilon) / \tau) \quad \text{(training)},
        \qquad y = x^{(\min \arg\max_p z_p)} \quad \text{(deterministic)}

    with noise :math:`\epsilon` from Gumbel's distribution: for :math:`\tau \to 0`, p is
    drawn with the probabilities :math:`\operatorname{softmax}(z)`. A second circular
    convolution before the mean, as in the authors' code, would be no other function: a
    mean over all places does not see which of its taps an element went through.

    Gradient: in training, of all there is; in evaluation, that of the output, to the
    chosen component.

    Args:
      x: `[B..., S..., C]`, real.
      params: arrays by name: `conv_kernel` :math:`w` `[3..., C, H]`, `conv_bias`
        :math:`b` `[H]` and `out_kernel` :math:`v` `[H]`.
      strides, axis: the components, as in :func:`polyphase_pool`.
      key: a PRNG key, typed or raw; the same key draws the same noise.
      deterministic: whether to take the best component, which needs no key.
      temperature: :math:`\tau`, a scalar greater than 0; meant to fall during
        training.

    Returns:
      values: `[B..., S/s..., C]`; floats in the dtype of `x`, integers as floats.
      weights: :math:`g` `[B..., number of components]`, of which one is 1 in
        evaluation; the `index` of :func:`polyphase_pool` for whatever else has to be
        sampled alike.

    Raises:
      ValueError, TypeError: as in :func:`polyphase_pool`, for arrays that are missing,
        unknown or of the wrong shape, and without a key to draw with.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([1.0, 5.0, 2.0, 6.0])[:, None]
      >>> ones = {"conv_kernel": jnp.ones((3, 1, 1)), "out_kernel": jnp.ones(1)}
      >>> params = {**ones, "conv_bias": jnp.zeros(1)}
      >>> y, weights = jp.learned_polyphase_pool(x, params, (2,), deterministic=True)
      >>> y[:, 0], weights
      (Array([5., 6.], dtype=float32), Array([0., 1.], dtype=float32))
    """
    caller = "learned_polyphase_pool"
    phases = _phases(caller, x, strides, axis)
    check_whole(caller, phases.x, [phases.channel])
    w = _read(caller, params, phases)
    scores = jnp.stack([_score(part, w) for part in phases.arranged(w)], -1)
    every = range(-scores.ndim, 0)
    tau = as_parameter(caller, "temperature", temperature, scores, every, positive=True)
    if as_flag(caller, "deterministic", deterministic):
        chosen = jnp.argmax(scores, -1).astype(jnp.int32)
        weights = jax.nn.one_hot(chosen, len(phases.parts), dtype=scores.dtype)
        return phases.chosen(chosen).astype(phases.dtype), weights
    noise = jax.random.gumbel(as_key(caller, key), scores.shape, jnp.float32)
    scores += split_alike(noise, scores.shape, scores).astype(scores.dtype)
    weights = jax.nn.softmax(scores / tau.astype(scores.dtype), -1)
    return phases.blend(weights), weights


class _Phases(NamedTuple):
    """The components of `[B..., S..., C]` or another layout."""

    x: jax.Array
    geometry: Geometry
    channel: int
    parts: list[jax.Array]

    @property
    def rest(self) -> tuple[int, ...]:
        """The axes of a component that are no batch axes, counted from the front."""
        inner = (*self.geometry.pooled, self.channel)
        return tuple(sorted(a + self.x.ndim for a in inner))

    @property
    def batch(self) -> tuple[Any, ...]:
        return tuple(n for a, n in enumerate(self.x.shape) if a not in self.rest)

    @property
    def dtype(self) -> Any:
        """That of a weighted sum."""
        return mean_dtype(self.x.dtype)

    def chosen(self, index: jax.Array) -> jax.Array:
        """The component that `index` `[B...]` names; 0 where there is none."""
        index, y = lax.expand_dims(index, self.rest), jnp.zeros((), self.x.dtype)
        for i, part in enumerate(self.parts):
            y = jnp.where(index == i, part, y)
        return y

    def blend(self, weights: jax.Array) -> jax.Array:
        """The sum of all with weights `[B..., number]`; weight 0 hides it."""
        wide = jnp.promote_types(accumulation_dtype(self.dtype), weights.dtype)
        terms = []
        for i, part in enumerate(self.parts):
            weight = lax.expand_dims(weights[..., i].astype(wide), self.rest)
            terms.append(weight * jnp.where(weight == 0, 0, part.astype(wide)))
        return sum(terms[1:], terms[0]).astype(self.dtype)

    def arranged(self, w: Mapping[str, jax.Array]) -> list[jax.Array]:
        """The components as `[B..., S..., C]`, in the dtype of the arrays `w`."""
        of = (*self.geometry.pooled, self.channel)
        to = range(-len(of), 0)
        dtype = w["out_kernel"].dtype
        return [jnp.moveaxis(part.astype(dtype), of, to) for part in self.parts]


def _phases(caller: str, x: ArrayLike, strides: Ints, axis: Ints | None) -> _Phases:
    x = as_array(caller, x, ordered=True)
    axes, steps = output_axes(caller, strides, axis, x.ndim, argument="strides")
    check_whole(caller, x, axes)
    rest = set(range(-x.ndim, 0)) - set(axes)
    if not rest:
        raise fail(caller, "axis", "must leave an axis of channels", axis)
    for a, step in zip(axes, steps, strict=True):
        size = static_size(caller, x.shape[a])
        if size % step or not size:
            rule = f"must divide the size of axis {a}, which is {size}"
            raise fail(caller, "strides", rule, strides)
    geometry = Geometry.of(Window.of(caller, steps, steps, axis=axes), x.shape)
    return _Phases(x, geometry, max(rest), window_taps(x, geometry))


def _sizes(phases: _Phases, norm: float) -> jax.Array:
    """What orders the components as their norms do: `[B..., number]`."""
    x, geometry, channel = phases.x, phases.geometry, phases.channel
    x = lax.stop_gradient(x).astype(accumulation_dtype(phases.dtype))
    # Channels first, which is one pass over the input as it lies.
    if norm == 1:
        plane, reduce = jnp.sum(jnp.abs(x), channel, keepdims=True), jnp.sum
    else:
        plane = jnp.max(jnp.abs(x), channel, keepdims=True, initial=0)
        reduce = jnp.max
    if norm == 2:
        # One scale for all components, whose squares must not overflow.
        scale = power_of_two_scale(plane, geometry.pooled, 2)
        plane, reduce = jnp.sum((x / scale) ** 2, channel, keepdims=True), jnp.sum
    sizes = [reduce(part, phases.rest) for part in window_taps(plane, geometry)]
    return jnp.stack(sizes, -1)


def _fits(shape: Sequence[Any], batch: Sequence[Any]) -> bool:
    """Whether an array of a shape broadcasts to the samples."""
    tail = batch[len(batch) - len(shape) :]
    return len(shape) <= len(batch) and all(
        n in (1, m) for n, m in zip(shape, tail, strict=True)
    )


def _read(
    caller: str, params: Mapping[str, ArrayLike], phases: _Phases
) -> dict[str, jax.Array]:
    """The arrays, wide enough, if their shapes fit."""
    if not isinstance(params, Mapping):
        rule = "must be a mapping of arrays by name"
        raise fail(caller, "params", rule, type(params), TypeError)
    names = {"conv_kernel", "conv_bias", "out_kernel"}
    if set(params) != names:
        rule = f"must have {', '.join(sorted(names))} and nothing else"
        raise fail(caller, "params", rule, sorted(params))
    w = {name: as_array(caller, a, f"params[{name!r}]") for name, a in params.items()}
    hidden = w["out_kernel"].shape
    channels = phases.x.shape[phases.channel]
    expected = {
        "conv_kernel": ((3,) * len(phases.geometry.axes) + (channels,) + hidden),
        "conv_bias": hidden,
        "out_kernel": hidden,
    }
    for name, shape in expected.items():
        if w[name].shape != shape or len(hidden) != 1:
            rule = f"must have the shape {shape} to fit `x` and the other arrays"
            raise fail(caller, f"params[{name!r}]", rule, w[name].shape)
    dtypes = (
        accumulation_dtype(a) for a in (phases.dtype, *(a.dtype for a in w.values()))
    )
    wide = np.result_type(*dtypes)
    return {name: a.astype(wide) for name, a in w.items()}


@jax.jit
def _score(part: jax.Array, w: Mapping[str, jax.Array]) -> jax.Array:
    """The score `[B...]` of a component `[B..., S..., C]`."""
    spatial = w["conv_kernel"].ndim - 2
    batch, inner = part.shape[: -spatial - 1], part.shape[-spatial - 1 :]
    z = part if len(batch) == 1 else part.reshape(math.prod(batch), *inner)
    z = jnp.pad(z, [(0, 0), *[(1, 1)] * spatial, (0, 0)], mode="wrap")
    places = tuple(range(1, spatial + 1))
    lines = (0, spatial + 1, *places)
    z = lax.conv_general_dilated(
        z,
        w["conv_kernel"],
        (1,) * spatial,
        "VALID",
        dimension_numbers=lax.ConvDimensionNumbers(
            lines, (spatial + 1, spatial, *range(spatial)), lines
        ),
        precision=lax.Precision.HIGHEST,
    )
    bias = lax.expand_dims(w["conv_bias"], range(spatial + 1))
    hidden = jnp.mean(jax.nn.relu(z + bias), places)
    scores = jnp.matmul(hidden, w["out_kernel"], precision=lax.Precision.HIGHEST)
    return scores if len(batch) == 1 else scores.reshape(batch)
