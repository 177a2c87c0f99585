"""Aggregation: how features spread and gather, not only where their mean is.

A token is the vector of channels at one place. Sums of squares are taken of deviations
from the mean, divided by a power of two where their squares would leave the range of
float32; roots have value and gradient 0 at 0. Learned arrays arrive in `params`, a
mapping by name, as in :mod:`jaxpool._ops.attention`.

References:
  Peihua Li, Jiangtao Xie, Qilong Wang, Zilin Gao: Towards Faster Training of Global
  Covariance Pooling Networks by Iterative Matrix Square Root Normalization, 2018.
  Relja Arandjelovic, Petr Gronat, Akihiko Torii, Tomas Pajdla, Josef Sivic: NetVLAD:
  CNN Architecture for Weakly Supervised Place Recognition, 2016.
  David Snyder, Daniel Garcia-Romero, Gregory Sell, Daniel Povey, Sanjeev Khudanpur:
  X-Vectors: Robust DNN Embeddings for Speaker Recognition, 2018.
  Koji Okabe, Takafumi Koshinaka, Koichi Shinoda: Attentive Statistics Pooling for Deep
  Speaker Embedding, 2018.
  Brecht Desplanques, Jenthe Thienpondt, Kris Demuynck: ECAPA-TDNN: Emphasized Channel
  Attention, Propagation and Aggregation in TDNN Based Speaker Verification, 2020.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, check_whole, whole
from jaxpool._core.attention import (
    Tokens,
    affine,
    like,
    read_learned,
    softmax,
    softmax_powers,
    token_axes,
)
from jaxpool._core.geometry import Geometry
from jaxpool._core.numerics import (
    accumulation_dtype,
    hide,
    mean_dtype,
    power_of_two_scale,
    safe_power,
)
from jaxpool._core.op import Example, Weight, pool_op
from jaxpool._core.weights import fan_in_uniform, module_size, scaled_normal, sized
from jaxpool._core.window import Ints, as_flag, as_int, as_number, fail
from jaxpool._ops.average import element_count, masked_mean

__all__ = [
    "attentive_statistics_pool",
    "covariance_pool",
    "statistics_pool",
    "vlad_pool",
]

# Differences of nearly equal products: TPUs and GPUs would round factors to 8-11 bits.
_EXACT = lax.Precision.HIGHEST
_VLAD = {"centroids": "kc", "assign_kernel": "ck", "assign_bias": "k"}
_STATISTICS = {
    "hidden_kernel": "cm",
    "mean_kernel": "cm",
    "std_kernel": "cm",
    "hidden_bias": "m",
    "score_kernel": "mc",
}


@pool_op("aggregation", "other", example=Example((2, 16 * 17 // 2)))
def covariance_pool(
    x: ArrayLike,
    *,
    iterations: int = 5,
    vectorize: bool = True,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The square root of the channels' covariance, by Newton-Schulz (iSQRT-COV).

    .. math:: \Sigma = \frac{1}{n} \sum_i (x_i - \bar{x}) (x_i - \bar{x})^T, \qquad
        Y_0 = \Sigma / \operatorname{tr} \Sigma, \quad Z_0 = I, \qquad
        T_k = \tfrac{1}{2} (3 I - Z_k Y_k), \quad
        Y_{k + 1} = Y_k T_k, \quad Z_{k + 1} = T_k Z_k, \qquad
        y = \sqrt{\operatorname{tr} \Sigma}\, Y_N

    which tends to :math:`\Sigma^{1/2}`, slowly where eigenvalues are small beside the
    trace. Gradient: that of the N iterations; 0 where the trace is 0 (constant maps).
    Products are those of float32 at least, whatever the platform's default is.

    Args:
      x: `[B..., S..., C]`, real.
      iterations: N, at least 1. Directions in which nothing varies pick up rounding
        errors that grow by 1.5 an iteration: in float32 use no more than 20.
      vectorize: whether to return the upper triangle, row by row, in place of the
        symmetric matrix.
      axis: the pooled axes S; of the others the last one has the channels. By default
        all but the first and the last.
      where: boolean, broadcastable to `x`: only True elements take part. Of channels
        with masks of their own, each has its own mean and is divided by the root of its
        own number of elements; hidden ones then count as the mean.

    Returns:
      `[B..., C (C + 1) / 2]`, or `[B..., C, C]`; floats in the dtype of `x`, integers
      as floats; 0 where nothing takes part.

    Raises:
      ValueError, TypeError: as in :func:`global_max_pool`, and for iterations < 1.

    Example:
      The root, times itself, is the covariance of two channels:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
      >>> y = jp.covariance_pool(x, iterations=20, vectorize=False, axis=-2)
      >>> jnp.round(y @ y, 3)
      Array([[0.5, 0. ],
             [0. , 4.5]], dtype=float32)

    References:
      Peihua Li, Jiangtao Xie, Qilong Wang, Zilin Gao: Towards Faster Training of Global
      Covariance Pooling Networks by Iterative Matrix Square Root Normalization, 2018.
    """
    caller = "covariance_pool"
    iterations = as_int(caller, "iterations", iterations, 1)
    x, geometry, where, dtype = _read(caller, x, where, axis)
    axes, rest = token_axes(caller, geometry.pooled, x.ndim)
    check_whole(caller, x, rest[-1:])
    share = _share(x, geometry, where, 0)
    scale = _scale(x, share, (*axes, rest[-1]), where)
    z = hide(x - masked_mean(x, geometry, where, False), where) / scale
    z = z * safe_power(share, 0.5)
    z = z.transpose([a + z.ndim for a in (*rest[:-1], *axes, rest[-1])])
    batch, (*sizes, channels) = z.shape[: len(rest) - 1], z.shape[len(rest) - 1 :]
    z = z.reshape(*batch, math.prod(sizes), channels)
    covariance = jnp.einsum("...lc,...ld->...cd", z, z, precision=_EXACT)
    trace = jnp.sum(z * z, (-2, -1))[..., None, None]
    y = covariance / jnp.where(trace == 0, 1, trace)
    y = _square_root(y, iterations) * safe_power(trace, 0.5)
    y = (y * jnp.squeeze(scale, axes)[..., None]).astype(dtype)
    if not as_flag(caller, "vectorize", vectorize):
        return y
    if channels**2 >= 2**31:
        rule = "must have fewer than 46,341 channels, for an int32 to count their pairs"
        raise fail(caller, "x", rule, channels)
    triangle = np.ravel_multi_index(np.triu_indices(channels), (channels, channels))
    return jnp.take(y.reshape(*batch, channels**2), triangle, -1, unique_indices=True)


def _square_root(y: jax.Array, iterations: int) -> jax.Array:
    """The square root of matrices whose eigenvalues lie in [0, 1], nearly."""

    def product(a, b):
        return jnp.matmul(a, b, precision=_EXACT)

    z = None  # I
    for k in range(iterations):
        t = 1.5 * jnp.eye(y.shape[-1], dtype=y.dtype)
        t = like(t, y) - 0.5 * (y if z is None else product(z, y))
        y = product(y, t)
        if k < iterations - 1:
            z = t if z is None else product(t, z)
    return y


@pool_op("aggregation", "other", example=Example((2, 32)))
def statistics_pool(
    x: ArrayLike,
    *,
    correction: float = 0,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Mean and standard deviation of each channel, side by side.

    .. math:: y = \Big[\bar{x},\ \sqrt{\frac{1}{n - c} \sum_{i=1}^n
        (x_i - \bar{x})^2}\Big]

    The means come first, along the axis of channels. The deviation is 0, with gradient
    0, where there are no more than c elements, and where all are equal, but for what
    their mean is rounded by. Gradient: that of the formula.

    Args:
      x: `[B..., S..., C]`, real.
      correction: c, at least 0: 1 gives the unbiased variance.
      axis: the pooled axes S; of the others the last one has the channels. By default
        all but the first and the last.
      where: boolean, broadcastable to `x`: only True elements take part.

    Returns:
      `[B..., 2C]`; floats in the dtype of `x`, integers as floats; 0 where nothing
      takes part.

    Raises:
      ValueError, TypeError: as in :func:`global_max_pool`, and for a correction < 0.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> jp.statistics_pool(jnp.array([[[1.0], [1.0], [5.0], [5.0]]]))
      Array([[3., 2.]], dtype=float32)

    References:
      David Snyder, Daniel Garcia-Romero, Gregory Sell, Daniel Povey, Sanjeev Khudanpur:
      X-Vectors: Robust DNN Embeddings for Speaker Recognition, 2018.
    """
    caller = "statistics_pool"
    correction = _at_least_0(caller, "correction", correction)
    x, geometry, where, dtype = _read(caller, x, where, axis)
    _, rest = token_axes(caller, geometry.pooled, x.ndim)
    mean = masked_mean(x, geometry, where, False)
    share = _share(x, geometry, where, correction)
    spread = _spread(x, mean, share, geometry.pooled, where)
    y = jnp.concatenate([mean, spread], rest[-1]).astype(dtype)
    return jnp.squeeze(y, geometry.pooled)


def _statistics_weights(
    features: int,
    *,
    hidden_features: int | None = None,
    global_context: bool = True,
) -> dict[str, Weight]:
    """Kernels and the bias start uniform between ±n**-0.5, n the features they act on.

    Args:
      features: channels C of the input.
      hidden_features: channels M between the two layers, C / 8 but at least 8 by
        default.
      global_context: whether the first layer sees mean and deviation of all tokens.
    """
    caller = "AttentiveStatisticsPool"
    c = as_int(caller, "features", features, 1)
    m = module_size(caller, "hidden_features", hidden_features, max(c // 8, 8))
    context = ["mean_kernel", "std_kernel"] if global_context else []
    first = fan_in_uniform(c * (1 + len(context)))
    names = ["hidden_kernel", *context, "hidden_bias"]
    inits = {**dict.fromkeys(names, first), "score_kernel": fan_in_uniform(m)}
    return sized(inits, {"c": c, "m": m}, _STATISTICS)


@pool_op("aggregation", "other", weights=_statistics_weights, example=Example((2, 32)))
def attentive_statistics_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    hidden_fn: Callable[[jax.Array], jax.Array] | None = None,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Mean and standard deviation of each channel, with weights by attention (ASTP).

    .. math:: a = \operatorname{softmax}_i\left(\tanh\left(f\left(x_i W_x +
        \bar{x} W_m + \sigma W_s + b\right)\right) V\right), \qquad
        \mu = \sum_i a_i x_i, \qquad y = \Big[\mu,\ \sqrt{\sum_i a_i (x_i - \mu)^2}\Big]

    with weights of its own for each channel, and with mean :math:`\bar{x}` and standard
    deviation :math:`\sigma` of all tokens as their context, or without. A bias behind V
    would cancel, and is left out. The deviation is 0, with gradient 0, where all tokens
    are equal, but for what their mean is rounded by.

    Args:
      x: `[B..., S..., C]`, floating.
      params: arrays by name: `hidden_kernel` `[C, M]` (:math:`W_x`), `score_kernel`
        `[M, C]` (V) and, each where wanted, `mean_kernel` and `std_kernel` `[C, M]`
        (:math:`W_m`, :math:`W_s`), `hidden_bias` `[M]`. Where context is concatenated
        to the tokens instead, the first three are the blocks of one `[3 C, M]` kernel.
      hidden_fn: f, of all hidden features `[B..., L, M]` at once, whose shape it keeps;
        by default the identity. ECAPA-TDNN has ReLU and BatchNorm here, which a module
        takes as Flax's own: it holds their weights and running statistics, and
        `train()` and `eval()` reach them. Tokens that a mask hides are among the L,
        as zeros, so that statistics of a batch count them.
      axis: the axes S along which tokens lie; of the others the last one has the
        channels. By default all but the first and the last.
      where: boolean, broadcastable to the shape of `x` without channels: only True
        tokens take part. What a mask hides has no effect and no gradient.

    Returns:
      `[B..., 2C]`, means first, in the dtype of `x`; 0, with gradient 0, where no token
      takes part.

    Raises:
      ValueError, TypeError: for arguments that break these rules, arrays whose shapes
        do not fit together or that are unknown, and integers: tokens are features.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[1.0], [1.0], [5.0], [5.0]]])
      >>> params = {"hidden_kernel": jnp.ones((1, 2)), "score_kernel": jnp.ones((2, 1))}
      >>> jp.attentive_statistics_pool(x, params).round(1)  # nearer the larger two
      Array([[3.5, 1.9]], dtype=float32)

      As in ECAPA-TDNN, in NNX; in Linen f is `nn.Sequential([nn.relu,
      nn.BatchNorm(use_running_average=not train)])`:

      >>> from flax import nnx
      >>> from jaxpool.nnx import AttentiveStatisticsPool
      >>> rngs = nnx.Rngs(0)
      >>> f = nnx.Sequential(nnx.relu, nnx.BatchNorm(128, rngs=rngs))
      >>> pool = AttentiveStatisticsPool(
      ...     64, hidden_features=128, hidden_fn=f, rngs=rngs
      ... )
      >>> pool.eval()
      >>> pool(jnp.ones((2, 50, 64))).shape
      (2, 128)

    References:
      Koji Okabe, Takafumi Koshinaka, Koichi Shinoda: Attentive Statistics Pooling for
      Deep Speaker Embedding, 2018.
      Brecht Desplanques, Jenthe Thienpondt, Kris Demuynck: ECAPA-TDNN, 2020 (weights
      for each channel, and the context).
    """
    caller = "attentive_statistics_pool"
    needs = ("hidden_kernel", "score_kernel")
    tokens, w = read_learned(caller, x, params, where, axis, _STATISTICS, needs)
    hidden = affine(tokens.x, w, "hidden")
    if {"mean_kernel", "std_kernel"} & set(w):
        even = hide(jnp.ones_like(tokens.x[..., :1]), tokens.visible)
        context = _statistics(tokens, even)
        for name, values in zip(("mean_kernel", "std_kernel"), context, strict=True):
            if name in w:
                hidden = hidden + jnp.tensordot(values, w[name], 1)
    if hidden_fn is not None:
        hidden = _of_hidden(caller, hidden_fn, hidden)
    scores = affine(jnp.tanh(hidden), w, "score")
    powers = softmax_powers(scores, tokens.visible, -2)
    # Without the barrier XLA keeps what both statistics compute of the tokens.
    tokens = tokens._replace(x=lax.optimization_barrier((tokens.x, powers))[0])
    y = jnp.concatenate(_statistics(tokens, powers), -1)
    return tokens.finish(y[..., 0, :])


def _of_hidden(
    caller: str, hidden_fn: Callable[[jax.Array], jax.Array], hidden: jax.Array
) -> jax.Array:
    """What `hidden_fn` makes of hidden features, if that has their shape."""
    if not callable(hidden_fn):
        rule = "must be a function of the hidden features, or None"
        raise fail(caller, "hidden_fn", rule, hidden_fn, TypeError)
    y = as_array(caller, hidden_fn(hidden), "hidden_fn")
    if y.shape != hidden.shape:
        rule = f"must keep the shape {hidden.shape} of the hidden features"
        raise fail(caller, "hidden_fn", rule, y.shape)
    return y.astype(hidden.dtype)


def _vlad_weights(
    features: int, *, num_clusters: int = 64, decoupled: bool = True
) -> dict[str, Weight]:
    """Centroids start normal, of deviation C**-0.5, and what decouples them at 0.

    Args:
      features: channels C of the input.
      num_clusters: number K of centroids.
      decoupled: whether the assignment learns a kernel and a bias of its own.
    """
    c = as_int("VLADPool", "features", features, 1)
    k = as_int("VLADPool", "num_clusters", num_clusters, 1)
    zeros = initializers.zeros
    own = {"assign_kernel": zeros, "assign_bias": zeros} if decoupled else {}
    return sized({"centroids": scaled_normal(c), **own}, {"c": c, "k": k}, _VLAD)


@pool_op(
    "aggregation",
    "other",
    weights=_vlad_weights,
    camel="VLADPool",
    example=Example((2, 128), arguments="features=16, num_clusters=8"),
)
def vlad_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    alpha: float = 1.0,
    normalize: bool = True,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Residuals of tokens to learned centroids, added up by cluster (NetVLAD).

    .. math:: a_i = \operatorname{softmax}_k\left((2 \alpha c_k + w_k)^T x_i
        - \alpha \lVert c_k \rVert^2 + b_k\right), \qquad
        V_k = \sum_i a_{ik} (x_i - c_k), \qquad
        y = \operatorname{unit}\left(\left[\operatorname{unit}(V_k)\right]_k\right)

    where unit divides by the Euclidean norm, and leaves 0 (with gradient 0) of 0: an
    empty cluster spoils nothing. With w = 0 and b = 0 tokens are assigned by their
    distance to the centroids, :math:`-\alpha \lVert x_i - c_k \rVert^2`; that is where
    NetVLAD starts, and w and b, which start there, are what training adds to it.
    Where a kernel and a bias come from elsewhere, as in weights of other libraries,
    `alpha=0` takes w and b for all of them.

    Args:
      x: `[B..., S..., C]`, floating.
      params: arrays by name: `centroids` `[K, C]` and, each where wanted,
        `assign_kernel` `[C, K]` (w) and `assign_bias` `[K]` (b).
      alpha: how sharply distances decide, at least 0, in units of 1 / `x` squared.
      normalize: whether clusters, and then all of them together, are divided by their
        norms.
      axis, where: as in :func:`attentive_statistics_pool`.

    Returns:
      `[B..., K C]`, cluster by cluster, in the dtype of `x`; 0, with gradient 0, where
      no token takes part.

    Raises:
      ValueError, TypeError: as in :func:`attentive_statistics_pool`.

    Example:
      What is left of each token behind the centroid next to it:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[3.0, 4.0], [0.0, 0.0]]])
      >>> centroids = jnp.array([[3.0, 0.0], [0.0, -1.0]])
      >>> jp.vlad_pool(x, {"centroids": centroids}, alpha=100.0, normalize=False)
      Array([[0., 4., 0., 1.]], dtype=float32)

    References:
      Relja Arandjelovic, Petr Gronat, Akihiko Torii, Tomas Pajdla, Josef Sivic:
      NetVLAD: CNN Architecture for Weakly Supervised Place Recognition, 2016.
    """
    caller = "vlad_pool"
    alpha = _at_least_0(caller, "alpha", alpha)
    tokens, w = read_learned(caller, x, params, where, axis, _VLAD, ("centroids",))
    x, c = tokens.x, w["centroids"]
    distances = {
        "assign_kernel": 2 * alpha * c.T + w.get("assign_kernel", 0),
        "assign_bias": w.get("assign_bias", 0) - alpha * jnp.sum(c * c, -1),
    }
    assigned = hide(softmax(affine(x, distances, "assign"), None), tokens.visible)
    y = jnp.einsum("...lk,...lc->...kc", assigned, x, precision=_EXACT)
    y = y - jnp.sum(assigned, -2)[..., None] * like(c, y)
    if as_flag(caller, "normalize", normalize):
        y = _unit(_unit(y, (-1,)), (-2, -1))
    return tokens.finish(y.reshape(*y.shape[:-2], c.size))


def _at_least_0(caller: str, name: str, value: Any) -> float:
    rule = "must be finite and at least 0"
    return as_number(caller, name, value, rule, lambda n: 0 <= n < math.inf)


def _read(
    caller: str, x: ArrayLike, where: ArrayLike | None, axis: Ints | None
) -> tuple[jax.Array, Geometry, jax.Array | None, np.dtype]:
    """Returns the array in the dtype to compute in, and the dtype of the result."""
    x, geometry, where = whole(caller, x, where, axis, ordered=True)
    dtype = mean_dtype(x.dtype)
    return x.astype(accumulation_dtype(dtype)), geometry, where, dtype


def _share(
    x: jax.Array, geometry: Geometry, where: jax.Array | None, correction: float
) -> jax.Array:
    """1 / n, with n the number of True elements, less the correction; 0 for n <= 0."""
    counts = element_count(x.dtype, x.ndim, geometry, where, False)
    counts = jnp.asarray(counts, x.dtype) - jnp.asarray(correction, x.dtype)
    return jnp.where(counts > 0, 1 / jnp.where(counts > 0, counts, 1), 0)


def _scale(
    x: jax.Array, share: jax.Array, axes: Sequence[int], where: jax.Array | None
) -> jax.Array:
    """A power of two to divide deviations by, before their squares are added up.

    That of magnitudes, whose rounding is the least that deviations can be: XLA then
    need not keep the deviations, and a sum is faster than a maximum.
    """
    sizes = jnp.abs(hide(lax.stop_gradient(x), where))
    return power_of_two_scale(jnp.sum(share * sizes, tuple(axes), keepdims=True), (), 2)


def _spread(
    x: jax.Array,
    mean: ArrayLike,
    share: jax.Array,
    axes: Sequence[int],
    where: jax.Array | None = None,
) -> jax.Array:
    """The root of the sum of squared deviations, of which each counts by its share."""
    scale = _scale(x, share, axes, where)
    z = hide(x - mean, where) / scale
    return safe_power(jnp.sum(share * z * z, tuple(axes), keepdims=True), 0.5) * scale


def _unit(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """x divided by its norm along these axes; 0, with gradient 0, for 0."""
    norm = _spread(x, 0, jnp.ones((), x.dtype), axes)
    some = norm != 0
    return hide(x, some) / jnp.where(some, norm, 1)


def _statistics(tokens: Tokens, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted mean and standard deviation of the tokens, `[B..., 1, C]`."""
    total = jnp.sum(weights, -2, keepdims=True)
    total = jnp.where(total == 0, 1, total)
    mean = jnp.sum(weights * tokens.x, -2, keepdims=True) / total
    # Hidden tokens are 0, and so are their weights.
    return mean, _spread(tokens.x, mean, weights, (-2,)) / jnp.sqrt(total)
