"""Fractional pooling: the boundaries as TensorFlow and PyTorch write them down."""

import math

import numpy as np
import oracle


def boundaries(size, out, u):
    """TensorFlow's pseudo-random sequence, from 0, for a fraction `u` of its bound."""
    alpha, k = size / out, size // out
    bound = min((k + 2) / alpha - 1, (size + 1 - k) / alpha - (out - 1))
    inner = [math.ceil(alpha * (i + u * bound)) - 1 for i in range(1, out)]
    return [0, *inner, size]


def starts(size, out, window, u):
    """PyTorch's intervals, in the dtype of `u`."""
    if out == 1:
        return [size - window]
    alpha = type(u)(size - window) / type(u)(out - 1)
    inner = [int((type(u)(i) + u) * alpha) - int(u * alpha) for i in range(out - 1)]
    return [*inner, size - window]


def windows(size, out, u, window=None, overlapping=False):
    """The positions of each region along one axis, as `oracle.over_windows` takes."""
    if window:
        edges = [(s, s + window) for s in starts(size, out, window, u)]
    else:
        b = boundaries(size, out, float(u))
        edges = [(b[i], min(b[i + 1] + overlapping, size)) for i in range(out)]
    return [(list(range(*edge)), edge[1] - edge[0]) for edge in edges]


def pooled(formula):
    """The oracle of a fractional pool, plane by plane, that pools with `formula`."""

    def f(
        x,
        output_shape=None,
        ratio=None,
        window_shape=None,
        samples=None,
        deterministic=False,
        overlapping=False,
    ):
        n = len(output_shape or ratio)
        sizes, axes = x.shape[-1 - n : -1], tuple(range(-n, 0))
        outs = output_shape or [int(s / r) for s, r in zip(sizes, ratio, strict=True)]
        planes = np.moveaxis(x, -1, -1 - n)
        kept = planes.shape[:-n]
        assert deterministic or samples is not None
        samples = [0.5] * n if samples is None else samples
        u = np.broadcast_to(np.asarray(samples, np.float32), (*kept, n))
        fixed, results = window_shape or [None] * n, []
        for at in np.ndindex(kept):
            rows = zip(sizes, outs, u[at], fixed, strict=True)
            lines = [windows(*row, overlapping) for row in rows]
            y = oracle.over_windows(formula, planes[at], lines, axes)
            results.append(y if isinstance(y, list) else [y])
        arrays = [
            np.moveaxis(np.reshape(a, (*kept, *outs)), -1 - n, -1)
            for a in zip(*results, strict=True)
        ]
        return arrays if len(arrays) > 1 else arrays[0]

    return f


ORACLES = {
    "fractional_max_pool": pooled(oracle.maximum),
    "fractional_max_pool_with_argmax": pooled(oracle.argmax),
    "fractional_avg_pool": pooled(oracle.element_mean),
}
_O = dict(output_shape=(4, 5))
_PER_SAMPLE = np.array([[[0.9, 0.1]], [[0.3, 0.6]]], np.float32)
_CASES = [
    ((6, 7), dict(output_shape=(4, 5), samples=(0.35, 0.8))),
    ((9,), dict(ratio=(1.4,), deterministic=True)),
    ((11,), dict(output_shape=(2,), samples=(0.2,), overlapping=True)),
    ((6, 7), dict(output_shape=(3, 5), window_shape=(3, 2), samples=(0.6, 0.3))),
    ((4, 3, 5), dict(output_shape=(2, 3, 4), samples=(0.9, 0.5, 0.1))),
    (
        (5, 6),
        dict(output_shape=(3, 4), samples=_PER_SAMPLE, overlapping=True),
        (2,),
    ),
]
CASES = {name: _CASES for name in ORACLES}
_WRONG = [
    (dict(_O), ValueError, "pass `key=jax.random.key"),
    (dict(), ValueError, "`output_shape` or `ratio` must be given, not both"),
    (dict(_O, ratio=(1.5, 1.5)), ValueError, "must be given, not both"),
    (dict(output_shape=4), ValueError, "`output_shape` must be a sequence"),
    (dict(output_shape=()), ValueError, "`output_shape` must have between 1 and"),
    (dict(output_shape=(1,) * 4), ValueError, "`output_shape` must have between"),
    (dict(_O, axis=1), ValueError, "`output_shape` must have 1 entries"),
    (dict(output_shape=(0, 5)), ValueError, "`output_shape` must be at least 1"),
    (dict(output_shape=(4.0, 5)), TypeError, "`output_shape` must be made of ints"),
    (dict(output_shape=(7, 5)), ValueError, "leave between 1 and 6 regions"),
    (
        dict(output_shape=(6, 5), window_shape=2),
        ValueError,
        "must leave between 1 and 5 regions on axis -3 of size 6 for a window of 2",
    ),
    (dict(_O, window_shape=(2, 0)), ValueError, "`window_shape` must be at least"),
    (dict(_O, window_shape=(2,)), ValueError, "`window_shape` must have 2 entries"),
    (dict(ratio=1.5), ValueError, "`ratio` must be a sequence"),
    (dict(ratio=(1.5, 0.5)), ValueError, "`ratio` must be finite and at least 1"),
    (
        dict(ratio=(1.5, math.nan)),
        ValueError,
        "`ratio` must be finite and",
    ),
    (
        dict(ratio=(1.5, math.inf)),
        ValueError,
        "`ratio` must be finite and",
    ),
    (dict(ratio=("2", 2)), TypeError, "`ratio` must be made of numbers; got '2'"),
    (dict(ratio=(8, 2)), ValueError, "must leave between 1 and 6 regions"),
    (dict(_O, mode="shuffled"), ValueError, "`mode` must be 'pseudorandom' or"),
    (dict(_O, shared="batch"), ValueError, "`shared` must be True, False or"),
    (dict(_O, overlapping=1), TypeError, "`overlapping` must be True or False"),
    (
        dict(_O, window_shape=2, overlapping=True),
        ValueError,
        "`overlapping` must be False where `window_shape` says",
    ),
    (dict(_O, samples=(0.5,)), ValueError, "`samples` must be [..., 2]"),
    (dict(_O, samples=0.5), ValueError, "`samples` must be [..., 2]"),
    (
        dict(_O, samples=np.full((3, 3, 2), 0.5)),
        ValueError,
        "leading axes that broadcast to (2, 3)",
    ),
    (dict(_O, samples=(0.5, 1.0)), ValueError, "`samples` must lie in [0, 1)"),
    (dict(_O, samples=(0.5, math.nan)), ValueError, "must lie in [0, 1)"),
    (
        dict(_O, samples=(0.5, 0.5), mode="random"),
        ValueError,
        "`samples` must be None where regions are shuffled",
    ),
]
WRONG = {name: _WRONG for name in ORACLES}
WIDE = {"fractional_avg_pool": "mean"}
