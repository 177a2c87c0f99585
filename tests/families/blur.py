"""Blurs: sums over a padded array, one output at a time."""

import itertools
import math

import numpy as np
import oracle


def conventional(m, s, convention):
    return (
        ((m - 1) // 2, m // 2)
        if convention == "antialiased"
        else ((m + s - 2) // 2,) * 2
    )


def blur(x, strides, filter_size=3, convention="antialiased", mode="reflect"):
    n = len(strides)
    filters = (filter_size,) * n if isinstance(filter_size, int) else filter_size
    pairs = [
        conventional(m, s, convention) for m, s in zip(filters, strides, strict=True)
    ]
    lead = x.ndim - n - 1
    x = np.pad(x, [(0, 0)] * lead + pairs + [(0, 0)], mode)  # pyright: ignore
    sizes = x.shape[lead:-1]
    out = [
        (size - m) // s + 1 for size, m, s in zip(sizes, filters, strides, strict=True)
    ]
    y = np.zeros((*x.shape[:lead], *out, x.shape[-1]))
    for o in np.ndindex(*out):
        for k in np.ndindex(*filters):
            weight = math.prod(
                math.comb(m - 1, j) / 2 ** (m - 1)
                for m, j in zip(filters, k, strict=True)
            )
            place = tuple(a * s + b for a, s, b in zip(o, strides, k, strict=True))
            y[(..., *o, slice(None))] += weight * x[(..., *place, slice(None))]
    return y


def max_blur(x, window_shape, strides, padding="VALID", **blurred):
    n = len(window_shape)
    axes = tuple(range(-1 - n, -1))
    pairs = [padding] * n if isinstance(padding, str) else padding
    lines = [
        oracle.line(x.shape[a], k, 1, p)
        for a, k, p in zip(axes, window_shape, pairs, strict=True)
    ]
    return blur(oracle.over_windows(oracle.maximum, x, lines, axes), strides, **blurred)


def edge_aware(
    x, filter_size, edge_threshold=1.25, edge_dilation_kernel_size=3, eps=1e-6
):
    n, reach = len(filter_size), edge_dilation_kernel_size // 2
    y = blur(x, (1,) * n, filter_size)
    sizes, lead = x.shape[-1 - n : -1], x.shape[: -1 - n]
    with np.errstate(invalid="ignore", divide="ignore"):
        bright = np.log2(np.where(x + eps > 0, x + eps, np.nan))

        def contrast(at, axis):
            ends = []
            for step in (2, -2):
                i = at[axis] + step
                i = abs(i)  # reflected
                i = min(i, 2 * (sizes[axis] - 1) - i)
                ends.append(bright[(..., *at[:axis], i, *at[axis + 1 :], slice(None))])
            return np.abs(np.mean(ends[0] - ends[1], -1)) > math.log2(edge_threshold)

        edge = np.zeros((*lead, *sizes), bool)
        for at in np.ndindex(*sizes):
            for axis in range(n):
                edge[(..., *at)] |= contrast(at, axis)
    for at in np.ndindex(*sizes):
        near = [
            range(max(i - reach, 0), min(i + reach + 1, s))
            for i, s in zip(at, sizes, strict=True)
        ]
        kept = np.any([edge[(..., *p)] for p in itertools.product(*near)], 0)
        here = (..., *at, slice(None))
        y[here] = np.where(kept[..., None], x[here], y[here])
    return y


ORACLES = {
    "blur_pool": blur,
    "max_blur_pool": max_blur,
    "edge_aware_blur_pool": edge_aware,
}
CASES = {
    "blur_pool": [
        ((6, 7), dict(strides=(2, 2))),
        ((9,), dict(strides=(3,), filter_size=4)),
        ((9,), dict(strides=(2,), filter_size=1)),
        ((6, 7), dict(strides=(3, 2), filter_size=(4, 5), convention="timm")),
        ((6, 7), dict(strides=(2, 1), filter_size=(2, 7), mode="wrap")),
        ((6, 7), dict(strides=(2, 3), filter_size=9, mode="constant")),
        ((4, 3, 5), dict(strides=(2, 1, 2), filter_size=4, mode="edge")),
    ],
    "max_blur_pool": [
        ((6, 7), dict(window_shape=(2, 2), strides=(2, 2))),
        ((6, 7), dict(window_shape=(3, 2), strides=(2, 3), padding="SAME")),
        (
            (9,),
            dict(
                window_shape=(3,),
                strides=(2,),
                padding=((1, 1),),
                filter_size=4,
                convention="timm",
            ),
        ),
        ((4, 3, 5), dict(window_shape=(2, 1, 2), strides=(2, 1, 1), mode="constant")),
    ],
    "edge_aware_blur_pool": [
        ((6, 7), dict(filter_size=(3, 4), edge_dilation_kernel_size=1)),
        ((12,), dict(filter_size=(5,), edge_threshold=2.0)),
        ((4, 3, 5), dict(filter_size=(3, 2, 3), eps=0.5)),
    ],
}
STATIC = {
    "blur_pool": {"strides": (2, 2)},
    "max_blur_pool": {"window_shape": (2, 2), "strides": (2, 2)},
    "edge_aware_blur_pool": {"filter_size": (3, 3)},
}
_BLUR = [
    (dict(strides=(0, 2)), ValueError, "`strides` must be at least 1; got 0"),
    (dict(strides=(1.5, 2)), TypeError, "`strides` must be made of ints"),
    (dict(filter_size=0), ValueError, "`filter_size` must be at least 1"),
    (dict(filter_size=(3, 3, 3)), ValueError, "`filter_size` must have 2 entries"),
    (dict(filter_size=13), ValueError, "`x` must have at least 7 elements"),
    (dict(filter_size=16, mode="wrap"), ValueError, "`x` must have at least 8"),
    (dict(convention="scipy"), ValueError, "`convention` must be one of antialiased"),
    (dict(mode="reflection"), ValueError, "`mode` must be one of reflect"),
]
WRONG = {
    "blur_pool": [
        *_BLUR,
        (dict(strides=2), ValueError, "`strides` must be a sequence"),
        (dict(strides=(2,) * 4), ValueError, "`strides` must have between 1 and 3"),
        (dict(strides=(2, 2), axis=(1, 1)), ValueError, "must name each axis once"),
    ],
    "max_blur_pool": [
        *_BLUR,
        (dict(window_shape=2), ValueError, "`window_shape` must be a sequence"),
        (dict(padding="FULL"), ValueError, "`padding` must be one of VALID"),
        (dict(strides=(2, 2, 2)), ValueError, "`strides` must have 2 entries"),
    ],
    "edge_aware_blur_pool": [
        (dict(filter_size=3), ValueError, "`filter_size` must be a sequence"),
        (dict(filter_size=(0, 3)), ValueError, "`filter_size` must be at least 1"),
        (dict(edge_threshold=1.0), ValueError, "`edge_threshold` must be greater"),
        (dict(edge_threshold=(2, 2)), TypeError, "`edge_threshold` must be greater"),
        (dict(edge_dilation_kernel_size=2), ValueError, "must be odd; got 2"),
    ],
}
WIDE = dict.fromkeys(ORACLES, "mean")
