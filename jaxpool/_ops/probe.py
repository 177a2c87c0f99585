"""Probes: learned queries that read features out, on frozen backbones and elsewhere.

As in :mod:`jaxpool._ops.attention`, learned arrays arrive in `params`, a mapping by
name; those of no use in a pool are refused, and a projection that is absent is the
identity. A module creates them; so does
`jaxpool.linen.EfficientProbePool(...).init(key, x)["params"]`.

References:
  Juho Lee, Yoonho Lee, Jungtaek Kim, Adam R. Kosiorek, Seungjin Choi, Yee Whye Teh: Set
  Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks,
  2019.
  Bill Psomas, Dionysis Christopoulos, Eirini Baltzi, Ioannis Kakogeorgiou, Tilemachos
  Aravanis, Nikos Komodakis, Konstantinos Karantzalos, Yannis Avrithis, Giorgos Tolias:
  Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency, 2026.
"""

import math
from collections.abc import Mapping

import jax
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.attention import (
    absorbed,
    affine,
    as_eps,
    by_key_channels,
    kernel_of,
    layer_norm,
    like,
    read_tokens,
)
from jaxpool._core.op import Weight, pool_op
from jaxpool._core.weights import (
    entry,
    fan_in_uniform,
    layer_norm_weights,
    module_size,
    module_sizes,
    projections,
    sized,
    uniform,
)
from jaxpool._core.window import Ints, as_int, as_positive, fail

__all__ = ["efficient_probe_pool", "set_attention_pool"]

_SET = ("query", "q", "k", "v", "attended_norm", "ffn", "ffn_norm")


def _set_weights(
    features: int,
    *,
    num_heads: int = 4,
    num_queries: int | None = None,
    embed_features: int | None = None,
    use_bias: bool = True,
    norm: bool = False,
) -> dict[str, Weight]:
    """Queries start Xavier-uniform; the rest between ±n**-0.5, norms at 1 and 0.

    Here n is the number of features that an array acts on.

    Args:
      features: channels C of the input.
      num_queries: number Q of learned queries; None for one without an axis of its own.
      embed_features: channels D of the attention and of the result, C by default.
      use_bias: whether projections have biases; that of the keys, which would add the
        same to all scores of a query, is left out.
      norm: whether what is attended to and the result are normed.
    """
    caller = "SetAttentionPool"
    sizes = module_sizes(caller, features, num_heads, embed_features)
    sizes["q"] = module_size(caller, "num_queries", num_queries)
    sizes["e"] = sizes["d"]
    linear = fan_in_uniform
    norms = ("attended_norm", "ffn_norm") if norm else ()
    return sized(
        {
            "query": uniform(math.sqrt(6 / ((sizes["q"] or 1) + sizes["e"]))),
            **projections(("q", "v", "ffn"), linear, linear, sizes, use_bias),
            **projections(("k",), linear, linear, sizes, use_bias=False),
            **{k: v for name in norms for k, v in layer_norm_weights(name).items()},
        },
        sizes,
    )


@pool_op("probe", "other", weights=_set_weights)
def set_attention_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    num_heads: int = 4,
    scale: float | None = None,
    eps: float = 1e-5,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Pooling by multi-head attention (PMA) of the Set Transformer.

    .. math:: h = \operatorname{norm}_1\left(q W_Q + \left[\operatorname{softmax}_i
        \left(s\, (q W_Q)_h (x_i W_K)_h^T\right) (x_i W_V)_h\right]_h\right), \qquad
        y = \operatorname{norm}_2(h + \operatorname{relu}(h W_F))

    for each learned query (seed) q, with biases where given, and without norms where
    these are absent. As in the authors' code, the projected query is what the heads'
    results are added to, and there is neither an output projection nor a perceptron
    for the tokens; put one in front where it is wanted. The authors scale by
    :math:`s = D^{-1/2}`; here, as in other attention, the default is
    :math:`(D / \text{num\_heads})^{-1/2}`.

    Args:
      x: `[B..., S..., C]`, floating; tokens have no order.
      params: arrays by name: `query` `[E]` or `[Q, E]`, `q_kernel` `[E, D]`, `k_kernel`
        and `v_kernel` `[C, D]`, `ffn_kernel` `[D, D]`, their biases `[D]`, and
        `attended_norm_scale`, `attended_norm_bias`, `ffn_norm_scale`, `ffn_norm_bias`
        `[D]`; all but `query` may be absent, and without `ffn_kernel` and `ffn_bias`
        so is that whole term. `k_bias` changes nothing.
      num_heads: number of heads, which divides D.
      scale: s, what scores are multiplied by.
      eps: what layer norms add to the variance.
      axis: the axes S along which tokens lie; of the others the last one has the
        channels. By default all but the first and the last.
      where: boolean, broadcastable to the shape of `x` without channels: only True
        tokens take part. What a mask hides has no effect and no gradient.

    Returns:
      `[B..., D]`, or `[B..., Q, D]` for queries `[Q, E]`, in the dtype of `x`; 0, with
      gradient 0, where no token takes part.

    Raises:
      ValueError, TypeError: for arguments that break these rules, arrays whose shapes
        do not fit together or that are unknown, and integers: tokens are features.

    Example:
      The token that answers the query, and the query:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> params = {"query": jnp.array([1000.0, 0.0])}
      >>> jp.set_attention_pool(x, params, num_heads=1)
      Array([[1001.,    0.]], dtype=float32)

    References:
      Juho Lee, Yoonho Lee, Jungtaek Kim, Adam R. Kosiorek, Seungjin Choi, Yee Whye Teh:
      Set Transformer, 2019.
    """
    caller = "set_attention_pool"
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    tokens, w = read_tokens(caller, x, params, where, axis, num_heads, _SET, ("query",))
    if scale is not None:
        scale = as_positive(caller, "scale", scale)
    eps, query = as_eps(caller, eps), w["query"]
    q = affine(query.reshape(-1, query.shape[-1]), w, "q")
    heads = (num_heads, q.shape[1] // num_heads)
    factor = heads[1] ** -0.5 if scale is None else scale
    rows = by_key_channels(q.reshape(-1, *heads) * factor, tokens.x, w)
    y = absorbed(rows, tokens.x, tokens.x, tokens.where, w)
    y = y + like(q, y)
    y = layer_norm(y, w, "attended_norm", eps)
    if {"ffn_kernel", "ffn_bias"} & set(w):
        y = y + jax.nn.relu(affine(y, w, "ffn"))
    y = layer_norm(y, w, "ffn_norm", eps)
    return tokens.finish(y[..., 0, :] if query.ndim == 1 else y)


def _probe_weights(
    features: int,
    *,
    num_queries: int = 32,
    out_features: int | None = None,
    use_bias: bool = False,
    value_projection: bool = True,
) -> dict[str, Weight]:
    """Queries start normal, of deviation 0.02, and values uniform between ±C**-0.5.

    Args:
      features: channels C of the input.
      num_queries: number M of learned queries, which divides D.
      out_features: channels D of the values and of the result, C by default.
      use_bias: whether values have a bias.
      value_projection: whether values are projected; without, D is C.
    """
    caller = "EfficientProbePool"
    features = as_int(caller, "features", features, 1)
    out = module_size(caller, "out_features", out_features, features)
    if not value_projection and out != features:
        rule = f"must be the {features} channels of the input, or be projected to"
        raise fail(caller, "out_features", rule, out)
    queries = as_int(caller, "num_queries", num_queries, 1)
    if out % queries:
        rule = f"must divide the {out} channels of the values"
        raise fail(caller, "num_queries", rule, num_queries)
    sizes = {"q": queries, "e": features, "c": features, "d": out}
    values = projections(("v",), fan_in_uniform, fan_in_uniform, sizes, use_bias)
    query = {"query": initializers.normal(0.02)}
    return sized({**query, **(values if value_projection else {})}, sizes)


@pool_op("probe", "other", weights=_probe_weights, compare={"num_queries": 4})
def efficient_probe_pool(
    x: ArrayLike,
    params: Mapping[str, ArrayLike],
    *,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Efficient probing (EP): queries meet tokens themselves, and share the values.

    .. math:: y = \left[\sum_i \operatorname{softmax}_i\left(q_m x_i^T / \sqrt{C}\right)
        (x_i W_V)_m\right]_{m = 1}^M

    Each of M learned queries pools the m-th group of D / M channels of the values;
    there is no projection of queries, keys or results.

    Args:
      x: `[B..., S..., C]`, floating.
      params: arrays by name: `query` `[M, C]`, `v_kernel` `[C, D]` and `v_bias` `[D]`,
        the last two where wanted; without `v_kernel` D is C. M has to divide D.
      axis, where: as in :func:`set_attention_pool`.

    Returns:
      `[B..., D]` in the dtype of `x`; 0, with gradient 0, where no token takes part.

    Raises:
      ValueError, TypeError: as in :func:`set_attention_pool`.

    Example:
      Each query fills channels of its own from the token that answers it:

      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> x = jnp.array([[[100.0, 0.0], [0.0, 200.0]]])
      >>> query = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> jp.efficient_probe_pool(x, {"query": query})
      Array([[100., 200.]], dtype=float32)

    References:
      Bill Psomas, Dionysis Christopoulos, Eirini Baltzi, and others: Attention, Please!
      Revisiting Attentive Probing Through the Lens of Efficiency, 2026.
    """
    caller = "efficient_probe_pool"
    names, needs = ("query", "v"), ("query",)
    tokens, w = read_tokens(caller, x, params, where, axis, 1, names, needs)
    query, channels = w["query"], tokens.x.shape[-1]
    if query.shape[1:] != (channels,):
        rule = f"must have the shape (M, {channels})"
        raise fail(caller, entry("query"), rule, query.shape)
    features = kernel_of(tokens.x, w, "v").shape[1]
    if features % query.shape[0]:
        rule = f"must have a number of rows that divides {features}"
        raise fail(caller, entry("query"), rule, query.shape)
    rows = query[:, None] * channels**-0.5
    y = absorbed(rows, tokens.x, tokens.x, tokens.where, w)
    return tokens.finish(y[..., 0, :])
