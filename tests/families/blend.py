"""Blends whose weights are computed from the window, by the place of its elements."""

import math

import numpy as np
import oracle


def elements(
    x,
    where,
    window_shape,
    strides=None,
    padding="VALID",
    window_dilation=None,
    ceil_mode=False,
):
    """Elements `[..., C, taps]` of each window, and whether they are there."""
    n = len(window_shape)
    ones, lead = (1,) * n, x.ndim - 1 - n
    pairs = [padding] * n if isinstance(padding, str) else padding
    inside = np.broadcast_to(True if where is None else where, x.shape)
    for axis, k, s, p, d in zip(
        range(lead, lead + n),
        window_shape,
        strides or ones,
        pairs,
        window_dilation or ones,
        strict=True,
    ):
        size = x.shape[axis]
        out = len(oracle.line(size, k, s, p, d, ceil_mode))
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        lows = {"VALID": 0, "SAME": total // 2, "SAME_LOWER": total - total // 2}
        at = np.arange(out)[:, None] * s + np.arange(k) * d
        at -= lows[p] if isinstance(p, str) else p[0]
        there = (at >= 0) & (at < size)
        x, inside = (np.take(a, at.clip(0, size - 1), axis) for a in (x, inside))
        there = there.reshape(*there.shape, *[1] * (x.ndim - axis - 2))
        x, inside = (np.moveaxis(a, axis + 1, -1) for a in (x, inside & there))
    x, inside = (a.reshape(*a.shape[:-n], -1) for a in (x, inside))
    return np.where(inside, x, 0), inside


def summed(values, kernel, taps):
    """The sum of a window's elements, each times the weight of its place."""
    kernel = np.asarray(kernel, np.float64).reshape(taps, -1)
    return (values * kernel.T).sum(-1)


def sigmoid(z):
    return (1 + np.tanh(z / 2)) / 2


def gated(x, where=None, *, gate, **window):
    values, inside = elements(x, where, **window)
    count, taps = inside.sum(-1), values.shape[-1]
    highest = np.where(inside, values, -np.inf).max(-1)
    highest = np.where(count > 0, highest, 0)
    share = sigmoid(summed(values, gate, taps))
    return share * highest + (1 - share) * values.sum(-1) / np.maximum(count, 1)


def tree(x, where=None, *, leaves, gates, **window):
    values, _ = elements(x, where, **window)

    def node(k):
        if k >= len(gates):
            return summed(values, leaves[k - len(gates)], values.shape[-1])
        share = sigmoid(summed(values, gates[k], values.shape[-1]))
        return share * node(2 * k + 1) + (1 - share) * node(2 * k + 2)

    return node(0)


ORACLES = {"gated_pool": gated, "tree_pool": tree}


def kernel(*shape):
    """Weights that are exact in any dtype."""
    return np.random.default_rng(len(shape)).integers(-8, 9, shape) / np.float32(16)


_WINDOWS = [
    ((6, 7), dict(window_shape=(3, 3), padding=((1, 1), (2, 0)), strides=(2, 2))),
    ((9,), dict(window_shape=(4,), strides=(3,), padding=((2, 1),), ceil_mode=True)),
    ((7, 7), dict(window_shape=(3, 2), window_dilation=(2, 3), padding="SAME")),
]
CASES = {
    "gated_pool": [
        (sizes, dict(window, gate=kernel(*window["window_shape"], *channels)))
        for (sizes, window), channels in zip(_WINDOWS, ((), (1,), ()), strict=True)
    ],
    "tree_pool": [
        (
            sizes,
            dict(
                window,
                leaves=kernel(2**depth, *window["window_shape"], *channels),
                gates=kernel(2**depth - 1, *window["window_shape"]),
            ),
        )
        for (sizes, window), channels, depth in zip(
            _WINDOWS, ((), (1,), ()), (2, 1, 0), strict=True
        )
    ],
}
_GATE = np.zeros((2, 2), np.float32)
STATIC = {
    "gated_pool": dict(window_shape=(2, 2), gate=_GATE),
    "tree_pool": dict(
        window_shape=(2, 2), leaves=_GATE[None] + 0.25, gates=np.zeros((0, 2, 2))
    ),
}
_SHAPE = "must have the shape"
_WINDOW = [
    (dict(window_shape=(7, 2)), ValueError, "leaves nothing to pool"),
    (dict(padding=2), ValueError, "`padding` must be less than"),
    (dict(where=np.ones((6, 7, 3))), TypeError, "`where` must be boolean"),
]
WRONG = {
    "gated_pool": [
        *_WINDOW,
        (dict(gate=np.zeros((2, 3))), ValueError, f"`gate` {_SHAPE} (2, 2)"),
        (dict(gate=np.zeros((2, 2, 2))), ValueError, f"`gate` {_SHAPE} (2, 2)"),
        (dict(gate=np.zeros((2, 2, 3, 1))), ValueError, f"`gate` {_SHAPE} (2, 2)"),
        (dict(gate=_GATE * 1j), TypeError, "`gate` must be real"),
    ],
    "tree_pool": [
        *_WINDOW,
        (dict(leaves=np.zeros(())), ValueError, "`leaves` must have a power of two"),
        (dict(leaves=np.zeros((3, 2, 2))), ValueError, "must have a power of two"),
        (dict(leaves=np.zeros((1, 2, 3))), ValueError, f"`leaves` {_SHAPE} (1, 2, 2)"),
        (dict(gates=np.zeros((1, 2, 2))), ValueError, f"`gates` {_SHAPE} (0, 2, 2)"),
    ],
}


def golden(op, **arguments):
    """The op over 2 x 2 windows of the array A or B."""

    def of(x):
        import jaxpool

        window = dict(window_shape=(2, 2), strides=(2, 2))
        return getattr(jaxpool, op)(x[..., None], **window, **arguments)[..., 0]

    return of


_W = np.array([[0.1, -0.2], [0.3, -0.1]], np.float32)  # gated_B_w
_V = np.array([[[0.25, 0.25], [0.25, 0.25]], [[0.5, 0], [0, 0.5]]], np.float32)
GOLDEN = {
    "mixed_a.25_A": lambda a, b: golden("mixed_pool", alpha=0.25)(a),
    "gated_maxavg_B": lambda a, b: golden("gated_pool", gate=_W)(b),
    "tree2_B": lambda a, b: golden("tree_pool", leaves=_V, gates=_W[None])(b),
}
