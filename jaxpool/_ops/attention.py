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
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_parameter
from jaxpool._core.attention import (
    Tokens,
    as_choice,
    as_eps,
    attend,
    by_first,
    by_queries,
    fit_positions,
    layer_norm,
    like,
    map_axes,
    map_sizes,
    read_tokens,
)
from jaxpool._core.geometry import static_size
from jaxpool._core.numerics import hide, power_of_two_scale, safe_power
from jaxpool._core.op import Weight, pool_op
from jaxpool._core.weights import (
    fan_in_uniform,
    fuse,
    layer_norm_weights,
    module_size,
    module_sizes,
    projections,
    scaled_normal,
    sized,
    uniform,
    xavier_uniform,
    zeros,
)
from jaxpool._core.window import Ints, as_flag, as_int, as_positive, fail
from jaxpool._ops.average import global_avg_pool
from jaxpool._ops.extremum import global_min_pool

__all__ = [
    "attention_pool",
    "clip_attention_pool",
    "latent_attention_pool",
    "map_pool",
    "prr_attention_pool",
    "rotary_attention_pool",
    "sim_pool",
]

_ATTENTION = ("q", "k", "v", "out")
_HEAD = (*_ATTENTION, "query", "norm", "mlp_in", "mlp_out")
_SPATIAL = (*_ATTENTION, "cls_token")
# What `jaxpool compare` builds with: the pixels of a map are the tokens.
_ON_TOKENS = {"num_heads": 4, "axis": (-3, -2)}


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
    sizes = module_sizes(
        "AttentionPool", features, num_heads, embed_features, out_features
    )
    sizes["q"] = module_size("AttentionPool", "num_queries", num_queries)
    return sized(
        {
            "query": uniform(math.sqrt(6 / (1 + sizes["c"]))),
            **projections(_ATTENTION, xavier_uniform, zeros, sizes, use_bias),
        },
        sizes,
    )


@pool_op("attention", "other", weights=_attention_weights, compare=_ON_TOKENS)
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
      A query that one token answers; where that is hidden, the other one does:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> params = {"query": jnp.array([1000.0, 0.0])}
      >>> jp.attention_pool(x, params, num_heads=1)
      Array([1., 0.], dtype=float32)
      >>> jp.attention_pool(x, params, num_heads=1, where=jnp.array([False, True]))
      Array([0., 1.], dtype=float32)

    References:
      Juho Lee, Yoonho Lee, Jungtaek Kim, Adam Kosiorek, Seungjin Choi, Yee Whye Teh:
      Set Transformer, 2019 (pooling by multihead attention, there with a residual).
    """
    caller, names = "attention_pool", ("query", *_ATTENTION)
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(
        caller, x, params, where, axis, num_heads, names, ("query",)
    )
    return tokens.finish(by_queries(tokens, w, num_heads))


def _map_weights(
    features: int, *, num_heads: int = 12, mlp_features: int | None = None
) -> dict[str, Weight]:
    """Kernels and the query start Xavier-uniform, biases at 0, those of the MLP near 0.

    Args:
      features: channels C of the input and of the result.
      mlp_features: hidden features of the perceptron, 4 C by default.
    """
    sizes = module_sizes("MAPPool", features, num_heads)
    sizes["q"] = None
    sizes["m"] = module_size("MAPPool", "mlp_features", mlp_features, 4 * features)

    def small(n):
        return initializers.normal(1e-6)

    return sized(
        {
            "query": uniform(math.sqrt(6 / (1 + features))),
            **projections(_ATTENTION, xavier_uniform, zeros, sizes),
            **layer_norm_weights("norm"),
            **projections(("mlp_in", "mlp_out"), xavier_uniform, small, sizes),
        },
        sizes,
    )


@pool_op(
    "attention",
    "other",
    weights=_map_weights,
    camel="MAPPool",
    compare=_ON_TOKENS,
)
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
      params: as in :func:`attention_pool`, and `mlp_in_kernel` `[C, M]`,
        `mlp_out_kernel` `[M, C]` and, each where wanted, `mlp_in_bias` `[M]`,
        `mlp_out_bias`, `norm_scale`, `norm_bias` `[C]`.
      num_heads, axis, where: as in :func:`attention_pool`.
      eps: what the layer norm adds to the variance.

    Returns:
      `[B..., C]` in the dtype of `x`; 0, with gradient 0, where no token takes part.

    Raises:
      ValueError, TypeError: as in :func:`attention_pool`.

    Example:
      What attention finds, to which a perceptron of zeros adds nothing:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> params = {"query": jnp.array([0.0, 1000.0])}
      >>> params["mlp_in_kernel"] = params["mlp_out_kernel"] = jnp.zeros((2, 2))
      >>> jp.map_pool(x, params, num_heads=1)
      Array([0., 1.], dtype=float32)

    References:
      Xiaohua Zhai, Basil Mustafa, Alexander Kolesnikov, Lucas Beyer: Sigmoid Loss for
      Language Image Pre-Training, 2023 (`MAPHead` of their code, with masks as in
      NaFlex).
    """
    caller, needs = "map_pool", ("query", "mlp_in_kernel", "mlp_out_kernel")
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(caller, x, params, where, axis, num_heads, _HEAD, needs)
    y = by_queries(tokens, w, num_heads, as_eps(caller, eps), approximate=True)
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
    sizes = module_sizes(caller, features, num_heads, embed_features, out_features)
    sizes["q"] = module_size(caller, "num_queries", num_queries)
    sizes["e"] = module_size(caller, "query_features", query_features, sizes["d"])
    sizes["p"] = module_size(caller, "num_positions", num_positions)
    head = sizes["f"] is not None
    sizes["m"] = module_size(
        caller, "mlp_features", mlp_features, 4 * (sizes["f"] or 1)
    )
    projected = ("q", "k", "v") if query_projection else ("k", "v")
    mlp = ("out", "mlp_in", "mlp_out") if head else ()
    near = initializers.truncated_normal
    return sized(
        {
            "query": near(sizes["e"] ** -0.5),
            **({} if num_positions is None else {"positions": near(features**-0.5)}),
            **projections(projected, fan_in_uniform, fan_in_uniform, sizes, use_bias),
            **(
                {**layer_norm_weights("q_norm"), **layer_norm_weights("k_norm")}
                if qk_norm
                else {}
            ),
            **projections(mlp, fan_in_uniform, fan_in_uniform, sizes),
            **(layer_norm_weights("norm") if norm and head else {}),
        },
        sizes,
    )


@pool_op("attention", "other", weights=_latent_weights, compare=_ON_TOKENS)
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

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> params = {"query": jnp.array([[1000.0, 0.0], [0.0, 1000.0]])}
      >>> jp.latent_attention_pool(x, params, num_heads=1, pool_type="avg")
      Array([0.5, 0.5], dtype=float32)

    References:
      Andrew Jaegle, Felix Gimeno, Andrew Brock, Andrew Zisserman, Oriol Vinyals, Joao
      Carreira: Perceiver: General Perception with Iterative Attention, 2021.
      Ross Wightman: PyTorch Image Models.
    """
    caller = "latent_attention_pool"
    names = (*_HEAD, "positions", "q_norm", "k_norm")
    as_choice(caller, "pool_type", pool_type, ("token", "avg", ""))
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(
        caller, x, params, where, axis, num_heads, names, ("query",)
    )
    if "positions" in w:
        fit_positions(caller, w, math.prod(tokens.sizes))
        tokens = tokens._replace(x=tokens.x + like(w["positions"], tokens.x))
    approximate = as_flag(caller, "approximate", approximate)
    y = by_queries(tokens, w, num_heads, as_eps(caller, eps), approximate)
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
    sizes = module_sizes(caller, features, num_heads, embed_features, out_features)
    sizes["p"] = 1 + math.prod(map_sizes(caller, "position_shape", position_shape))

    def kernel(n):
        return scaled_normal(sizes["d"])

    weights = {
        "positions": scaled_normal(features),
        **({"cls_token": initializers.zeros} if class_token else {}),
        **projections(("q", "k", "v"), kernel, fan_in_uniform, sizes, use_bias),
        **projections(("out",), kernel, fan_in_uniform, sizes),
    }
    return fuse(sized(weights, sizes)) if fused else sized(weights, sizes)


@pool_op(
    "attention",
    "other",
    weights=_clip_weights,
    camel="CLIPAttentionPool",
    compare={"num_heads": 4},
)
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

    Example:
      Positions of a map of 2 x 2, resampled for one of 4 x 4:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x, params = jnp.ones((1, 4, 4, 2)), {"positions": jnp.zeros((1 + 2 * 2, 2))}
      >>> jp.clip_attention_pool(x, params, num_heads=1, position_shape=(2, 2))
      Array([[1., 1.]], dtype=float32)

    References:
      Alec Radford, Jong Wook Kim, Chris Hallacy, and others: Learning Transferable
      Visual Models From Natural Language Supervision, 2021.
    """
    caller = "clip_attention_pool"
    old, axis = map_axes(caller, "position_shape", position_shape, axis)
    names = (*_SPATIAL, "positions")
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(
        caller, x, params, where, axis, num_heads, names, ("positions",)
    )
    sizes = tuple(static_size(caller, s) for s in tokens.sizes)
    positions = fit_positions(caller, w, math.prod(old) + 1)
    if sizes != old:
        grid = positions[1:].reshape(*old, -1)
        shape = (*sizes, positions.shape[-1])
        grid = jax.image.resize(grid, shape, "cubic", antialias=True)
        grid = grid.reshape(-1, positions.shape[-1])
        positions = jnp.concatenate([positions[:1], grid])
    z = _with_first(tokens, w, positions)
    return by_first(caller, tokens, z, w, num_heads, pool_type)


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
    sizes = module_sizes(caller, features, num_heads, embed_features, out_features)
    weights = {
        **({"cls_token": initializers.zeros} if class_token else {}),
        **projections(("q", "k", "v"), scaled_normal, zeros, sizes, use_bias),
        **projections(("out",), fan_in_uniform, fan_in_uniform, sizes),
    }
    return fuse(sized(weights, sizes)) if fused else sized(weights, sizes)


@pool_op("attention", "other", weights=_rotary_weights, compare={"num_heads": 1})
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

    Example:
      Without positions to learn there is a result for any size of map:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.full((2, 3, 5, 4), 2.0)
      >>> jp.rotary_attention_pool(x, {}, num_heads=1).shape
      (2, 4)

    References:
      Jianlin Su, Yu Lu, Shengfeng Pan, Ahmed Murtadha, Bo Wen, Yunfeng Liu: RoFormer:
      Enhanced Transformer with Rotary Position Embedding, 2021.
      Ross Wightman: PyTorch Image Models (`RotAttentionPool2d`).
    """
    caller = "rotary_attention_pool"
    reference, axis = map_axes(caller, "reference_shape", reference_shape, axis)
    temperature = as_positive(caller, "temperature", temperature)
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(caller, x, params, where, axis, num_heads, _SPATIAL, ())
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
    return by_first(
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
    sizes = module_sizes("SimPool", features, num_heads)
    return sized(
        {
            **layer_norm_weights("token_norm"),
            **projections(("q", "k"), fan_in_uniform, fan_in_uniform, sizes, use_bias),
            **(
                {**layer_norm_weights("q_norm"), **layer_norm_weights("k_norm")}
                if qk_norm
                else {}
            ),
        },
        sizes,
    )


@pool_op("attention", "other", weights=_sim_weights, compare=_ON_TOKENS)
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

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[30.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
      >>> params = {"q_kernel": jnp.eye(2), "k_kernel": jnp.eye(2)}
      >>> jp.sim_pool(x, params)
      Array([30.,  0.], dtype=float32)

    References:
      Bill Psomas, Ioannis Kakogeorgiou, Konstantinos Karantzalos, Yannis Avrithis: Keep
      It SimPool: Who Said Supervised Transformers Suffer from Attention Deficit?, 2023.
    """
    caller, names = "sim_pool", ("q", "k", "token_norm", "q_norm", "k_norm")
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(caller, x, params, where, axis, num_heads, names, ())
    x, eps, visible = tokens.x, as_eps(caller, eps), tokens.visible
    q = global_avg_pool(x, axis=-2, keepdims=True, where=visible)
    k = layer_norm(x, w, "token_norm", eps)
    if gamma is None:
        y = attend(q, k, k, tokens.where, w, num_heads, eps)
    else:
        gamma = as_parameter(caller, "gamma", gamma, k, (-2,), positive=True)
        lowest = global_min_pool(k, axis=-2, keepdims=True, where=visible)
        v = hide(k - lowest, visible) + jnp.asarray(1e-6, k.dtype)
        scale = power_of_two_scale(v, (-2,), gamma)
        v = safe_power(v / scale, gamma)
        y = attend(q, k, v, tokens.where, w, num_heads, eps)
        y = safe_power(y, 1 / gamma) * scale
    return tokens.finish(y[..., 0, :])


def _prr_weights(
    features: int,
    *,
    num_heads: int = 8,
    pre_norm: bool = False,
    post_norm: bool = False,
) -> dict[str, Weight]:
    """Layer norms start at 1 and 0; without any, nothing is learned.

    Args:
      features: channels C of the input and of the result.
      pre_norm: whether the tokens are normed before they attend.
      post_norm: whether they are normed afterwards.
    """
    sizes = module_sizes("PRRAttentionPool", features, num_heads)
    return sized(
        {
            **(layer_norm_weights("token_norm") if pre_norm else {}),
            **(layer_norm_weights("norm") if post_norm else {}),
        },
        sizes,
    )


@pool_op(
    "attention",
    "other",
    weights=_prr_weights,
    camel="PRRAttentionPool",
    compare={**_ON_TOKENS, "pre_norm": True, "post_norm": True},
)
def prr_attention_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int = 8,
    pool_type: str = "token",
    eps: float = 1e-5,
    axis: Ints = -2,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Patch representation refinement: all tokens attend to all, then one is taken.

    .. math:: z = \operatorname{attention}(\operatorname{norm}_1(x),
        \operatorname{norm}_1(x)), \qquad y = \operatorname{norm}_2(z)_1
        \quad \text{or} \quad \frac{1}{n} \sum_i \operatorname{norm}_2(z)_i

    with attention as in :func:`attention_pool`, without projections, so that each
    token has its part in the result and gets a gradient of its own.

    Args:
      x: `[B..., L, C]`, floating.
      params: `token_norm_scale`, `token_norm_bias` `[C]` of the first layer norm and
        `norm_scale`, `norm_bias` `[C]` of the second, each where wanted, or `{}`.
      num_heads, axis, where: as in :func:`attention_pool`.
      pool_type: "token" returns the first token (of those that a mask shows), "avg" the
        mean of all, and "" all of them, in the layout of `x`.
      eps: what layer norms add to the variance.

    Returns:
      `[B..., C]`, or the shape of `x` for `pool_type=""`, in the dtype of `x`; 0, with
      gradient 0, where no token takes part, and at the places of hidden ones.

    Raises:
      ValueError, TypeError: as in :func:`attention_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[100.0, 0.0], [0.0, 100.0]])
      >>> jp.prr_attention_pool(x, {}, num_heads=1, pool_type="avg")
      Array([50., 50.], dtype=float32)

    References:
      Sina Hajimiri, Farzad Beizaee, Fereshteh Shakeri, Christian Desrosiers, Ismail Ben
      Ayed, Jose Dolz: Locality-Attending Vision Transformer, 2026.
      Ross Wightman: PyTorch Image Models (`AttentionPoolPrr`).
    """
    caller, names = "prr_attention_pool", ("token_norm", "norm")
    as_choice(caller, "pool_type", pool_type, ("token", "avg", ""))
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(caller, x, params, where, axis, num_heads, names, ())
    where, visible = tokens.where, tokens.visible
    eps = as_eps(caller, eps)
    q = z = layer_norm(tokens.x, w, "token_norm", eps)
    if pool_type == "token":
        q = z[..., :1, :]
        if where is not None:  # the mean of the first alone
            first = where & (jnp.cumsum(where, -1) == 1)
            q = global_avg_pool(z, axis=-2, keepdims=True, where=first[..., None])
    y = attend(q, z, z, where, {}, num_heads)
    y = layer_norm(y, w, "norm", eps)
    if not pool_type:
        return tokens.finish_map(y)
    if pool_type == "token":
        return tokens.finish(y[..., 0, :])
    return tokens.finish(global_avg_pool(y, axis=-2, where=visible))


def _with_first(
    tokens: Tokens, w: Mapping[str, jax.Array], positions: jax.Array | None = None
) -> Tokens:
    """The class token or else the mean, and the tokens; `positions` added."""
    x, where = tokens.x, tokens.where
    if "cls_token" in w:
        first = jnp.zeros_like(x[..., :1, :]) + like(w["cls_token"], x)
    else:
        first = global_avg_pool(x, axis=-2, keepdims=True, where=tokens.visible)
    if positions is not None:
        # Before they are put together, which is then one array and not two.
        first, x = first + like(positions[:1], x), x + like(positions[1:], x)
    if where is not None:
        where = jnp.concatenate([jnp.ones_like(where[..., :1]), where], -1)
    return tokens._replace(x=jnp.concatenate([first, x], -2), where=where)
