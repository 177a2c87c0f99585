"""Attention pools, restated one sample, one head and one query at a time."""

import math

import numpy as np


def over_samples(f, x, where, axis):
    """Calls `f(tokens [L, C], visible [L])` for every sample; 0 where none is."""
    axes = sorted(a % x.ndim for a in np.atleast_1d(axis))
    (*batch, channel) = [a for a in range(x.ndim) if a not in axes]
    sizes = [x.shape[a] for a in axes]
    lead = [x.shape[a] for a in batch]
    shape = x.shape[:channel] + x.shape[channel + 1 :]
    mask = np.broadcast_to(True if where is None else where, shape)
    mask = np.broadcast_to(np.expand_dims(mask, channel), x.shape)
    x, mask = (np.transpose(a, [*batch, *axes, channel]) for a in (x, mask))
    x, mask = (a.reshape(math.prod(lead), math.prod(sizes), -1) for a in (x, mask))
    if not len(x):
        return np.zeros((*lead, *f(np.ones(x.shape[1:]), mask[:, :, 0].any(0)).shape))
    out = []
    for tokens, visible in zip(x, mask[:, :, 0], strict=True):
        y = f(np.where(visible[:, None], tokens, 0), visible)
        out.append(y if visible.any() else 0 * y)
    return np.stack(out).reshape(*lead, *out[0].shape)


def linear(p, name, x):
    x = x @ np.float64(p[f"{name}_kernel"]) if f"{name}_kernel" in p else x
    return x + p[f"{name}_bias"] if f"{name}_bias" in p else x


def norm(p, name, x, eps):
    if f"{name}_scale" not in p:
        return x
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * p[f"{name}_scale"] + p[f"{name}_bias"]


def gelu(x, approximate):
    if approximate:
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def separate(p):
    p = dict(p)
    for fused in ("qkv", "kv"):
        for part in ("kernel", "bias"):
            if f"{fused}_{part}" in p:
                pieces = np.split(p.pop(f"{fused}_{part}"), len(fused), -1)
                p |= {f"{n}_{part}": a for n, a in zip(fused, pieces, strict=True)}
    return p


def attention(p, q, k, v, visible, heads, eps=0.0, turn=None):
    """The answer to each query, from tokens k and v `[L, C]`."""
    q, k, v = linear(p, "q", q), linear(p, "k", k), linear(p, "v", v)
    d = q.shape[-1] // heads
    out = np.zeros((len(q), v.shape[-1]))
    for h in range(heads):
        at = slice(h * d, h * d + d)
        qs, ks = norm(p, "q_norm", q[:, at], eps), norm(p, "k_norm", k[:, at], eps)
        if turn is not None:
            qs = np.stack([turn(i, row) for i, row in enumerate(qs)])
            ks = np.stack([turn(i, row) for i, row in enumerate(ks)])
        for i, row in enumerate(qs):
            scores = np.array([row @ key / math.sqrt(d) for key in ks[visible]])
            powers = np.exp(scores - scores.max(initial=-np.inf))
            out[i, at] = powers @ v[visible][:, at] / max(powers.sum(), 1e-300)
            if np.isnan(powers).any():
                out[i, at] = np.nan
    return linear(p, "out", out)


def queries(p, x, visible, heads, eps=0.0, approximate=False):
    query = np.atleast_2d(np.float64(p["query"]))
    y = attention(p, query, x, x, visible, heads, eps)
    if "mlp_in_kernel" in p:
        hidden = gelu(linear(p, "mlp_in", norm(p, "norm", y, eps)), approximate)
        y = y + linear(p, "mlp_out", hidden)
    return y[0] if p["query"].ndim == 1 else y


def learned_queries(x, params, num_heads, axis=-2, where=None):
    return over_samples(lambda t, m: queries(params, t, m, num_heads), x, where, axis)


def map_head(x, params, num_heads, eps=1e-6, axis=-2, where=None):
    return over_samples(
        lambda t, m: queries(params, t, m, num_heads, eps, True), x, where, axis
    )


def latent(
    x,
    params,
    num_heads,
    pool_type="token",
    eps=1e-5,
    approximate=False,
    axis=-2,
    where=None,
):
    p = separate(params)

    def one(t, m):
        y = queries(p, t + p.get("positions", 0), m, num_heads, eps, approximate)
        return {"token": y[0], "avg": y.mean(0), "": y}[pool_type]

    return over_samples(one, x, where, axis)


def cubic(size, new):
    """Keys' kernel, widened by the scale where the map shrinks: `[new, size]`."""
    scale = max(size / new, 1)
    matrix = np.zeros((new, size))
    for o in range(new):
        for i in range(size):
            t = abs((i + 0.5) - (o + 0.5) * size / new) / scale
            near = 1.5 * t**3 - 2.5 * t**2 + 1
            far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
            matrix[o, i] = near if t < 1 else far if t < 2 else 0
    return matrix / matrix.sum(1, keepdims=True)


def resampled(grid, new):
    for axis, n in enumerate(new):
        grid = np.moveaxis(
            np.tensordot(cubic(grid.shape[axis], n), grid, (1, axis)), 0, axis
        )
    return grid


def by_first(p, t, m, heads, pool_type, sizes, positions=0, turn=None):
    first = p["cls_token"] if "cls_token" in p else t[m].sum(0) / max(m.sum(), 1)
    z = np.concatenate([first[None], t]) + positions
    visible = np.concatenate([[True], m])
    y = attention(p, z, z, z, visible, heads, turn=turn)
    if pool_type == "token":
        return y[0]
    return np.where(m[:, None], y[1:], 0).reshape(*sizes, -1)


def clip(
    x,
    params,
    num_heads,
    position_shape=(7, 7),
    pool_type="token",
    axis=None,
    where=None,
):
    p = separate(params)
    axis = range(-1 - len(position_shape), -1) if axis is None else axis
    sizes = [x.shape[a] for a in axis]
    first, *rest = np.float64(p["positions"])
    grid = resampled(np.reshape(rest, (*position_shape, -1)), sizes)
    positions = np.concatenate([first[None], grid.reshape(-1, len(first))])
    return over_samples(
        lambda t, m: by_first(p, t, m, num_heads, pool_type, sizes, positions),
        x,
        where,
        axis,
    )


def rotary(
    x,
    params,
    num_heads,
    reference_shape=(7, 7),
    temperature=1e4,
    pool_type="token",
    axis=None,
    where=None,
):
    p = separate(params)
    axis = range(-1 - len(reference_shape), -1) if axis is None else axis
    sizes = [x.shape[a] for a in axis]
    places = list(np.ndindex(*sizes))

    def turn(i, row):
        if i == 0:
            return row
        pairs = row[0::2] + 1j * row[1::2]
        m = len(pairs) // len(sizes)
        for s, (place, r, n) in enumerate(
            zip(places[i - 1], reference_shape, sizes, strict=True)
        ):
            for j in range(m):
                angle = place * r / n / temperature ** (j / m)
                pairs[s * m + j] *= np.exp(1j * angle)
        return np.stack([pairs.real, pairs.imag], -1).ravel()

    return over_samples(
        lambda t, m: by_first(p, t, m, num_heads, pool_type, sizes, turn=turn),
        x,
        where,
        axis,
    )


def sim(x, params, num_heads=1, gamma=None, eps=1e-5, axis=-2, where=None):
    def one(t, m):
        q = t[m].sum(0, keepdims=True) / max(m.sum(), 1)
        k = norm(params, "token_norm", t, eps)
        v, power = k, gamma or 1.0
        if gamma:
            v = (np.abs(k - k[m].min(0, initial=np.inf)) + 1e-6) ** power
        return attention(params, q, k, v, m, num_heads, eps)[0] ** (1 / power)

    return over_samples(one, x, where, axis)


def refined(x, params, num_heads=8, pool_type="token", eps=1e-5, axis=-2, where=None):
    axes = np.atleast_1d(axis)
    sizes = [x.shape[a] for a in axes]

    def one(t, m):
        t = norm(params, "token_norm", t, eps)
        y = norm(params, "norm", attention({}, t, t, t, m, num_heads), eps)
        if pool_type == "avg":
            return y[m].sum(0) / max(m.sum(), 1)
        if pool_type == "token":
            return y[np.argmax(m)]
        return np.where(m[:, None], y, 0).reshape(*sizes, -1)

    return over_samples(one, x, where, axis)


ORACLES = {
    "attention_pool": learned_queries,
    "map_pool": map_head,
    "latent_attention_pool": latent,
    "clip_attention_pool": clip,
    "rotary_attention_pool": rotary,
    "sim_pool": sim,
    "prr_attention_pool": refined,
}

_MAP = {"features": 4, "num_heads": 2}
_TOKENS = {**_MAP, "axis": (-3, -2)}
CASES = {
    "attention_pool": [
        ((2, 3), {**_TOKENS, "out_features": 3}),
        ((5,), dict(features=4, num_heads=3, num_queries=2, embed_features=6)),
    ],
    "map_pool": [((2, 3), {**_TOKENS, "mlp_features": 5})],
    "latent_attention_pool": [
        ((2, 3), {**_TOKENS, "norm": True, "qk_norm": True, "mlp_features": 5}),
        (
            (5,),
            dict(
                features=4,
                num_heads=2,
                embed_features=6,
                query_features=3,
                num_queries=3,
                num_positions=5,
                out_features=0,
                pool_type="avg",
            ),
        ),
        (
            (5,),
            dict(
                features=4,
                num_heads=2,
                num_queries=2,
                query_projection=False,
                out_features=3,
                approximate=True,
                pool_type="",
            ),
        ),
    ],
    "clip_attention_pool": [
        ((2, 3), {**_MAP, "position_shape": (3, 2), "out_features": 3}),
        ((3, 2), {**_MAP, "position_shape": (3, 2), "class_token": True}),
        ((5,), {**_MAP, "position_shape": (5,), "fused": True, "pool_type": ""}),
        ((2, 3, 2), {**_MAP, "position_shape": (2, 2, 3), "out_features": 0}),
    ],
    "rotary_attention_pool": [
        ((2, 3), {**_MAP, "embed_features": 8, "temperature": 10.0}),
        ((5,), {**_MAP, "reference_shape": (5,), "pool_type": "", "fused": True}),
        ((2, 2), {**_MAP, "num_heads": 1, "class_token": True, "pool_type": ""}),
    ],
    "sim_pool": [
        ((2, 3), {**_TOKENS, "gamma": 2.0}),
        ((5,), {**_MAP, "gamma": 1.25, "qk_norm": True, "use_bias": True}),
        ((5,), {**_MAP, "num_heads": 1}),
    ],
    "prr_attention_pool": [
        ((2, 3), {**_TOKENS, "pre_norm": True, "pool_type": ""}),
        ((5,), {**_MAP, "post_norm": True}),
        ((5,), {**_MAP, "pre_norm": True, "post_norm": True, "pool_type": "avg"}),
    ],
}

_ONE = {"query": np.ones(3, np.float32)}
_POINTS = {"positions": np.ones((50, 3), np.float32)}
_HEADS = {"params": _ONE, "num_heads": 1}
_REFINED = {"params": {}, "num_heads": 1}
_KERNEL = np.ones((3, 4), np.float32)
_MLP = {"mlp_in_kernel": _KERNEL.T, "mlp_out_kernel": _KERNEL}
WRONG = {
    "attention_pool": [
        ({**_HEADS, "params": {}}, ValueError, "`params` must have `query`"),
        ({**_HEADS, "params": None}, TypeError, "`params` must be a mapping"),
        ({**_HEADS, "num_heads": 2}, ValueError, "`num_heads` must divide the 3"),
        ({**_HEADS, "num_heads": 1.0}, TypeError, "`num_heads` must be made of"),
        ({**_HEADS, "num_heads": 0}, ValueError, "`num_heads` must be at least 1"),
        ({**_HEADS, "axis": 9}, ValueError, "`axis` must lie within the 4 axes"),
        ({**_HEADS, "axis": range(4)}, ValueError, "`axis` must leave an axis for"),
        (
            {**_HEADS, "where": np.ones((2, 6, 7))},
            TypeError,
            "`where` must be boolean",
        ),
        (
            {**_HEADS, "where": np.ones((2, 6, 7, 3), bool)},
            ValueError,
            "`where` must broadcast to `x` without channels",
        ),
        (
            {**_HEADS, "params": {**_ONE, "probe": np.ones(3)}},
            ValueError,
            "`params` must have no other names than query, q_kernel",
        ),
        (
            {**_HEADS, "params": {"query": np.ones(3, np.int32)}},
            TypeError,
            '`params["query"]` must be floating',
        ),
        (
            {**_HEADS, "params": {"query": np.ones((1, 1, 3), np.float32)}},
            ValueError,
            '`params["query"]` must have the shape',
        ),
        (
            {**_HEADS, "params": {**_ONE, "k_kernel": _KERNEL.T}},
            ValueError,
            '`params["k_kernel"]` must have the shape (3, 3)',
        ),
        (
            {**_HEADS, "params": {**_ONE, "k_kernel": _KERNEL, "v_kernel": _KERNEL}},
            ValueError,
            "`params` must have `q_kernel`, to make 4 channels of 3",
        ),
        (
            {**_HEADS, "params": {**_ONE, "kv_kernel": np.ones((3, 3), np.float32)}},
            ValueError,
            '`params["kv_kernel"]` must have a last axis of 2 equal parts',
        ),
    ],
    "map_pool": [
        ({**_HEADS}, ValueError, "`params` must have `mlp_in_kernel`"),
        (
            {**_HEADS, "params": {**_ONE, **_MLP}},
            ValueError,
            "`params` must have `out_kernel`, to make 4 channels of 3",
        ),
    ],
    "latent_attention_pool": [
        ({**_HEADS, "pool_type": "max"}, ValueError, "`pool_type` must be one of"),
        ({**_HEADS, "eps": 0}, ValueError, "`eps` must be finite and greater than 0"),
        (
            {**_HEADS, "params": {**_ONE, **_POINTS}},
            ValueError,
            '`params["positions"]` must have 7 rows',
        ),
    ],
    "clip_attention_pool": [
        ({**_HEADS, "params": {}}, ValueError, "`params` must have `positions`"),
        (
            {**_HEADS, "params": _POINTS, "position_shape": 7},
            ValueError,
            "`position_shape` must be a sequence with one int for each axis",
        ),
        (
            {**_HEADS, "params": _POINTS, "position_shape": (7, 6)},
            ValueError,
            '`params["positions"]` must have 43 rows',
        ),
        (
            {**_HEADS, "params": _POINTS, "axis": (1,)},
            ValueError,
            "`axis` must have 2 entries, as `position_shape` has",
        ),
        (
            {**_HEADS, "params": _POINTS, "pool_type": "avg"},
            ValueError,
            "`pool_type` must be one of 'token', ''",
        ),
    ],
    "rotary_attention_pool": [
        (
            {**_HEADS, "params": {}},
            ValueError,
            "`num_heads` must leave a multiple of 4 channels to each head",
        ),
        (
            {**_HEADS, "params": {}, "temperature": 0},
            ValueError,
            "`temperature` must be finite and greater than 0",
        ),
    ],
    "sim_pool": [
        ({"params": {}, "gamma": -1.0}, ValueError, "`gamma` must be finite and"),
        ({"params": _ONE}, ValueError, "`params` must have no other names than q_k"),
    ],
    "prr_attention_pool": [
        ({"params": {}}, ValueError, "`num_heads` must divide the 3 channels"),
        ({**_REFINED, "pool_type": "max"}, ValueError, "`pool_type` must be one of"),
        ({**_REFINED, "eps": 0}, ValueError, "`eps` must be finite and greater than"),
        (
            {**_REFINED, "params": {"norm_scale": np.ones(4, np.float32)}},
            ValueError,
            '`params["norm_scale"]` must have the shape (3)',
        ),
    ],
}

_FIXED = "the learned arrays say how many channels there are"
_TOKEN = "a mask hides whole tokens; see test_attention.py"
_ALL = "one such token is felt by its whole sample; see test_attention.py"
_IDS = "refused: tokens are features, and integers are their mistaken ids"
EXCEPT = {
    (op, question): reason
    for op in ORACLES
    for question, reason in {
        "no_channels": _FIXED,
        "mask": _TOKEN,
        "nan_and_infinity": _ALL,
        "integers": _IDS,
    }.items()
}
