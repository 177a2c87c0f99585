"""Polyphase pools, restated one sample and one component at a time."""

import itertools
import math

import numpy as np

import jaxpool as jp


def components(x, strides):
    """Of one sample `[S..., C]`, in order."""
    return [
        x[tuple(slice(p, None, s) for p, s in zip(start, strides, strict=True))]
        for start in itertools.product(*map(range, strides))
    ]


def over_samples(f, x, n):
    """Calls `f(sample [S..., C], its place)` for every sample."""
    lead = x.shape[: -n - 1]
    out = [f(x[at], at) for at in np.ndindex(*lead)]
    if not out:
        out = [f(np.zeros(x.shape[-n - 1 :]), None)]
        return tuple(np.zeros((*lead, *np.shape(y))) for y in out[0])
    return tuple(
        np.stack(list(ys)).reshape(*lead, *np.shape(ys[0]))
        for ys in zip(*out, strict=True)
    )


def polyphase(x, strides, norm=2, index=None):
    def one(sample, at):
        parts = components(sample, strides)
        if index is not None:
            chosen = np.broadcast_to(index, x.shape[: -len(strides) - 1])[at]
        else:
            with np.errstate(invalid="ignore"):
                sizes = [
                    np.linalg.norm(p.ravel(), norm) if p.size else 0 for p in parts
                ]
            chosen = int(np.argmax(sizes))
        if not 0 <= chosen < len(parts):
            return 0 * parts[0], np.clip(chosen, -(2**31), 2**31 - 1)
        return parts[chosen], chosen

    return over_samples(one, x, len(strides))


def score(part, params):
    """Of one component `[S..., C]`."""
    kernel = np.float64(params["conv_kernel"])
    sizes = part.shape[:-1]
    total = np.zeros(kernel.shape[-1])
    for place in np.ndindex(*sizes):
        hidden = np.float64(params["conv_bias"])
        for tap in np.ndindex(*kernel.shape[:-2]):
            at = tuple(
                (i + t - 1) % n for i, t, n in zip(place, tap, sizes, strict=True)
            )
            hidden = hidden + part[at] @ kernel[tap]
        total += np.where(hidden <= 0, 0, hidden)
    return total / math.prod(sizes) @ np.float64(params["out_kernel"])


def learned(x, params, strides, deterministic=True, temperature=1.0):
    """Evaluation, to which the temperature is nothing."""

    def one(sample, at):
        parts = components(sample, strides)
        with np.errstate(invalid="ignore"):
            chosen = int(np.argmax([score(part, params) for part in parts]))
        return parts[chosen], np.eye(len(parts))[chosen]

    return over_samples(one, x, len(strides))


ORACLES = {"polyphase_pool": polyphase, "learned_polyphase_pool": learned}
_PAIR = dict(strides=(2, 2))
CASES = {
    "polyphase_pool": [
        ((6, 8), _PAIR),
        ((9,), dict(strides=(3,), norm=1)),
        ((6, 8), dict(strides=(3, 2), norm=math.inf)),
        ((4, 3, 2), dict(strides=(2, 1, 2))),
        ((4, 8), dict(**_PAIR, index=np.int32(2))),
    ],
    "learned_polyphase_pool": [
        ((6, 8), dict(**_PAIR, features=2)),
        ((6,), dict(strides=(3,), features=3, hidden_features=2)),
        ((2, 2, 2), dict(strides=(2, 1, 2), features=2, hidden_features=5)),
    ],
}
STATIC = {
    "polyphase_pool": _PAIR,
    "learned_polyphase_pool": {**_PAIR, "deterministic": True},
}
_ONES = {
    "conv_kernel": np.ones((3, 3, 3, 4), np.float32),
    "conv_bias": np.ones(4, np.float32),
    "out_kernel": np.ones(4, np.float32),
}
_STRIDES = [
    (dict(strides=2), ValueError, "`strides` must be a sequence"),
    (dict(strides=(0, 1)), ValueError, "`strides` must be at least 1"),
    (dict(strides=(2.0, 1)), TypeError, "`strides` must be made of ints"),
    (dict(strides=(2, 2)), ValueError, "must divide the size of axis -2, which is 7"),
    (dict(strides=2, axis=(0, 1, 2, 3)), ValueError, "leave an axis of ch"),
]
_GOOD = dict(strides=(2, 1))
WRONG = {
    "polyphase_pool": [
        *_STRIDES,
        (dict(_GOOD, norm=3), ValueError, "`norm` must be one of 1, 2 and infinity"),
        (dict(_GOOD, index=2), ValueError, "`index` must lie in [0, 2)"),
        (dict(_GOOD, index=np.zeros(3, int)), ValueError, "`index` must broadcast"),
        (dict(_GOOD, index=np.ones(3)), ValueError, "a weight for each of 2"),
        (dict(_GOOD, index=True), TypeError, "`index` must be int or floating"),
    ],
    "learned_polyphase_pool": [
        *(({"params": _ONES, **a}, error, text) for a, error, text in _STRIDES),
        (dict(_GOOD, params=[]), TypeError, "`params` must be a mapping"),
        (dict(_GOOD, params={}), ValueError, "`params` must have conv_bias, conv_k"),
        (
            dict(_GOOD, params={**_ONES, "conv_bias": np.ones(3, np.float32)}),
            ValueError,
            "`params['conv_bias']` must have the shape (4,)",
        ),
        (
            dict(_GOOD, params=_ONES, deterministic=False),
            ValueError,
            "pass `key=jax.random.key",
        ),
        (
            dict(_GOOD, params=_ONES, deterministic=False, temperature=0.0, key=0),
            ValueError,
            "`temperature` must be finite and greater than 0",
        ),
    ],
}
COUNTED = {
    "polyphase_pool": (
        "index",
        20,
        lambda index: (
            np.tile(np.arange(1, 21, dtype=np.float32)[:, None], (len(index), 1, 1)),
            dict(index=index, strides=(20,)),
        ),
    )
}
WIDE = {"learned_polyphase_pool": "mean"}
EXCEPT = {
    ("polyphase_pool", "any_layout"): "its index has samples alone, and no layout",
    ("learned_polyphase_pool", "no_channels"): "its arrays say how many there are",
}
GOLDEN = {
    "APS_l2_B": lambda a, b: jp.polyphase_pool(b[..., None], (2, 2))[0][..., 0],
}
