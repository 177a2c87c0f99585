"""Probes, restated one sample, one query and one group of channels at a time."""

import math

import numpy as np
from families.aggregation import default
from families.attention import attention, linear, norm, over_samples


def set_attention(x, params, num_heads=4, scale=None, eps=1e-5, axis=None, where=None):
    q = linear(params, "q", np.atleast_2d(np.float64(params["query"])))
    others = {k: v for k, v in params.items() if not k.startswith("q_")}
    ours = (q.shape[-1] / num_heads) ** -0.5
    relative = 1 if scale is None else scale / ours

    def one(tokens, visible):
        y = q + attention(others, q * relative, tokens, tokens, visible, num_heads)
        y = norm(params, "attended_norm", y, eps)
        if "ffn_kernel" in params:
            y = y + np.maximum(linear(params, "ffn", y), 0)
        y = norm(params, "ffn_norm", y, eps)
        return y[0] if params["query"].ndim == 1 else y

    return over_samples(one, x, where, default(axis, x))


def efficient_probe(x, params, axis=None, where=None):
    query = np.float64(params["query"])

    def one(tokens, visible):
        values = linear(params, "v", tokens)
        n = values.shape[1] // len(query)
        y = np.zeros(values.shape[1])
        for m, q in enumerate(query):
            scores = np.array([q @ t / math.sqrt(len(q)) for t in tokens[visible]])
            a = np.exp(scores - scores.max(initial=-np.inf))
            group = slice(m * n, m * n + n)
            y[group] = a @ values[visible][:, group] / max(a.sum(), 1e-300)
        return y

    return over_samples(one, x, where, default(axis, x))


ORACLES = {
    "set_attention_pool": set_attention,
    "efficient_probe_pool": efficient_probe,
}

_MAP = {"features": 4, "axis": (-3, -2)}
CASES = {
    "set_attention_pool": [
        ((2, 3), {**_MAP, "num_heads": 2, "norm": True}),
        (
            (5,),
            {"features": 4, "num_heads": 3, "num_queries": 2, "embed_features": 6}
            | {"use_bias": False, "scale": 0.2},
        ),
    ],
    "efficient_probe_pool": [
        ((2, 3), {**_MAP, "num_queries": 2, "out_features": 6}),
        ((5,), {"features": 4, "num_queries": 4, "value_projection": False}),
        ((2, 3, 2), {"features": 3, "num_queries": 1, "use_bias": True}),
    ],
}

_ONE = {"query": np.ones(3, np.float32)}
_TWO = {"query": np.ones((2, 3), np.float32)}
WRONG = {
    "set_attention_pool": [
        (dict(params={}), ValueError, "`params` must have `query`"),
        (dict(params=_ONE), ValueError, "`num_heads` must divide the 3 channels"),
        (
            dict(params=_ONE, num_heads=1, scale=0.0),
            ValueError,
            "`scale` must be finite and greater than 0",
        ),
        (
            dict(params={**_ONE, "ffn_bias": np.ones(4, np.float32)}, num_heads=1),
            ValueError,
            '`params["ffn_bias"]` must have the shape (3)',
        ),
        (
            dict(params=_ONE, num_heads=1, eps=0),
            ValueError,
            "`eps` must be finite and greater than 0",
        ),
    ],
    "efficient_probe_pool": [
        (
            dict(params=_ONE),
            ValueError,
            '`params["query"]` must have the shape (M, 3)',
        ),
        (
            dict(params=_TWO),
            ValueError,
            '`params["query"]` must have a number of rows that divides 3',
        ),
        (
            dict(params={**_TWO, "v_bias": np.ones(4, np.float32)}),
            ValueError,
            '`params["v_bias"]` must have the shape (3)',
        ),
        (dict(params=_TWO, axis=0.5), TypeError, "`axis` must be made of ints"),
    ],
}

_FIXED = "the learned arrays say how many channels there are"
_TOKEN = "a mask hides whole tokens; see test_aggregation.py"
_ALL = "one such token is felt by its whole sample; see test_aggregation.py"
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
