"""Adaptive pools by name, and heads made of them."""

import numpy as np
import oracle


def select(x, output_shape, pool_type="avg", flatten=False):
    n = len(output_shape)
    axes = tuple(range(-1 - n, -1))
    if pool_type:
        formula = {
            "avg": oracle.element_mean,
            "max": oracle.maximum,
            "avgmax": oracle.mixed,
            "catavgmax": oracle.mean_and_maximum,
        }[pool_type.removeprefix("fast") or "avg"]
        sizes = zip(axes, output_shape, strict=True)
        lines = [oracle.bins(x.shape[a], o or x.shape[a]) for a, o in sizes]
        x = oracle.over_windows(formula, x, lines, axes)
        x = np.concatenate(x, -1) if isinstance(x, list) else x
    return x.reshape(*x.shape[: -1 - n], -1) if flatten else x


def classify(y):
    """Mixes channels, of which there may be any number."""
    return 2 * y - 0.5 * y.sum(-1, keepdims=True) + 1


def read_everywhere(x, window_shape, classifier):
    n = len(window_shape)
    axes = tuple(range(-1 - n, -1))
    sizes = zip(axes, window_shape, strict=True)
    lines = [oracle.line(x.shape[a], k) for a, k in sizes]
    z = classifier(oracle.over_windows(oracle.element_mean, x, lines, axes))
    return (z.mean(axes) + z.max(axes)) / 2


ORACLES = {
    "adaptive_avgmax_pool": oracle.mixed,
    "adaptive_catavgmax_pool": oracle.mean_and_maximum,
    "select_adaptive_pool": select,
    "dense_head_pool": read_everywhere,
}
CASES = {
    "select_adaptive_pool": [
        ((6, 7), dict(output_shape=(4, 2), pool_type="avgmax")),
        ((6, 7), dict(output_shape=(1, 1), pool_type="avg", flatten=True)),
        ((6, 7), dict(output_shape=(2, None), pool_type="catavgmax", flatten=True)),
        ((9,), dict(output_shape=(4,), pool_type="max")),
        ((4, 3, 5), dict(output_shape=(1, 1, 1), pool_type="")),
        ((6, 7), dict(output_shape=(1, 1), pool_type="", flatten=True)),
        ((6, 7), dict(output_shape=(1, 1), pool_type="fast")),
        ((6, 7), dict(output_shape=(1, 1), pool_type="fastavg", flatten=True)),
        ((9,), dict(output_shape=(1,), pool_type="fastmax")),
        ((6, 7), dict(output_shape=(1, 1), pool_type="fastavgmax", flatten=True)),
        ((4, 3, 5), dict(output_shape=(1, 1, 1), pool_type="fastcatavgmax")),
    ],
    "dense_head_pool": [
        ((6, 7), dict(window_shape=(3, 2))),
        ((9,), dict(window_shape=(9,))),
        ((4, 3, 5), dict(window_shape=(2, 3, 2))),
    ],
}
STATIC = {"dense_head_pool": {"window_shape": (2, 2), "classifier": classify}}
WIDE = dict.fromkeys(ORACLES, "mean")
_KERNEL, _BIAS = np.ones((3, 5), np.float32), np.ones(5, np.float32)
WRONG = {
    "select_adaptive_pool": [
        (dict(pool_type="sum"), ValueError, "`pool_type` must be one of 'avg', 'max'"),
        (dict(pool_type="fastmin"), ValueError, "`pool_type` must be one of"),
        (
            dict(pool_type="fastmax", output_shape=(1, 2)),
            ValueError,
            "`output_shape` must be 1 for 'fastmax'; 'max' takes any size; got (1, 2)",
        ),
        (dict(output_shape=0), ValueError, "`output_shape` must be at least 1"),
        (dict(output_shape=(2, 2), axis=1), ValueError, "must have 1 entries"),
    ],
    "dense_head_pool": [
        (dict(window_shape=(7, 2)), ValueError, "leaves nothing to pool"),
        (dict(window_shape=2), ValueError, "`window_shape` must be a sequence"),
        (dict(classifier=3), TypeError, "`classifier` must be a function or a pair"),
        (dict(classifier=(_KERNEL.T, _BIAS)), ValueError, "kernel of shape (3, N)"),
        (dict(classifier=(_KERNEL, _KERNEL)), ValueError, "bias of shape (5,)"),
        (dict(classifier=("x", _BIAS)), TypeError, "must be an array of numbers"),
    ],
}
