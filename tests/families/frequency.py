"""Pools by frequency: sums over complex frequencies, one output at a time."""

import itertools
import math

import numpy as np

import jaxpool as jp


def signed(size, out):
    """The frequencies that an output holds, those at the edge with both signs."""
    most = min(size, out)
    for k in range(-(most // 2), most // 2 + 1):
        yield k, 0.5 if most % 2 == 0 and 2 * abs(k) == most else 1.0


def gain(k, size, stride, smoothness):
    span = smoothness + size / (2 * stride)
    return min(max((span - abs(k)) / smoothness, 0), 1)


def kernel(size, out, gain=lambda k: 1.0):
    """The weight of each input for each output."""
    matrix = np.zeros((out, size))
    for o in range(out):
        for i in range(size):
            terms = [
                w * gain(k) * np.exp(2j * np.pi * k * (o / out - i / size)) / size
                for k, w in signed(size, out)
            ]
            matrix[o, i] = sum(terms).real
    return np.where(np.abs(matrix) < 1e-13, 0, matrix)


def by_matrices(x, matrices):
    """`matrices[axis]` times `x`, one output of all axes at a time."""
    axes = sorted(a % x.ndim for a in matrices)
    ordered = [matrices[a - x.ndim] for a in axes]
    x = np.moveaxis(x, axes, range(len(axes)))
    y = np.zeros((*(len(m) for m in ordered), *x.shape[len(axes) :]))
    for o in np.ndindex(*y.shape[: len(axes)]):
        for i in np.ndindex(*x.shape[: len(axes)]):
            weights = (m[a, b] for m, a, b in zip(ordered, o, i, strict=True))
            y[o] += math.prod(weights) * x[i]
    return np.moveaxis(y, range(len(axes)), axes)


def spectral(x, output_shape, axis=None):
    axis = range(-1 - len(output_shape), -1) if axis is None else axis
    outs = [
        x.shape[a] if o is None else o for a, o in zip(axis, output_shape, strict=True)
    ]
    return by_matrices(
        x, {a: kernel(x.shape[a], o) for a, o in zip(axis, outs, strict=True)}
    )


def flc(x, axis):
    return spectral(x, [math.ceil(x.shape[a] / 2) for a in axis], axis)


def diffstride(x, strides, smoothness=4.0, output_shape=None):
    axis = range(-1 - len(strides), -1)
    matrices = {}
    for i, (a, s) in enumerate(zip(axis, strides, strict=True)):
        size = x.shape[a]
        out = size if output_shape is None else output_shape[i]
        matrices[a] = kernel(
            size, out, lambda k, n=size, s=s: gain(k, n, s, smoothness)
        )
    return by_matrices(x, matrices)


def signs(d):
    """For each band, in order, the sign of each place."""
    for b in itertools.product((0, 1), repeat=d):
        yield {
            p: (-1.0) ** np.dot(b, p) / 2 ** (d / 2)
            for p in itertools.product((0, 1), repeat=d)
        }


def places(ndim, axis, start):
    at = [slice(None)] * ndim
    for a, s in zip(sorted(a % ndim for a in axis), start, strict=True):
        at[a] = slice(s, None, 2)
    return tuple(at)


def haar(x, axis, bands="low"):
    parts = [
        sum(sign * x[places(x.ndim, axis, p)] for p, sign in band.items())
        for band in signs(len(axis))
    ]
    return parts[0] if bands == "low" else np.concatenate(parts, -1)


def haar_inverse(x, axis):
    parts = np.split(x, 2 ** len(axis), -1)
    shape = [2 * n if a - x.ndim in axis else n for a, n in enumerate(parts[0].shape)]
    y = np.zeros(shape)
    for part, band in zip(parts, signs(len(axis)), strict=True):
        for p, sign in band.items():
            y[places(x.ndim, axis, p)] += sign * part
    return y


ORACLES = {
    "spectral_pool": spectral,
    "flc_pool": flc,
    "diffstride_pool": diffstride,
    "haar_pool": haar,
    "haar_unpool": haar_inverse,
}
_PLANE, _LINE, _SPACE = {"axis": (-3, -2)}, {"axis": (-2,)}, {"axis": (-4, -3, -2)}
CASES = {
    "spectral_pool": [
        ((6, 7), dict(output_shape=(4, 3))),
        ((9,), dict(output_shape=(4,))),
        ((6, 7), dict(output_shape=(None, 10))),
        ((6, 7), dict(output_shape=(9, 1))),
        ((4, 3, 5), dict(output_shape=(2, 2, 5))),
    ],
    "flc_pool": [((6, 8), _PLANE), ((9,), _LINE), ((4, 3, 2), _SPACE)],
    "diffstride_pool": [
        ((6, 7), dict(strides=(1.75, 2.25), smoothness=2.5)),
        ((16,), dict(strides=(3.5,))),
        ((6, 8), dict(strides=(1.6, 1.25), smoothness=1.5, output_shape=(3, 4))),
        ((4, 3, 6), dict(strides=(1.25, 1.0, 2.5), smoothness=0.75)),
    ],
    "haar_pool": [
        ((6, 8), _PLANE),
        ((6, 8), {**_PLANE, "bands": "all"}),
        ((8,), {**_LINE, "bands": "all"}),
        ((4, 2, 6), {**_SPACE, "bands": "all"}),
        ((4, 2, 6), _SPACE),
    ],
    "haar_unpool": [
        ((6, 7), _PLANE, None, 4),
        ((3,), _LINE, None, 2),
        ((2, 1, 3), _SPACE, None, 8),
    ],
}
STATIC = {
    "diffstride_pool": {"strides": (2.0, 1.5)},
    "flc_pool": _PLANE,
    "haar_pool": _PLANE,
    "haar_unpool": _PLANE,
}
_AXIS = [
    (dict(axis=9), ValueError, "`axis` must lie within"),
    (dict(axis=(1, -3)), ValueError, "`axis` must name each axis once"),
    (dict(axis=1.0), TypeError, "`axis` must be made of ints"),
]
WRONG = {
    "spectral_pool": [
        (dict(output_shape=2), ValueError, "`output_shape` must be a sequence"),
        (dict(output_shape=(0, 2)), ValueError, "`output_shape` must be at least 1"),
        (dict(output_shape=(2.0, 2)), TypeError, "must be made of ints"),
        (dict(output_shape=(1,) * 4), ValueError, "`output_shape` must have between"),
        (dict(output_shape=(2, 2), axis=1), ValueError, "must have 1 entries"),
    ],
    "flc_pool": _AXIS,
    "diffstride_pool": [
        (dict(strides=2.0), ValueError, "`strides` must be a sequence"),
        (dict(strides=(0.9, 2.0)), ValueError, "must be finite and at least 1"),
        (dict(strides=(2.0, np.inf)), ValueError, "must be finite and at least 1"),
        (dict(strides=((2.0,),)), ValueError, "must be real, a scalar or a vector"),
        (dict(strides="2"), TypeError, "`strides` must be an array of numbers"),
        (dict(strides=(2.0,) * 4), ValueError, "`strides` must have between 1 and"),
        (dict(strides=()), ValueError, "`strides` must have between 1 and"),
        (dict(strides=(2.0, 2.0), axis=1), ValueError, "`strides` must have 1 ent"),
        (dict(smoothness=0.0), ValueError, "`smoothness` must be a finite number"),
        (dict(output_shape=(2,)), ValueError, "`output_shape` must have 2 entries"),
    ],
    "haar_pool": [
        *_AXIS,
        ({}, ValueError, "`x` must have even sizes along the axes (-3, -2)"),
        (dict(bands="LL"), ValueError, "`bands` must be one of low, all; got 'LL'"),
        (dict(axis=(0, 1, 2, 3)), ValueError, "even sizes"),
    ],
    "haar_unpool": [
        *_AXIS,
        ({}, ValueError, "`x` must have a multiple of 4 channels"),
        (dict(axis=(0, 1, 2, 3)), ValueError, "must leave an axis of channels"),
    ],
}
WIDE = dict.fromkeys(ORACLES, "mean")


def _six():
    return np.arange(36, dtype=np.float32).reshape(6, 6, 1)


GOLDEN = {
    "haar_LL_B": lambda a, b: jp.haar_pool(b[..., None], axis=(0, 1))[..., 0],
    "spectral_forward_6to3_real": lambda a, b: jp.spectral_pool(_six(), (3, 3))[..., 0],
    "spectral_forward_6to4_real": lambda a, b: jp.spectral_pool(_six(), (4, 4))[..., 0],
    "spectral_sym_6to4": lambda a, b: jp.spectral_pool(_six(), (4, 4))[..., 0],
}
