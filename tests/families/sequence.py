"""Sequences: each row's tokens picked out first, then pooled as the formulas say."""

import math

import numpy as np

MODES = ("cls", "last", "max", "mean", "mean_sqrt_len", "weighted_mean", "avgmax")


def pooled(tokens, mode):
    """One row's tokens `[n]` of one channel; those before its first do not count."""
    values, ranks = (np.array(t, np.float64) for t in zip(*tokens, strict=True))
    peak = np.nan if np.isnan(values).any() else values.max()
    return {
        "cls": values[0],
        "last": values[-1],
        "max": peak,
        "mean": values.sum() / len(values),
        "mean_sqrt_len": values.sum() / math.sqrt(len(values)),
        "weighted_mean": (values * ranks).sum() / ranks.sum(),
        "avgmax": (values.sum() / len(values) + peak) / 2,
    }[mode]


def sequence_pool(x, where=None, lengths=None, mode="mean", num_prefix_tokens=0):
    *batch, size, channels = x.shape
    modes = (mode,) if isinstance(mode, str) else mode
    here = np.ones(x.shape, bool)
    if lengths is not None:
        lengths = np.broadcast_to(lengths, batch)[..., None, None]
        here &= np.arange(size)[:, None] < lengths
    if where is not None:
        here &= np.asarray(where) if np.ndim(where) == x.ndim else where[..., None]
    y = np.zeros((*batch, len(modes), channels))
    for row in np.ndindex(*batch):
        for k, mode in enumerate(modes):
            for c in range(channels):
                places = np.flatnonzero(here[(*row, slice(None), c)])
                tokens = [(x[(*row, i, c)], i - places[0] + 1) for i in places]
                if num_prefix_tokens and mode != "cls":
                    start = num_prefix_tokens
                    tokens = [(v, r - start) for v, r in tokens if r > start]
                empty = -np.inf if mode == "max" else 0
                y[(*row, k, c)] = pooled(tokens, mode) if tokens else empty
    return y.reshape(*batch, len(modes) * channels)


ORACLES = {"sequence_pool": sequence_pool}
LENGTHS = np.array([7, 1, 3, 6, 2, 5], np.int32)
MEANS = ("cls", "last", "mean", "mean_sqrt_len", "weighted_mean", "avgmax")
CASES = {
    "sequence_pool": [
        ((6, 7), dict(mode=MODES)),  # six rows of seven tokens
        ((9,), dict()),
        ((6, 7), dict(mode=MODES, lengths=LENGTHS)),
        ((6, 7), dict(mode=MEANS, lengths=LENGTHS - 1, num_prefix_tokens=1)),
    ]
}
WIDE = {"sequence_pool": "mean"}
COUNTED = {
    "sequence_pool": (
        "lengths",
        300,
        lambda lengths: (
            np.tile(np.float32(range(300))[:, None] % 7, (len(lengths), 1, 1)),
            dict(lengths=lengths, mode="mean"),
        ),
    )
}
_X = np.zeros((2, 6, 7, 3), np.float32)
WRONG = {
    "sequence_pool": [
        (dict(mode="median"), ValueError, "`mode` must be one or several of cls, last"),
        (dict(mode=()), ValueError, "`mode` must be one or several of"),
        (dict(mode=("mean", 2)), ValueError, "`mode` must be one or several of"),
        (dict(axis=4), ValueError, "`axis` must lie within the 4 axes"),
        (dict(axis=(1, 2)), ValueError, "`axis` must name one axis"),
        (dict(axis=1.5), TypeError, "`axis` must be made of ints"),
        (dict(lengths=1.0), TypeError, "`lengths` must be integers"),
        (dict(lengths=np.ones((3, 6), int)), ValueError, "`lengths` must broadcast"),
        (dict(lengths=np.ones((1, 2, 6), int)), ValueError, "`lengths` must broadcast"),
        (dict(lengths=1, where=np.True_), ValueError, "`lengths` must not be given"),
        (dict(where=np.ones((2, 6, 7))), TypeError, "`where` must be boolean"),
        (dict(where=np.ones((5, 7), bool)), ValueError, "`where` must broadcast"),
        (dict(num_prefix_tokens=7), ValueError, "must be less than the number of"),
        (dict(num_prefix_tokens=-1), ValueError, "`num_prefix_tokens` must be at"),
        (dict(num_prefix_tokens=1.0), TypeError, "`num_prefix_tokens` must be made"),
    ]
}
EXCEPT = {
    ("sequence_pool", "any_layout"): "one axis is pooled; see test_sequence.py",
    ("sequence_pool", "mask"): "a mask has one entry a token; see test_sequence.py",
}
