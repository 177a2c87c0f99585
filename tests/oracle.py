"""Slow, obvious restatements of every op in NumPy, one window at a time, in float64.

A window's elements arrive as a list in row-major order, without padding and without
what a mask hides; `pad` is how many places of it lie in padding that counts.
"""

import math

import numpy as np

from jaxpool.testing.windows import bins, line, over_windows

__all__ = ["bins", "line", "over_windows"]


def first_extremum(e, largest):
    """The position, within the list, of the first NaN or else the first extremum."""
    nans = np.flatnonzero(np.isnan(e))
    return nans[0] if nans.size else (np.argmax if largest else np.argmin)(e)


def maximum(e, i, pad):
    return e[first_extremum(e, True)] if e.size else -np.inf


def minimum(e, i, pad):
    return e[first_extremum(e, False)] if e.size else np.inf


def argmax(e, i, pad):
    if not e.size:
        return -np.inf, -1
    first = first_extremum(e, True)
    return e[first], i[first]


def total(e, i, pad):
    return e.sum()


def mean(e, i, pad, count_include_pad=True, divisor_override=None):
    count = e.size + pad * count_include_pad
    return e.sum() / (divisor_override or max(count, 1))


def element_mean(e, i, pad):
    return mean(e, i, pad, False)


def norm(e, i, pad, p=2.0, normalize=False):
    if p == math.inf:
        return np.abs(e).max() if e.size else 0.0
    count = max(e.size, 1) if normalize else 1
    return ((np.abs(e) ** p).sum() / count) ** (1 / p)


def generalized_mean(e, i, pad, p=3.0, eps=1e-6):
    return (np.maximum(e, eps) ** p).mean() ** (1 / p) if e.size else 0.0


def log_sum_exp(e, i, pad, r=1.0):
    if not e.size:
        return -np.inf
    if np.isnan(e).any() or np.isinf(e.max()):
        return maximum(e, i, pad)
    return e.max() + np.log(np.exp(r * (e - e.max())).mean()) / r


def mixed(e, i, pad, alpha=0.5):
    return alpha * maximum(e, i, pad) + (1 - alpha) * e.mean() if e.size else 0.0


def mean_and_maximum(e, i, pad):
    return (e.mean(), maximum(e, i, pad)) if e.size else (0.0, 0.0)


def stochastic_expectation(e, i, pad):
    a = np.where(e <= 0, 0, e)
    if not np.isfinite(a.sum()):
        return a.sum()
    return (a * a).sum() / a.sum() if a.sum() else 0.0


def product(e, i, pad):
    return e.prod()


ORACLES = {
    "max_pool": maximum,
    "min_pool": minimum,
    "max_pool_with_argmax": argmax,
    "sum_pool": total,
    "avg_pool": mean,
    "lp_pool": norm,
    "gem_pool": generalized_mean,
    "mixed_pool": mixed,
    "stochastic_pool": stochastic_expectation,
    "pool": product,
    "global_max_pool": maximum,
    "global_min_pool": minimum,
    "global_sum_pool": total,
    "global_avg_pool": element_mean,
    "global_lp_pool": norm,
    "global_gem_pool": generalized_mean,
    "global_lse_pool": log_sum_exp,
    "global_avgmax_pool": mixed,
    "global_catavgmax_pool": mean_and_maximum,
    "adaptive_avg_pool": element_mean,
    "adaptive_max_pool": maximum,
    "adaptive_max_pool_with_argmax": argmax,
}


def unpool(values, indices, output_shape):
    """Max-unpooling of channels-last arrays: later windows overwrite earlier ones."""
    n = len(output_shape)
    lead = values.ndim - n - 1
    out = np.zeros((*values.shape[:lead], *output_shape, values.shape[-1]))
    for at in np.ndindex(values.shape):
        index = indices[at]
        if 0 <= index < math.prod(output_shape):
            place = np.unravel_index(index, output_shape)
            out[(*at[:lead], *place, at[-1])] = values[at]
    return out
