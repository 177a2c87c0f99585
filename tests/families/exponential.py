"""Log-sum-exp over windows."""

import math

import oracle

ORACLES = {"lse_pool": oracle.log_sum_exp}
OWN = {"lse_pool": [dict(r=10.0)]}
WRONG = {
    "lse_pool": [
        (
            dict(window_shape=(2, 2), r=0.0),
            ValueError,
            "`r` must be finite and greater",
        ),
        (dict(window_shape=(2, 2), r=math.inf), ValueError, "`r` must be finite"),
        (dict(window_shape=(2, 2), r=[[[1.0]] * 7] * 6), ValueError, "same along"),
    ],
}
