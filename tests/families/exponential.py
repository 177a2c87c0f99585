"""Exponential weights over windows, one element after the other."""

import math

import numpy as np
import oracle

import jaxpool


def weighted(e, logits):
    """The mean with weights e**logits; what has none has no value either."""
    logits = np.float64(
        logits
    )  # of 8-bit integers NumPy's powers are in half precision
    e, logits = e[logits > -math.inf], logits[logits > -math.inf]
    if not e.size:
        return 0.0
    weights = np.exp(logits - logits.max())
    return (weights * e).sum() / weights.sum()


def soft(e, i, pad, beta=1.0):
    if not e.size:
        return 0.0
    if beta == 0:
        return e.mean()
    peak = oracle.maximum(e, i, pad) if beta >= 0 else oracle.minimum(e, i, pad)
    return (
        weighted(e[np.isfinite(e)], beta * e[np.isfinite(e)])
        if np.isfinite(peak)
        else peak
    )


def auto(e, i, pad, alpha=1.0):
    return soft(e, i, pad, alpha)


def by_logits(e, i, pad, logits):
    return weighted(e, np.ravel(logits)[i]) if e.size else 0.0


ORACLES = {
    "lse_pool": oracle.log_sum_exp,
    "soft_pool": soft,
    "auto_pool": auto,
    "exp_weighted_pool": by_logits,
}
OWN = {
    "lse_pool": [dict(r=10.0)],
    "soft_pool": [dict(beta=-3.0)],
    "auto_pool": [dict(alpha=0.0)],
}


def logits(*shape):
    """Exact in any dtype, with windows that have no weight."""
    g = np.random.default_rng(0).integers(-20, 21, shape) / 8
    g[:1, :3] = -math.inf
    return g


_PADDED = dict(window_shape=(3, 3), padding=((1, 1), (2, 0)), strides=(2, 2))
_CEIL = dict(window_shape=(4,), strides=(3,), padding=((2, 1),), ceil_mode=True)
_DILATED = dict(window_shape=(3, 2), window_dilation=(2, 3), padding=((1, 1),) * 2)
CASES = {
    "exp_weighted_pool": [
        ((6, 7), dict(_PADDED, logits=logits(6, 7, 1))),
        ((9,), dict(_CEIL, logits=logits(9, 1))),
        ((7, 7), dict(_DILATED, logits=logits(7, 7, 1))),
    ]
}
STATIC = {"exp_weighted_pool": dict(logits=0.0)}
_W = dict(window_shape=(2, 2))
_SAME = [[[1.0]] * 7] * 6
WRONG = {
    "lse_pool": [
        (dict(_W, r=0.0), ValueError, "`r` must be finite and greater"),
        (dict(_W, r=math.inf), ValueError, "`r` must be finite"),
        (dict(_W, r=_SAME), ValueError, "same along"),
    ],
    "soft_pool": [
        (dict(_W, beta=math.inf), ValueError, "`beta` must be finite"),
        (dict(_W, beta=_SAME), ValueError, "same along"),
    ],
    "auto_pool": [(dict(alpha=math.nan), ValueError, "`alpha` must be finite")],
    "exp_weighted_pool": [
        (dict(_W, logits=np.ones((5, 1))), ValueError, "`logits` must broadcast"),
        (dict(_W, logits=1j), TypeError, "`logits` must be real"),
    ],
}
EXCEPT = {("exp_weighted_pool", "any_layout"): "logits are laid out as x is"}

_TWO = dict(window_shape=(2, 2), strides=(2, 2))


def _golden(op, **arguments):
    def of(x):
        return np.asarray(op(x[..., None], **{**_TWO, **arguments}))[..., 0]

    return of


_lse, _soft = jaxpool.lse_pool, jaxpool.soft_pool
GOLDEN = {
    "LSE_mean_r1_B": lambda a, b: _golden(_lse)(b),
    "LSE_mean_r10_B": lambda a, b: _golden(_lse, r=10.0)(b),
    "LSE_mean_r1_B+1000": lambda a, b: _golden(_lse)(b + 1000),
    "softpool_b1_A": lambda a, b: _golden(_soft)(a),
    "softpool_b1_B": lambda a, b: _golden(_soft)(b),
    "softpool_b0_eq_avg_B": lambda a, b: _golden(_soft, beta=0.0)(b),
    "LIP_g=2x_k3s2p1_B": lambda a, b: _golden(
        jaxpool.exp_weighted_pool,
        window_shape=(3, 3),
        padding=1,
        logits=2 * b[..., None],
    )(b),
}
