"""Order statistics."""

import numpy as np


def median(e, i, pad, interpolation="lower"):
    if not e.size or np.isnan(e).any():
        return e.sum()
    n, e = e.size, np.sort(e)
    lower, upper = e[(n - 1) // 2], e[n // 2]
    return lower if interpolation == "lower" else (lower + upper) / 2


ORACLES = {"median_pool": median}
OWN = {"median_pool": [dict(interpolation="midpoint")]}
WRONG = {
    "median_pool": [
        (
            dict(window_shape=(2, 2), interpolation="upper"),
            ValueError,
            "must be 'lower'",
        ),
    ],
}
