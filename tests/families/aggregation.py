"""Aggregation, restated one sample, one channel, one cluster and one pair at a time."""

import math

import numpy as np
from families.attention import over_samples

import jaxpool


def default(axis, x):
    return range(1, x.ndim - 1) if axis is None else axis


def tokens_and_masks(f, x, where, axis):
    """Calls `f(tokens [L, C], mask [L, C])` for every sample."""
    axes = sorted(a % x.ndim for a in np.atleast_1d(default(axis, x)))
    rest = [a for a in range(x.ndim) if a not in axes]
    mask = np.broadcast_to(True if where is None else where, x.shape)
    x, mask = (np.transpose(a, [*rest[:-1], *axes, rest[-1]]) for a in (x, mask))
    lead, length = x.shape[: len(rest) - 1], math.prod(x.shape[len(rest) - 1 : -1])
    x, mask = (a.reshape(math.prod(lead), length, a.shape[-1]) for a in (x, mask))
    out = [f(t, m) for t, m in zip(x, mask, strict=True)]
    empty = f(np.zeros(x.shape[1:]), np.ones(x.shape[1:], bool))
    return np.reshape(out, (*lead, *empty.shape))


def centred(column, mask):
    y = np.zeros(len(column))
    y[mask] = column[mask] - column[mask].sum() / max(mask.sum(), 1)
    return y


def covariance(x, where=None, iterations=5, vectorize=True, axis=None):
    def one(tokens, mask):
        n = tokens.shape[1]
        columns = [
            centred(tokens[:, c], mask[:, c]) / math.sqrt(max(mask[:, c].sum(), 1))
            for c in range(n)
        ]
        sigma = np.array([[a @ b for a in columns] for b in columns]).reshape(n, n)
        trace = np.trace(sigma)
        y, z = sigma / trace if trace != 0 else sigma, np.eye(n)
        for _ in range(iterations):
            y, z = (
                0.5 * y @ (3 * np.eye(n) - z @ y),
                0.5 * (3 * np.eye(n) - z @ y) @ z,
            )
        y = y * math.sqrt(trace) if trace == trace else y * np.nan
        return y[np.triu_indices(n)] if vectorize else y

    return tokens_and_masks(one, x, where, axis)


def statistics(x, where=None, correction=0, axis=None):
    def one(tokens, mask):
        means, spreads = [], []
        for c in range(tokens.shape[1]):
            values = tokens[mask[:, c], c]
            means.append(values.mean() if len(values) else 0.0)
            many = len(values) > correction
            spreads.append(np.std(values, ddof=correction) if many else 0.0)
        return np.array([*means, *spreads])

    return tokens_and_masks(one, x, where, axis)


def rectified(hidden):
    """ReLU and an affine map, as of a BatchNorm whose statistics are fixed."""
    return 0.75 * (hidden + abs(hidden)) - 0.25


def attentive_statistics(x, params, where=None, axis=None, hidden_fn=lambda h: h):
    def one(tokens, visible):
        seen = tokens[visible]
        if not len(seen):
            return np.zeros(2 * tokens.shape[1])
        context = [seen, seen * 0 + seen.mean(0), seen * 0 + seen.std(0)]
        names = ("hidden_kernel", "mean_kernel", "std_kernel")
        pairs = [(c, n) for c, n in zip(context, names, strict=True) if n in params]
        inputs = np.concatenate([c for c, _ in pairs], 1)
        kernel = np.concatenate([params[n] for _, n in pairs])
        hidden = np.tanh(hidden_fn(inputs @ kernel + params.get("hidden_bias", 0)))
        scores = hidden @ np.float64(params["score_kernel"])
        means, spreads = [], []
        for c in range(tokens.shape[1]):
            a = np.exp(scores[:, c] - scores[:, c].max())
            a /= a.sum()
            means.append(a @ seen[:, c])
            spreads.append(math.sqrt(a @ (seen[:, c] - means[-1]) ** 2))
        return np.array([*means, *spreads])

    return over_samples(one, x, where, default(axis, x))


def unit(v):
    norm = math.sqrt((v * v).sum())
    return v / norm if norm else v


def vlad(x, params, where=None, alpha=1.0, normalize=True, axis=None):
    centroids = np.float64(params["centroids"])
    kernel = params.get("assign_kernel", np.zeros(centroids.T.shape))
    bias = params.get("assign_bias", np.zeros(len(centroids)))

    def one(tokens, visible):
        y = np.zeros(centroids.shape)
        for token in tokens[visible]:
            distances = np.array([((token - c) ** 2).sum() for c in centroids])
            scores = token @ kernel + bias - alpha * distances
            a = np.exp(scores - scores.max())
            for k, c in enumerate(centroids):
                y[k] += a[k] / a.sum() * (token - c)
        if normalize:
            y = unit(np.array([unit(v) for v in y]))
        return y.ravel()

    return over_samples(one, x, where, default(axis, x))


ORACLES = {
    "covariance_pool": covariance,
    "statistics_pool": statistics,
    "attentive_statistics_pool": attentive_statistics,
    "vlad_pool": vlad,
}

_MAP = {"axis": (-3, -2)}
CASES = {
    "covariance_pool": [
        ((6, 7), _MAP),
        ((9,), {"iterations": 3, "vectorize": False}),
        ((4, 3, 5), {"iterations": 1}),
    ],
    "statistics_pool": [((6, 7), _MAP), ((9,), {"correction": 1}), ((4, 3, 5), {})],
    "attentive_statistics_pool": [
        ((2, 3), {**_MAP, "features": 3, "hidden_features": 4}),
        ((5,), {"features": 3, "hidden_features": 3, "global_context": False}),
        ((5,), {"features": 3, "hidden_features": 4, "hidden_fn": rectified}),
    ],
    "vlad_pool": [
        ((2, 3), {**_MAP, "features": 3, "num_clusters": 4}),
        (
            (5,),
            {"features": 2, "num_clusters": 3, "decoupled": False, "alpha": 0.3}
            | {"normalize": False},
        ),
    ],
}
WIDE = {"covariance_pool": "mean", "statistics_pool": "mean"}

_LAYERS = {
    "hidden_kernel": np.ones((3, 4), np.float32),
    "score_kernel": np.ones((4, 3), np.float32),
}
_CENTROIDS = {"centroids": np.ones((4, 3), np.float32)}
_AXIS = [
    (dict(axis=9), ValueError, "`axis` must lie within the 4 axes"),
    (dict(axis=range(4)), ValueError, "`axis` must leave an axis for the channels"),
    (dict(where=np.ones((2, 6, 7, 3))), TypeError, "`where` must be boolean"),
    (dict(where=np.ones((5, 1), bool)), ValueError, "`where` must broadcast to `x`"),
]
WRONG = {
    "covariance_pool": [
        *_AXIS,
        (dict(iterations=0), ValueError, "`iterations` must be at least 1; got 0"),
        (dict(iterations=2.0), TypeError, "`iterations` must be made of ints"),
    ],
    "statistics_pool": [
        *_AXIS,
        (dict(correction=-1), ValueError, "`correction` must be finite and at least 0"),
        (dict(correction="0"), TypeError, "`correction` must be finite and at least 0"),
        (dict(correction=[0, 1]), TypeError, "`correction` must be finite and at"),
    ],
    "attentive_statistics_pool": [
        (dict(params={}), ValueError, "`params` must have `hidden_kernel`"),
        (dict(params=None), TypeError, "`params` must be a mapping of arrays"),
        (
            dict(params=dict.fromkeys(("hidden_kernel", "score_kernel"), np.ones(3))),
            ValueError,
            '`params["hidden_kernel"]` must have the shape (3, M)',
        ),
        (
            dict(params=_LAYERS, hidden_fn="relu"),
            TypeError,
            "`hidden_fn` must be a function of the hidden features, or None",
        ),
        (
            dict(params=_LAYERS, hidden_fn=lambda h: h[0]),
            ValueError,
            "`hidden_fn` must keep the shape (2, 42, 4) of the hidden features",
        ),
    ],
    "vlad_pool": [
        (dict(params={}), ValueError, "`params` must have `centroids`"),
        (
            dict(params={**_CENTROIDS, "query": np.ones(3)}),
            ValueError,
            "`params` must have no other names than centroids, assign_kernel",
        ),
        (
            dict(params={**_CENTROIDS, "assign_bias": np.ones(3, np.float32)}),
            ValueError,
            '`params["assign_bias"]` must have the shape (4)',
        ),
        (
            dict(params=_CENTROIDS, alpha=-1.0),
            ValueError,
            "`alpha` must be finite and at least 0",
        ),
    ],
}


def isqrt(iterations):
    x = np.float32([[1, 2, 3, 4], [2, 0, 1, 5], [0, 1, 1, 2]]).T
    return jaxpool.covariance_pool(x, iterations=iterations, vectorize=False, axis=0)


def netvlad(**kwargs):
    x, centroids = np.float32([[1, 0], [0, 1], [1, 1]]), np.eye(2, dtype=np.float32)
    return jaxpool.vlad_pool(x, {"centroids": centroids}, axis=0, **kwargs)


GOLDEN = {
    "isqrt_NS3_X": lambda a, b: isqrt(3),
    "isqrt_NS5_X": lambda a, b: isqrt(5),
    "isqrt_NS20_X": lambda a, b: isqrt(20),
    "sqrtm_exact_X": lambda a, b: isqrt(20),
    "cov_X": lambda a, b: isqrt(20) @ isqrt(20),
    "netvlad_raw": lambda a, b: netvlad(normalize=False).reshape(2, 2),
    "netvlad_final": lambda a, b: netvlad(),
}

_FIXED = "the learned arrays say how many channels there are"
_TOKEN = "a mask hides whole tokens; see test_aggregation.py"
_ALL = "one such token is felt by its whole sample; see test_aggregation.py"
_IDS = "refused: tokens are features, and integers are their mistaken ids"
EXCEPT = {
    (op, question): reason
    for op in ("attentive_statistics_pool", "vlad_pool")
    for question, reason in {
        "no_channels": _FIXED,
        "mask": _TOKEN,
        "nan_and_infinity": _ALL,
        "integers": _IDS,
    }.items()
}
