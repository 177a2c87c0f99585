"""Power means whose order and centre are learned."""

import math

import numpy as np

import jaxpool


def learned_norm(e, i, pad, rho=1.8546, center=0.0):
    p = 1 + math.log1p(math.exp(rho))
    return (np.abs(e - center) ** p).mean() ** (1 / p) if e.size else 0.0


def _norm(p):
    def of(a, b):
        rho = math.log(math.expm1(p - 1)) if p > 1 else -40.0
        y = jaxpool.learned_norm_pool(a[..., None], (2, 2), (2, 2), rho=rho)
        return np.asarray(y)[..., 0]

    return of


def _gem(which):
    return lambda *ab: np.asarray(jaxpool.global_gem_pool(ab[which][None, ..., None]))[
        0, 0
    ]


ORACLES = {"learned_norm_pool": learned_norm}
OWN = {"learned_norm_pool": [dict(rho=0.5, center=0.3)]}
WRONG = {
    "learned_norm_pool": [
        (
            dict(window_shape=(2, 2), rho=np.ones((1,) * 5)),
            ValueError,
            "`rho` must broadcast",
        ),
    ],
}
GOLDEN = {
    **{f"Lp_mean_p{p}_A": _norm(p) for p in (1, 2, 3)},
    "GeM_p3_eps1e-6_A_global": _gem(0),
    "GeM_p3_eps1e-6_B_global": _gem(1),
}
