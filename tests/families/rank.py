"""Order statistics."""

import functools
import math

import numpy as np
import oracle

import jaxpool


def median(e, i, pad, interpolation="lower"):
    if not e.size or np.isnan(e).any():
        return e.sum()
    n, e = e.size, np.sort(e)
    lower, upper = e[(n - 1) // 2], e[n // 2]
    return lower if interpolation == "lower" else (lower + upper) / 2


def by_rank(e, i, pad, weights, normalize=False):
    if np.isnan(e).any():
        return np.nan
    w = np.asarray(weights, np.float64)[: e.size]
    y = (w * -np.sort(-e)[: w.size]).sum()
    nothing = abs(w.sum()) <= w.size * np.finfo(w.dtype).eps * abs(w).sum()
    return (0.0 if nothing else y / w.sum()) if normalize else y


def topk(e, i, pad, k=3):
    return by_rank(e, i, pad, np.ones(k), True)


def geometric(e, i, pad, alpha=0.5, normalize=True):
    weights = [alpha * (1 - alpha) ** r for r in range(e.size)]
    return by_rank(e, i, pad, weights, normalize)


def after_dropout(e, i, pad, rate=0.3):
    return geometric(np.where(e <= 0, 0, e), i, pad, 1 - rate, False)


def ordinal(
    x,
    window_shape,
    params,
    strides=None,
    padding="VALID",
    window_dilation=None,
    where=None,
):
    n = len(window_shape)
    ones, axes = (1,) * n, tuple(range(-1 - n, -1))
    pairs = [padding] * n if isinstance(padding, str) else padding
    sizes = [x.shape[a] for a in axes]
    specs = sizes, window_shape, strides or ones, pairs, window_dilation or ones
    lines = [oracle.line(*spec) for spec in zip(*specs, strict=True)]
    powers = np.exp(np.float64(params["logits"]))
    where = np.broadcast_to(True if where is None else where, x.shape)
    y = [
        oracle.over_windows(
            functools.partial(by_rank, weights=powers[:, c], normalize=True),
            x[..., c : c + 1],
            lines,
            axes,
            where[..., c : c + 1],
        )
        for c in range(x.shape[-1])
    ]
    return np.concatenate(y, -1)


ORACLES = {
    "median_pool": median,
    "rank_pool": by_rank,
    "topk_avg_pool": topk,
    "rank_weighted_pool": geometric,
    "rank_stochastic_pool": geometric,
    "dropout_max_pool": after_dropout,
    "ordinal_pool": ordinal,
}
_PADDED = dict(window_shape=(3, 3), padding=((1, 1), (2, 0)), strides=(2, 2))
_NINE = (0.4, -0.3, 0.25, 0.2, 0.15, 0.1, -0.05, 0.02, 0.01)
CASES = {
    "rank_pool": [
        ((6, 7), {**_PADDED, "weights": _NINE}),
        (
            (9,),
            dict(
                window_shape=(4,),
                strides=(3,),
                padding=((2, 1),),
                ceil_mode=True,
                weights=(0.1, 0.2, 0.3, 0.4),
                normalize=True,
            ),
        ),
        ((5, 5), dict(window_shape=(5, 4), weights=tuple(np.cos(range(20)).tolist()))),
    ],
    "ordinal_pool": [
        ((6, 7), {**_PADDED, "features": 2}),
        ((9,), dict(window_shape=(4,), padding="SAME", features=3)),
    ],
}
OWN = {
    "median_pool": [dict(interpolation="midpoint")],
    "rank_weighted_pool": [dict(alpha=0.3, normalize=False)],
}
STATIC = {
    "rank_pool": {"window_shape": (2, 2), "weights": (0.4, 0.3, 0.2, 0.1)},
    "topk_avg_pool": {"k": 3},
    "rank_stochastic_pool": {"deterministic": True},
    "dropout_max_pool": {"rate": 0.3, "deterministic": True},
    "ordinal_pool": {"window_shape": (2, 2)},
}
_W = dict(window_shape=(2, 2))
_LOGITS = {"logits": np.zeros((4, 3), np.float32)}
WRONG = {
    "median_pool": [
        ({**_W, "interpolation": "upper"}, ValueError, "must be 'lower'"),
    ],
    "rank_pool": [
        ({**_W, "weights": 1.0}, ValueError, "must have 4 entries, one for each"),
        ({**_W, "weights": (1.0,) * 3}, ValueError, "`weights` must have 4 entries"),
        ({**_W, "weights": np.ones((4, 2))}, ValueError, "broadcast to the result"),
        ({**_W, "weights": np.ones((4,) + (1,) * 5)}, ValueError, "that broadcast"),
        ({**_W, "weights": (1j,) * 4}, TypeError, "`weights` must be real"),
        ({**_W, "weights": "best"}, TypeError, "`weights` must be an array of"),
    ],
    "topk_avg_pool": [
        ({**_W, "k": 0}, ValueError, "`k` must be at least 1"),
        ({**_W, "k": 1.0}, TypeError, "`k` must be made of ints"),
    ],
    "rank_weighted_pool": [
        ({**_W, "alpha": 0.0}, ValueError, "`alpha` must be greater than 0"),
        ({**_W, "alpha": 1.5}, ValueError, "`alpha` must be greater than 0"),
        ({**_W, "alpha": "half"}, TypeError, "`alpha` must be a number"),
    ],
    "rank_stochastic_pool": [
        ({**_W, "deterministic": False}, ValueError, "pass `key=jax.random.key"),
        ({**_W, "alpha": math.nan}, ValueError, "`alpha` must be greater than 0"),
    ],
    "dropout_max_pool": [
        ({**_W, "deterministic": False}, ValueError, "pass `key=jax.random.key"),
        ({**_W, "rate": 1.0}, ValueError, "`rate` must be at least 0 and less"),
        ({**_W, "rate": None}, TypeError, "`rate` must be a number"),
    ],
    "ordinal_pool": [
        ({**_W, "params": None}, TypeError, "`params` must be a mapping"),
        ({**_W, "params": {}}, ValueError, "`params` must have `logits`"),
        (
            {**_W, "params": {"logits": np.zeros((4, 3)), "bias": np.zeros(3)}},
            ValueError,
            "`params` must have no other names than logits",
        ),
        (
            {**_W, "params": {"logits": np.zeros((4, 2))}},
            ValueError,
            '`params["logits"]` must have the shape (4, 3)',
        ),
        (
            {"window_shape": (2, 3), "params": _LOGITS},
            ValueError,
            '`params["logits"]` must have the shape (6, 3)',
        ),
    ],
}
WIDE = {name: "mean" for name in ORACLES if name != "median_pool"}
EXCEPT = {
    ("ordinal_pool", "no_channels"): "it has an array for each channel",
}

# Arguments with which the mean over keys is what `deterministic=True` gives.
EXPECTATION = {
    "rank_stochastic_pool": {**_PADDED, "alpha": 0.4},
    "dropout_max_pool": {**_PADDED, "rate": 0.3},
}


def _halves(op, **arguments):
    def of(x):
        y = op(x[..., None], (2, 2), strides=(2, 2), **arguments)
        return np.asarray(y)[..., 0]

    return of


_WILDCAT = np.array((1 / 4,) * 2 + (0,) * 12 + (0.6 / 4,) * 2)
_TENTHS = np.array([[0.4], [0.3], [0.2], [0.1]])
_rwp, _dropout = jaxpool.rank_weighted_pool, jaxpool.dropout_max_pool
GOLDEN = {
    "maxpool_dropout_eval_[0,1,2,3]_keep.7": lambda a, b: np.asarray(
        _dropout(a[0, :, None], (4,), rate=0.3, deterministic=True)
    )[0, 0],
    "maxpool_dropout_eval_A_keep.5": lambda a, b: _halves(
        _dropout, rate=0.5, deterministic=True
    )(a),
    "RWP_A_alpha.5": lambda a, b: _halves(_rwp, normalize=False)(a),
    "RWP_norm_A_alpha.5": lambda a, b: _halves(_rwp)(a),
    "RAP_topk2_A": lambda a, b: _halves(jaxpool.topk_avg_pool, k=2)(a),
    "ordinal_desc_[.4,.3,.2,.1]_B": lambda a, b: _halves(
        jaxpool.ordinal_pool, params={"logits": np.log(_TENTHS).astype(np.float32)}
    )(b),
    "median_lower_B": lambda a, b: _halves(jaxpool.median_pool)(b),
    "median_midpoint_B": lambda a, b: _halves(
        jaxpool.median_pool, interpolation="midpoint"
    )(b),
    "wildcat_kmax2_kmin2_a.6_B": lambda a, b: np.asarray(
        jaxpool.rank_pool(b[..., None], (4, 4), weights=_WILDCAT)
    )[0, 0, 0],
}
