"""Attention: a weighted mean of tokens, with weights that the tokens decide.

A token is the vector of channels at one place. All pools here are one formula, with
:math:`Q` queries, :math:`K` keys and :math:`V` values in `num_heads` groups of
channels of size d,

.. math:: \\operatorname{softmax}\\left(Q K^T / \\sqrt{d}\\right) V

and differ in where the queries come from, and in what is learned. Learned arrays
arrive in `params`, a mapping by name; those of no use in a pool are refused, and a
projection that is absent is the identity. A module creates them; so does
`jaxpool.linen.AttentionPool(...).init(key, x)["params"]`, for use without modules.

  query                        [Q, E] or [E]   learned queries
  q_kernel, q_bias             [E, D], [D]     projection of the queries,
  k_kernel, k_bias             [C, D], [D]     of the keys
  v_kernel, v_bias             [C, D], [D]     and of the values
  qkv_kernel, qkv_bias         [C, 3D], [3D]   the three in one, or
  kv_kernel, kv_bias           [C, 2D], [2D]   the last two
  out_kernel, out_bias         [D, F], [F]     projection of the result
  q_norm_scale, q_norm_bias    [D / heads]     layer norm of every head's queries
  k_norm_scale, k_norm_bias    [D / heads]     and of its keys
  token_norm_scale, ..._bias   [C]             layer norm of the tokens
  cls_token                    [C]             a token in front of the others
  positions                    [P, C]          added to the tokens
  norm_scale, norm_bias        [F]             layer norm before the perceptron
  mlp_in_kernel, mlp_in_bias   [F, M], [M]     perceptron whose result
  mlp_out_kernel, ..._bias     [M, F], [F]     is added to its input
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array, as_parameter
from jaxpool._core.geometry import static_size
from jaxpool._core.numerics import (
    accumulation_dtype,
    hide,
    power_of_two_scale,
    safe_power,
)
from jaxpool._core.op import Weight, pool_op
from jaxpool._core.window import (
    Ints,
    as_int,
    as_ints,
    fail,
    is_sequence,
    resolve_axes,
)
from jaxpool._ops.average import global_avg_pool
from jaxpool._ops.extremum import global_min_pool

__all__ = [
    "attention_pool",
    "clip_attention_pool",
    "latent_attention_pool",
    "map_pool",
    "rotary_attention_pool",
    "sim_pool",
]

# The axes of each array; equal letters are equal sizes.
_SHAPES = {
    "query": "e|qe",
    "q_kernel": "ed",
    "q_bias": "d",
    "k_kernel": "cd",
    "k_bias": "d",
    "v_kernel": "cd",
    "v_bias": "d",
    "out_kernel": "df",
    "out_bias": "f",
    "q_norm_scale": "h",
    "q_norm_bias": "h",
    "k_norm_scale": "h",
    "k_norm_bias": "h",
    "token_norm_scale": "c",
    "token_norm_bias": "c",
    "cls_token": "c",
    "positions": "pc",
    "norm_scale": "f",
    "norm_bias": "f",
    "mlp_in_kernel": "fm",
    "mlp_in_bias": "m",
    "mlp_out_kernel": "mf",
    "mlp_out_bias": "f",
}
_ATTENTION = ("q", "k", "v", "out")
_HEAD = (*_ATTENTION, "query", "norm", "mlp_in", "mlp_out")
_SPATIAL = (*_ATTENTION, "cls_token")
Initializer = Callable[..., Any]


def _attention_weights(
    features: int,
    *,
    num_heads: int,
    num_queries: int | None = None,
    embed_features: int | None = None,
    out_features: int | None = None,
    use_bias: bool = True,
) -> dict[str, Weight]:
    """Kernels and queries start Xavier-uniform, biases at 0.

    Args:
      features: channels C of the input.
      num_queries: number Q of learned queries; None for one without an axis of its own.
      embed_features: channels D of queries, keys and values; C by default.
      out_features: channels F of the result, C by default; 0 for no output projection.
      use_bias: whether projections have biases.
    """
    sizes = _sizes("AttentionPool", features, num_heads, embed_features, out_features)
    sizes["q"] = _size("AttentionPool", "num_queries", num_queries)
    return _sized(
        {
            "query": _uniform(math.sqrt(6 / (1 + sizes["c"]))),
            **_dense(_ATTENTION, _glorot, _zeros, sizes, use_bias),
        },
        sizes,
    )


@pool_op("attention", "other", weights=_attention_weights)
def attention_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int,
    axis: Ints = -2,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""What learned queries find among the tokens, by multi-head attention.

    .. math:: y = \left[\operatorname{softmax}_i\left(
        (q W_Q)_h (x_i W_K)_h^T / \sqrt{d}\right) (x_i W_V)_h\right]_h W_O

    with heads h of d = D / num_heads channels each, and biases where given. Softmax and
    products are computed in float32 at least and rounded to the dtype of `x` once.

    Args:
      x: `[B..., L, C]`, floating.
      params: arrays by name: `query` `[C]` or `[Q, C]`, `q_kernel`, `k_kernel` and
        `v_kernel` `[C, D]`, `out_kernel` `[D, F]`, and with `bias` instead of `kernel`
        the vectors to add; all but `query` may be absent.
      num_heads: number of heads, which divides D.
      axis: the axes along which tokens lie; of the others the last one has the
        channels (`(-3, -2)` for maps, `(-2, -1)` for those with channels first).
      where: boolean, broadcastable to the shape of `x` without channels: only True
        tokens take part. What a mask hides has no effect and no gradient.

    Returns:
      `[B..., F]`, or `[B..., Q, F]` for queries `[Q, C]`, in the dtype of `x`; 0, with
      gradient 0, where no token takes part.

    Raises:
      ValueError, TypeError: for arguments that break these rules, arrays whose shapes
        do not fit together or that are unknown, and integers: tokens are features.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> params = {"query": jnp.array([100.0, 0.0])}
      >>> attention_pool(x, params, num_heads=1)
      Array([1., 0.], dtype=float32)

    References:
      Juho Lee, Yoonho Lee, Jungtaek Kim, Adam Kosiorek, Seungjin Choi, Yee Whye Teh:
      Set Transformer, 2019 (pooling by multihead attention, there with a residual).
    """
    caller, names = "attention_pool", ("query", *_ATTENTION)
    tokens, w = _read(caller, x, params, where, axis, num_heads, names, ("query",))
    return tokens.finish(_by_queries(tokens, w, num_heads))


def _map_weights(
    features: int, *, num_heads: int = 12, mlp_features: int | None = None
) -> dict[str, Weight]:
    """Kernels and the query start Xavier-uniform, biases at 0, those of the MLP near 0.

    Args:
      features: channels C of the input and of the result.
      mlp_features: hidden features of the perceptron, 4 C by default.
    """
    sizes = _sizes("MAPPool", features, num_heads)
    sizes["q"] = None
    sizes["m"] = _size("MAPPool", "mlp_features", mlp_features, 4 * features)

    def small(n):
        return initializers.normal(1e-6)

    return _sized(
        {
            "query": _uniform(math.sqrt(6 / (1 + features))),
            **_dense(_ATTENTION, _glorot, _zeros, sizes),
            **_norm("norm"),
            **_dense(("mlp_in", "mlp_out"), _glorot, small, sizes),
        },
        sizes,
    )


@pool_op("attention", "other", weights=_map_weights, camel="MAPPool")
def map_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int = 12,
    eps: float = 1e-6,
    axis: Ints = -2,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Multi-head attention pooling as in SigLIP: one query, then a perceptron.

    .. math:: a = \operatorname{attention}(q, x), \qquad
        y = a + W_2 \operatorname{gelu}(W_1 \operatorname{norm}(a) + b_1) + b_2

    with attention as in :func:`attention_pool` and the GELU's tanh approximation.

    Args:
      x: `[B..., L, C]`, floating.
      params: as in :func:`attention_pool`, and `norm_scale`, `norm_bias` `[C]`,
        `mlp_in_kernel` `[C, M]`, `mlp_in_bias` `[M]`, `mlp_out_kernel` `[M, C]`,
        `mlp_out_bias` `[C]`.
      num_heads, axis, where: as in :func:`attention_pool`.
      eps: what the layer norm adds to the variance.

    Returns:
      `[B..., C]` in the dtype of `x`; 0, with gradient 0, where no token takes part.

    Raises:
      ValueError, TypeError: as in :func:`attention_pool`.

    References:
      Xiaohua Zhai, Basil Mustafa, Alexander Kolesnikov, Lucas Beyer: Sigmoid Loss for
      Language Image Pre-Training, 2023 (`MAPHead` of their code, with masks as in
      NaFlex).
    """
    caller, needs = "map_pool", ("query", "mlp_in_kernel", "mlp_out_kernel")
    tokens, w = _read(caller, x, params, where, axis, num_heads, _HEAD, needs)
    y = _by_queries(tokens, w, num_heads, _eps(caller, eps), approximate=True)
    return tokens.finish(y)


def _latent_weights(
    features: int,
    *,
    num_heads: int = 8,
    num_queries: int = 1,
    query_features: int | None = None,
    embed_features: int | None = None,
    out_features: int | None = None,
    mlp_features: int | None = None,
    use_bias: bool = True,
    query_projection: bool = True,
    qk_norm: bool = False,
    norm: bool = False,
    num_positions: int | None = None,
) -> dict[str, Weight]:
    """Queries start truncated-normal of deviation E**-0.5, positions of C**-0.5.

    Kernels and biases start uniform between ±n**-0.5, with n the features they act on.

    Args:
      features: channels C of the input.
      num_queries: number Q of learned queries.
      query_features: channels E of the queries, D by default.
      embed_features: channels D of the attention, C by default.
      out_features: channels F of the result, C by default; 0 for neither output
        projection nor perceptron.
      mlp_features: hidden features of the perceptron, 4 F by default.
      use_bias: whether queries, keys and values have biases.
      query_projection: whether queries are projected.
      qk_norm: whether queries and keys are normed.
      norm: whether what goes into the perceptron is normed.
      num_positions: number of tokens L, for learned positions.
    """
    caller = "LatentAttentionPool"
    sizes = _sizes(caller, features, num_heads, embed_features, out_features)
    sizes["q"] = _size(caller, "num_queries", num_queries)
    sizes["e"] = _size(caller, "query_features", query_features, sizes["d"])
    sizes["p"] = _size(caller, "num_positions", num_positions)
    head = sizes["f"] is not None
    sizes["m"] = _size(caller, "mlp_features", mlp_features, 4 * (sizes["f"] or 1))
    projected = ("q", "k", "v") if query_projection else ("k", "v")
    mlp = ("out", "mlp_in", "mlp_out") if head else ()
    near = initializers.truncated_normal
    return _sized(
        {
            "query": near(sizes["e"] ** -0.5),
            **({} if num_positions is None else {"positions": near(features**-0.5)}),
            **_dense(projected, _linear, _linear, sizes, use_bias),
            **({**_norm("q_norm"), **_norm("k_norm")} if qk_norm else {}),
            **_dense(mlp, _linear, _linear, sizes),
            **(_norm("norm") if norm and head else {}),
        },
        sizes,
    )


@pool_op("attention", "other", weights=_latent_weights)
def latent_attention_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int = 8,
    pool_type: str = "token",
    eps: float = 1e-5,
    approximate: bool = False,
    axis: Ints = -2,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Attention pooling with latent queries (timm's `AttentionPoolLatent`).

    .. math:: a = \operatorname{attention}(q, x + p), \qquad
        y = a + W_2 \operatorname{gelu}(W_1 \operatorname{norm}(a) + b_1) + b_2

    for each query, with attention as in :func:`attention_pool`.

    Args:
      x: `[B..., L, C]`, floating.
      params: as in :func:`attention_pool`, with `query` `[Q, E]`, `q_kernel` `[E, D]`
        and, each where wanted, `positions` `[L, C]`, `q_norm_scale`, `q_norm_bias`,
        `k_norm_scale`, `k_norm_bias` `[D / num_heads]`, `norm_scale`, `norm_bias`
        `[F]`, `mlp_in_kernel` `[F, M]`, `mlp_out_kernel` `[M, F]` and their biases.
        `kv_kernel` `[C, 2 D]` may stand for `k_kernel` and `v_kernel`.
      num_heads, axis, where: as in :func:`attention_pool`.
      pool_type: "token" returns the first query's result, "avg" the mean over queries,
        and "" all of them.
      eps: what layer norms add to the variance.
      approximate: whether the GELU is its tanh approximation (SigLIP's weights).

    Returns:
      `[B..., F]`, or `[B..., Q, F]` for `pool_type=""`, in the dtype of `x`; 0, with
      gradient 0, where no token takes part.

    Raises:
      ValueError, TypeError: as in :func:`attention_pool`.

    References:
      Andrew Jaegle, Felix Gimeno, Andrew Brock, Andrew Zisserman, Oriol Vinyals, Joao
      Carreira: Perceiver: General Perception with Iterative Attention, 2021.
      Ross Wightman: PyTorch Image Models.
    """
    caller = "latent_attention_pool"
    names = (*_HEAD, "positions", "q_norm", "k_norm")
    _choice(caller, "pool_type", pool_type, ("token", "avg", ""))
    tokens, w = _read(caller, x, params, where, axis, num_heads, names, ("query",))
    if "positions" in w:
        _fit(caller, w, math.prod(tokens.sizes))
        tokens = tokens._replace(x=tokens.x + _like(w["positions"], tokens.x))
    y = _by_queries(tokens, w, num_heads, _eps(caller, eps), approximate)
    if w["query"].ndim == 2 and pool_type:
        y = y[..., 0, :] if pool_type == "token" else jnp.mean(y, -2)
    return tokens.finish(y)


def _clip_weights(
    features: int,
    *,
    num_heads: int,
    position_shape: Ints = (7, 7),
    embed_features: int | None = None,
    out_features: int | None = None,
    use_bias: bool = True,
    fused: bool = False,
    class_token: bool = False,
) -> dict[str, Weight]:
    """Kernels start normal of deviation D**-0.5, positions of C**-0.5.

    Biases start uniform between ±n**-0.5, with n the features of what they follow.

    Args:
      features: channels C of the input.
      embed_features: channels D of the attention, C by default.
      out_features: channels F of the result, C by default; 0 for no output projection.
      use_bias: whether queries, keys and values have biases.
      fused: whether these are one array, `qkv_kernel`.
      class_token: whether a learned token, from 0, stands for the mean token.
    """
    caller = "CLIPAttentionPool"
    sizes = _sizes(caller, features, num_heads, embed_features, out_features)
    sizes["p"] = 1 + math.prod(_map_sizes(caller, "position_shape", position_shape))

    def kernel(n):
        return _normal(sizes["d"])

    weights = {
        "positions": _normal(features),
        **({"cls_token": initializers.zeros} if class_token else {}),
        **_dense(("q", "k", "v"), kernel, _linear, sizes, use_bias),
        **_dense(("out",), kernel, _linear, sizes),
    }
    return _fuse(_sized(weights, sizes)) if fused else _sized(weights, sizes)


@pool_op("attention", "other", weights=_clip_weights, camel="CLIPAttentionPool")
def clip_attention_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int,
    position_shape: Ints = (7, 7),
    pool_type: str = "token",
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""CLIP's attention pooling of maps: the mean token asks, with learned positions.

    .. math:: z_0 = \frac{1}{n} \sum_i x_i + p_0, \qquad z_i = x_i + p_i, \qquad
        y = \operatorname{attention}(z_0, z)

    with attention as in :func:`attention_pool`, over :math:`z_0` too. For maps of
    another size than `position_shape`, positions are resampled as by
    `jax.image.resize(method="cubic", antialias=True)`, which is PyTorch's
    antialiased bicubic resampling; :math:`p_0` stays.

    Args:
      x: `[B..., S..., C]`, floating, with as many axes S as `position_shape` has
        entries.
      params: as in :func:`attention_pool`, without `query`, with `positions`
        `[P + 1, C]`, that of the mean token first and the others in row-major order,
        and where wanted a `cls_token` `[C]` in place of the mean. `qkv_kernel`
        `[C, 3 D]` and `qkv_bias` may stand for those of `q`, `k` and `v`.
      num_heads: as in :func:`attention_pool`.
      position_shape: sizes of the map of P positions.
      pool_type: "token" returns what the mean token finds; "" what every other token
        does, as a map of the layout of `x`.
      axis: the axes S of any other layout, `(-2, -1)` for channels first.
      where: as in :func:`attention_pool`; hidden tokens are no part of the mean.

    Returns:
      `[B..., F]`, or `[B..., S..., F]` for `pool_type=""`, in the dtype of `x`; 0, with
      gradient 0, where no token takes part, and at the places of hidden ones.

    Raises:
      ValueError, TypeError: as in :func:`attention_pool`.

    References:
      Alec Radford, Jong Wook Kim, Chris Hallacy, and others: Learning Transferable
      Visual Models From Natural Language Supervision, 2021.
    """
    caller = "clip_attention_pool"
    old, axis = _map_axes(caller, "position_shape", position_shape, axis)
    names = (*_SPATIAL, "positions")
    tokens, w = _read(caller, x, params, where, axis, num_heads, names, ("positions",))
    sizes = tuple(static_size(caller, s) for s in tokens.sizes)
    positions = _fit(caller, w, math.prod(old) + 1)
    if sizes != old:
        grid = positions[1:].reshape(*old, -1)
        shape = (*sizes, positions.shape[-1])
        grid = jax.image.resize(grid, shape, "cubic", antialias=True)
        grid = grid.reshape(-1, positions.shape[-1])
        positions = jnp.concatenate([positions[:1], grid])
    z = _with_first(tokens, w)
    z = z._replace(x=z.x + _like(positions, z.x))
    return _by_first(caller, tokens, z, w, num_heads, pool_type)


def _rotary_weights(
    features: int,
    *,
    num_heads: int,
    embed_features: int | None = None,
    out_features: int | None = None,
    use_bias: bool = True,
    fused: bool = False,
    class_token: bool = False,
) -> dict[str, Weight]:
    """Kernels of queries, keys and values start normal, of deviation C**-0.5.

    Their biases start at 0; the output projection uniform between ±D**-0.5.

    Args:
      features: channels C of the input.
      embed_features: channels D of the attention, C by default.
      out_features: channels F of the result, C by default; 0 for no output projection.
      use_bias: whether queries, keys and values have biases.
      fused: whether these are one array, `qkv_kernel`.
      class_token: whether a learned token, from 0, stands for the mean token.
    """
    caller = "RotaryAttentionPool"
    sizes = _sizes(caller, features, num_heads, embed_features, out_features)
    weights = {
        **({"cls_token": initializers.zeros} if class_token else {}),
        **_dense(("q", "k", "v"), _normal, _zeros, sizes, use_bias),
        **_dense(("out",), _linear, _linear, sizes),
    }
    return _fuse(_sized(weights, sizes)) if fused else _sized(weights, sizes)


@pool_op("attention", "other", weights=_rotary_weights)
def rotary_attention_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int,
    reference_shape: Ints = (7, 7),
    temperature: float = 10000.0,
    pool_type: str = "token",
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Attention pooling of maps as CLIP's, with rotations in place of positions.

    Queries and keys of the token at place t turn, pair of channels by pair of channels,
    by the angles

    .. math:: \theta_{s, j} = \frac{r_s}{n_s} t_s T^{-j / m}, \qquad 0 \le j < m

    for every axis s of size :math:`n_s` in turn, with :math:`r_s` its size in
    `reference_shape` and m pairs an axis; the mean token does not turn. Channels
    (2i, 2i + 1) of a head are pair i (timm's `rope_type` "cat" and "base").

    Args:
      x: `[B..., S..., C]`, floating, with as many axes S as `reference_shape` has
        entries.
      params: as in :func:`clip_attention_pool`, without `positions`.
      num_heads: as in :func:`attention_pool`; a head's channels have to be a multiple
        of twice the number of axes S.
      reference_shape: the sizes of map for which places count in ones; larger maps
        count in less.
      temperature: T, greater than 0; the slowest pair of channels turns by about 1 / T
        a place.
      pool_type, axis, where: as in :func:`clip_attention_pool`.

    Returns:
      As :func:`clip_attention_pool`.

    Raises:
      ValueError, TypeError: as in :func:`attention_pool`.

    References:
      Jianlin Su, Yu Lu, Shengfeng Pan, Ahmed Murtadha, Bo Wen, Yunfeng Liu: RoFormer:
      Enhanced Transformer with Rotary Position Embedding, 2021.
      Ross Wightman: PyTorch Image Models (`RotAttentionPool2d`).
    """
    caller = "rotary_attention_pool"
    reference, axis = _map_axes(caller, "reference_shape", reference_shape, axis)
    if not 0 < temperature < math.inf:
        rule = "must be finite and greater than 0"
        raise fail(caller, "temperature", rule, temperature)
    tokens, w = _read(caller, x, params, where, axis, num_heads, _SPATIAL, ())
    kernel = w.get("q_kernel", tokens.x)
    channels, pairs = kernel.shape[-1] // num_heads, 2 * len(reference)
    if channels % pairs:
        rule = f"must leave a multiple of {pairs} channels to each head"
        raise fail(caller, "num_heads", rule, num_heads)
    sizes = tuple(static_size(caller, s) for s in tokens.sizes)
    speeds = temperature ** -(np.arange(channels // pairs) / (channels // pairs))
    places = np.indices(sizes).reshape(len(sizes), -1).T * np.divide(reference, sizes)
    angles = (places[:, :, None] * speeds).reshape(len(places), -1)
    angles = np.pad(np.repeat(angles, 2, -1), ((1, 0), (0, 0)))
    return _by_first(
        caller, tokens, _with_first(tokens, w), w, num_heads, pool_type, angles
    )


def _sim_weights(
    features: int, *, num_heads: int = 1, use_bias: bool = False, qk_norm: bool = False
) -> dict[str, Weight]:
    """Kernels and biases start uniform between ±C**-0.5, layer norms at 1 and 0.

    Args:
      features: channels C of the input and of the result.
      use_bias: whether queries and keys have biases.
      qk_norm: whether queries and keys are normed.
    """
    sizes = _sizes("SimPool", features, num_heads)
    return _sized(
        {
            **_norm("token_norm"),
            **_dense(("q", "k"), _linear, _linear, sizes, use_bias),
            **({**_norm("q_norm"), **_norm("k_norm")} if qk_norm else {}),
        },
        sizes,
    )


@pool_op("attention", "other", weights=_sim_weights)
def sim_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int = 1,
    gamma: ArrayLike | None = None,
    eps: float = 1e-5,
    axis: Ints = -2,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""SimPool: the mean token asks, and a power mean of the tokens answers.

    .. math:: y = \left(\sum_i a_i (v_i - \min_j v_j + 10^{-6})^\gamma
        \right)^{1 / \gamma}, \qquad v = \operatorname{norm}(x), \qquad
        a = \operatorname{softmax}_i\left(
        (\bar{x} W_Q)(v_i W_K)^T / \sqrt{d}\right)

    for each channel, or :math:`\sum_i a_i v_i` without `gamma`. The minimum is that of
    one channel over one sample's tokens, so that samples do not meet (the authors' code
    takes it over the whole batch); its gradient goes to one element, the first.

    Args:
      x: `[B..., L, C]`, floating.
      params: `q_kernel`, `k_kernel` `[C, C]` and, each where wanted, `q_bias`,
        `k_bias`, `token_norm_scale`, `token_norm_bias` `[C]`, `q_norm_scale`,
        `q_norm_bias`, `k_norm_scale`, `k_norm_bias` `[C / num_heads]`.
      num_heads, axis, where: as in :func:`attention_pool`; hidden tokens are no part of
        the mean token and of the minimum.
      gamma: the exponent, greater than 0, or None; a scalar or one value a channel.
      eps: what layer norms add to the variance.

    Returns:
      `[B..., C]` in the dtype of `x`; 0, with gradient 0, where no token takes part.

    Raises:
      ValueError, TypeError: as in :func:`attention_pool`, and for gamma <= 0.

    References:
      Bill Psomas, Ioannis Kakogeorgiou, Konstantinos Karantzalos, Yannis Avrithis: Keep
      It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?, 2023.
    """
    caller, names = "sim_pool", ("q", "k", "token_norm", "q_norm", "k_norm")
    tokens, w = _read(caller, x, params, where, axis, num_heads, names, ())
    x, eps, visible = tokens.x, _eps(caller, eps), tokens.visible
    q = global_avg_pool(x, axis=-2, keepdims=True, where=visible)
    k = _layer_norm(x, w, "token_norm", eps)
    if gamma is None:
        y = _attend(q, k, k, tokens.where, w, num_heads, eps)
    else:
        gamma = as_parameter(caller, "gamma", gamma, k, positive=True)
        lowest = global_min_pool(k, axis=-2, keepdims=True, where=visible)
        v = hide(k - lowest, visible) + jnp.asarray(1e-6, k.dtype)
        scale = power_of_two_scale(v, (-2,), gamma)
        v = safe_power(v / scale, gamma)
        y = _attend(q, k, v, tokens.where, w, num_heads, eps)
        y = safe_power(y, 1 / gamma) * scale
    return tokens.finish(y[..., 0, :])


class _Tokens(NamedTuple):
    """Tokens `[B..., L, C]` without what a mask `[B..., L]` hides, and their origin."""

    x: jax.Array  # in the dtype to compute in
    where: jax.Array | None
    sizes: tuple[Any, ...]  # of the axes that L is made of
    order: tuple[int, ...]  # of the given axes, as batch, L, C
    dtype: Any

    @property
    def visible(self) -> jax.Array | None:
        """The mask, with an axis for channels."""
        return None if self.where is None else self.where[..., None]

    def finish(self, y: jax.Array) -> jax.Array:
        """Returns a result `[B..., (Q,) F]`, as 0 where no token takes part."""
        if self.where is not None:
            some = jnp.any(self.where, -1)
            y = hide(y, some.reshape(some.shape + (1,) * (y.ndim - some.ndim)))
        return y.astype(self.dtype)

    def finish_map(self, y: jax.Array) -> jax.Array:
        """Returns a result `[B..., L, F]` in the given layout, with 0 for no tokens."""
        y = hide(y, self.visible).astype(self.dtype)
        y = y.reshape(*y.shape[:-2], *self.sizes, y.shape[-1])
        return y.transpose(np.argsort(self.order))


def _read(
    caller: str,
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    where: ArrayLike | None,
    axis: Ints,
    num_heads: int,
    names: Sequence[str],
    needs: Sequence[str],
) -> tuple[_Tokens, dict[str, jax.Array]]:
    """Returns the tokens and the learned arrays, looked at and wide enough."""
    x = as_array(caller, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise fail(caller, "x", "must be floating", x.dtype, TypeError)
    axes = tuple(sorted(resolve_axes(caller, axis, x.ndim)))
    rest = [a for a in range(-x.ndim, 0) if a not in axes]
    if not rest:
        raise fail(caller, "axis", "must leave an axis for the channels", axis)
    order = tuple(a + x.ndim for a in (*rest[:-1], *axes, rest[-1]))
    shape, dtype = x.shape, x.dtype
    x, sizes = x.transpose(order), tuple(shape[a] for a in axes)
    if 0 in sizes:
        raise fail(caller, "x", "must have tokens", f"the shape {shape}")
    batch = x.shape[: len(rest) - 1]
    x = x.reshape(*batch, math.prod(sizes), x.shape[-1])
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_:
            raise fail(caller, "where", "must be boolean", where.dtype, TypeError)
        full = shape[: rest[-1]] + shape[len(shape) + rest[-1] + 1 :]
        mask = (1,) * (len(full) - where.ndim) + where.shape
        if len(mask) != len(full) or any(
            m not in (1, n) for m, n in zip(mask, full, strict=True)
        ):
            rule = f"must broadcast to `x` without channels, whose shape is {full}"
            raise fail(caller, "where", rule, where.shape)
        where = jnp.expand_dims(where.reshape(mask), rest[-1]).transpose(order)[..., 0]
        lead = where.shape[: len(batch)]
        where = jnp.broadcast_to(where, (*lead, *sizes)).reshape(*lead, x.shape[-2])
        x = hide(x, where[..., None])
    w = _weights(caller, params, x.shape[-1], num_heads, names, needs)
    wide = np.result_type(*(accumulation_dtype(a.dtype) for a in (x, *w.values())))
    w = {name: a.astype(wide) for name, a in w.items()}
    return _Tokens(x.astype(wide), where, sizes, order, dtype), w


def _weights(
    caller: str,
    params: Mapping[str, ArrayLike],
    channels: int,
    num_heads: int,
    names: Sequence[str],
    needs: Sequence[str],
) -> dict[str, jax.Array]:
    """Returns the arrays in `params`, of known names and with shapes that fit."""
    if not isinstance(params, Mapping):
        rule = "must be a mapping of arrays by name"
        raise fail(caller, "params", rule, type(params), TypeError)
    for name in needs:
        if name not in params:
            raise fail(caller, "params", f"must have `{name}`", sorted(params))
    given = {n: as_array(caller, a, _entry(n)) for n, a in params.items()}
    for name, array in given.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            rule = "must be floating"
            raise fail(caller, _entry(name), rule, array.dtype, TypeError)
    for fused in ("qkv", "kv"):
        for part in ("kernel", "bias") if set(fused) <= set(names) else ():
            array = given.pop(f"{fused}_{part}", None)
            if array is None:
                continue
            if array.ndim == 0 or array.shape[-1] % len(fused):
                rule = f"must have a last axis of {len(fused)} equal parts"
                raise fail(caller, _entry(f"{fused}_{part}"), rule, array.shape)
            parts = jnp.split(array, len(fused), -1)
            given |= {f"{n}_{part}": a for n, a in zip(fused, parts, strict=True)}
    known = [n for n in _SHAPES if {n, n.rpartition("_")[0]} & set(names)]
    if unknown := sorted(set(given) - set(known)):
        rule = f"must have no other names than {', '.join(known)}"
        raise fail(caller, "params", rule, unknown)
    embed = [given[f"{n}_kernel"].shape[-1:] for n in "qkv" if f"{n}_kernel" in given]
    (features,) = embed[0] if embed else (channels,)
    if features % as_int(caller, "num_heads", num_heads, 1):
        rule = f"must divide the {features} channels of the keys"
        raise fail(caller, "num_heads", rule, num_heads)
    sizes = {"c": channels, "d": features, "h": features // num_heads}
    sizes |= {} if "query" in names else {"e": channels}
    for name in known:
        if name in given:
            shape = given[name].shape
            options = [s for s in _SHAPES[name].split("|") if len(s) == len(shape)]
            for letter, n in zip(options[0] if options else "", shape, strict=False):
                sizes.setdefault(letter, n)
            if shape not in [tuple(sizes[a] for a in letters) for letters in options]:
                wanted = [str(sizes.get(a, a.upper())) for a in _SHAPES[name][-2:]]
                rule = f"must have the shape ({', '.join(wanted)})"
                raise fail(caller, _entry(name), rule, shape)
        elif name.endswith("kernel"):
            a, b = (sizes.get(letter) for letter in _SHAPES[name])
            if None not in (a, b) and a != b:
                rule = f"must have `{name}`, to make {b} channels of {a}"
                raise fail(caller, "params", rule, sorted(params))
    return given


def _entry(name: str) -> str:
    return f'params["{name}"]'


def _by_queries(
    tokens: _Tokens,
    w: Mapping[str, jax.Array],
    num_heads: int,
    eps: float = 0.0,
    approximate: bool = False,
) -> jax.Array:
    """What learned queries find, `[B..., Q, F]`, or `[B..., F]` for one alone."""
    query = w["query"]
    q = query.reshape(-1, query.shape[-1])
    y = _attend(q, tokens.x, tokens.x, tokens.where, w, num_heads, eps)
    y = _affine(y, w, "out")
    if "mlp_in_kernel" in w:
        hidden = _affine(_layer_norm(y, w, "norm", eps), w, "mlp_in")
        y = y + _affine(jax.nn.gelu(hidden, approximate=approximate), w, "mlp_out")
    return y[..., 0, :] if query.ndim == 1 else y


def _with_first(tokens: _Tokens, w: Mapping[str, jax.Array]) -> _Tokens:
    """The tokens with the class token in front, or else with their mean."""
    x, where = tokens.x, tokens.where
    if "cls_token" in w:
        first = jnp.zeros_like(x[..., :1, :]) + _like(w["cls_token"], x)
    else:
        first = global_avg_pool(x, axis=-2, keepdims=True, where=tokens.visible)
    if where is not None:
        where = jnp.concatenate([jnp.ones_like(where[..., :1]), where], -1)
    return tokens._replace(x=jnp.concatenate([first, x], -2), where=where)


def _by_first(
    caller: str,
    tokens: _Tokens,
    z: _Tokens,
    w: Mapping[str, jax.Array],
    num_heads: int,
    pool_type: str,
    angles: np.ndarray | None = None,
) -> jax.Array:
    """What the first of the tokens `z` finds, or all but the first do."""
    _choice(caller, "pool_type", pool_type, ("token", ""))
    q = z.x[..., :1, :] if pool_type else z.x
    y = _attend(q, z.x, z.x, z.where, w, num_heads, angles=angles)
    y = _affine(y, w, "out")
    return (
        tokens.finish(y[..., 0, :]) if pool_type else tokens.finish_map(y[..., 1:, :])
    )


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    where: jax.Array | None,
    w: Mapping[str, jax.Array],
    num_heads: int,
    eps: float = 0.0,
    angles: np.ndarray | None = None,
) -> jax.Array:
    """Projects q `[..., Q, E]`, k and v `[..., L, C]`; attends: `[..., Q, D]`."""

    def heads(x, name):
        x = _affine(x, w, name)
        x = x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)
        return _layer_norm(x, w, f"{name}_norm", eps)

    q, k, v = heads(q, "q"), heads(k, "k"), heads(v, "v")
    if angles is not None:
        q, k = _turn(q, angles), _turn(k, angles)
    scores = jnp.einsum("...qhd,...khd->...hqk", q * q.shape[-1] ** -0.5, k)
    visible = None if where is None else where[..., None, None, :]
    y = jnp.einsum("...hqk,...khd->...qhd", _softmax(scores, visible), v)
    return y.reshape(*y.shape[:-2], v.shape[-2] * v.shape[-1])


def _softmax(scores: jax.Array, where: jax.Array | None) -> jax.Array:
    """The softmax of the True scores, and 0 for all others, all of them too."""
    largest = jnp.max(scores, -1, keepdims=True, where=where, initial=-np.inf)
    largest = lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    powers = hide(jnp.exp(hide(scores, where, largest) - largest), where)
    total = jnp.sum(powers, -1, keepdims=True)
    return powers / jnp.where(total == 0, 1, total)


def _turn(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns pairs of neighbouring channels of x `[..., L, heads, d]`, by `[L, d]`."""
    angles = angles[: x.shape[-3], None, :]  # a first token alone has no other's
    cos, sin = (_like(jnp.asarray(f(angles), x.dtype), x) for f in (np.cos, np.sin))
    odd, even = x[..., 1::2], x[..., ::2]
    return x * cos + jnp.stack([-odd, even], -1).reshape(x.shape) * sin


def _affine(x: jax.Array, w: Mapping[str, jax.Array], name: str) -> jax.Array:
    """The projection of this name; x itself if there is none."""
    if (kernel := w.get(f"{name}_kernel")) is not None:
        x = jnp.tensordot(x, kernel, 1)
    if (bias := w.get(f"{name}_bias")) is not None:
        x = x + _like(bias, x)
    return x


def _layer_norm(
    x: jax.Array, w: Mapping[str, jax.Array], name: str, eps: float
) -> jax.Array:
    """The layer norm of this name, over the last axis; x itself if there is none."""
    if f"{name}_scale" not in w:
        return x
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    x = x * _like(w[f"{name}_scale"], x)
    return x + _like(w[f"{name}_bias"], x) if f"{name}_bias" in w else x


def _like(array: jax.Array, x: jax.Array) -> jax.Array:
    """`array` with axes of size 1 in front, to the rank of x."""
    return array.reshape((1,) * (x.ndim - array.ndim) + array.shape)


def _fit(caller: str, w: Mapping[str, jax.Array], rows: int) -> jax.Array:
    """Returns the positions, of as many rows."""
    if w["positions"].shape[0] != rows:
        shape = w["positions"].shape
        raise fail(caller, _entry("positions"), f"must have {rows} rows", shape)
    return w["positions"]


def _choice(caller: str, argument: str, value: object, options: Sequence[str]) -> None:
    if value not in options:
        rule = f"must be one of {', '.join(map(repr, options))}"
        raise fail(caller, argument, rule, value)


def _eps(caller: str, eps: float) -> float:
    if not 0 < eps < math.inf:
        raise fail(caller, "eps", "must be finite and greater than 0", eps)
    return eps


def _map_axes(
    caller: str, argument: str, value: Any, axis: Ints | None
) -> tuple[tuple[int, ...], Ints]:
    """Returns a map's sizes, and the axes that they speak of."""
    sizes = _map_sizes(caller, argument, value)
    if axis is None:
        return sizes, tuple(range(-1 - len(sizes), -1))
    if len(axis if isinstance(axis, Sequence) else (axis,)) != len(sizes):
        rule = f"must have {len(sizes)} entries, as `{argument}` has"
        raise fail(caller, "axis", rule, axis)
    return sizes, axis


def _map_sizes(caller: str, argument: str, value: Any) -> tuple[int, ...]:
    if not is_sequence(value) or not len(value):
        rule = "must be a sequence with one int for each axis of the map"
        raise fail(caller, argument, rule, value)
    return as_ints(caller, argument, value, len(value), 1)


def _sizes(
    caller: str,
    features: int,
    num_heads: int,
    embed_features: int | None = None,
    out_features: int | None = None,
) -> dict[str, Any]:
    """The size of each letter of `_SHAPES`, as a module's arguments say."""
    features = as_int(caller, "features", features, 1)
    embed = _size(caller, "embed_features", embed_features, features)
    if embed % as_int(caller, "num_heads", num_heads, 1):
        rule = f"must divide the {embed} channels of the keys"
        raise fail(caller, "num_heads", rule, num_heads)
    out = features
    if out_features is not None:
        out = as_int(caller, "out_features", out_features, 0) or None
    head = embed // num_heads
    return {"c": features, "d": embed, "e": features, "f": out, "h": head}


def _size(caller: str, argument: str, value: int | None, default: Any = None) -> Any:
    return default if value is None else as_int(caller, argument, value, 1)


def _sized(inits: Mapping[str, Initializer], sizes: Mapping[str, Any]):
    """The shape and the initialiser of each array."""
    weights = {}
    for name, initializer in inits.items():
        shapes = [[sizes[a] for a in letters] for letters in _SHAPES[name].split("|")]
        weights[name] = (
            next(tuple(s) for s in shapes[::-1] if None not in s),
            initializer,
        )
    return weights


def _fuse(weights: dict[str, Weight]) -> dict[str, Weight]:
    """The same with queries', keys' and values' arrays as one, along the last axis."""
    fused, rest = {}, {}
    for name, ((*lead, last), initializer) in weights.items():
        if name[:2] == "q_":
            fused[f"qkv_{name[2:]}"] = (*lead, 3 * last), initializer
        elif name[:2] not in ("k_", "v_"):
            rest[name] = (*lead, last), initializer
    return {**fused, **rest}


def _dense(
    names: Sequence[str],
    kernel: Callable[[int], Initializer],
    bias: Callable[[int], Initializer],
    sizes: Mapping[str, Any],
    use_bias: bool = True,
) -> dict[str, Initializer]:
    """The initialisers of projections, given those for n features to act on."""
    inits = {}
    for name in names:
        n, to = (sizes[letter] for letter in _SHAPES[f"{name}_kernel"])
        if to is not None:
            inits[f"{name}_kernel"] = kernel(n)
            if use_bias:
                inits[f"{name}_bias"] = bias(n)
    return inits


def _norm(name: str) -> dict[str, Initializer]:
    return {f"{name}_scale": initializers.ones, f"{name}_bias": initializers.zeros}


def _uniform(bound: float) -> Initializer:
    def initializer(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initializer


def _linear(n: int) -> Initializer:
    return _uniform(n**-0.5)


def _normal(n: int) -> Initializer:
    return initializers.normal(n**-0.5)


def _glorot(n: int) -> Initializer:
    return initializers.xavier_uniform()


def _zeros(n: int) -> Initializer:
    return initializers.zeros
