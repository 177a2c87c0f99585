"""Dilation and erosion: values; which element wins is in test_morphology.py."""

import numpy as np
from families.blend import elements, kernel


def dilated(x, where=None, *, element, **window):
    values, inside = elements(x, where, **window)
    e = np.asarray(element, np.float64).reshape(values.shape[-1], -1).T
    return np.where(inside, values + e, -np.inf).max(-1)


def eroded(x, where=None, **given):
    return -dilated(-x, where, **given)


ORACLES = {"dilate_pool": dilated, "erode_pool": eroded}
WIDE = dict.fromkeys(ORACLES, "mean")
_WINDOWS = [
    ((6, 7), dict(window_shape=(3, 3), padding=((1, 1), (2, 0)), strides=(2, 2)), ()),
    ((9,), dict(window_shape=(4,), strides=(3,), padding=((2, 1),)), (1,)),
    ((7, 7), dict(window_shape=(3, 2), window_dilation=(2, 3), padding="SAME"), ()),
]
_CASES = [
    (sizes, dict(window, element=kernel(*window["window_shape"], *channels)))
    for sizes, window, channels in _WINDOWS
]
CASES = dict.fromkeys(ORACLES, _CASES)
_FLAT = dict(window_shape=(2, 2), element=np.zeros((2, 2), np.float32))
STATIC = {name: _FLAT for name in ORACLES}
_SHAPE = "`element` must have the shape (2, 2)"
_WRONG = [
    (dict(window_shape=(7, 2)), ValueError, "leaves nothing to pool"),
    (dict(padding=2), ValueError, "`padding` must be less than"),
    (dict(where=np.ones((6, 7, 3))), TypeError, "`where` must be boolean"),
    (dict(element=0.0), ValueError, _SHAPE),
    (dict(element=np.zeros((2, 3))), ValueError, _SHAPE),
    (dict(element=np.zeros((2, 2, 2))), ValueError, _SHAPE),
    (dict(element=np.zeros((1, 2, 2, 3))), ValueError, _SHAPE),
    (dict(element=np.zeros((2, 2)) * 1j), TypeError, "`element` must be real"),
    (dict(element="flat"), TypeError, "`element` must be an array of numbers"),
]
WRONG = dict.fromkeys(ORACLES, _WRONG)
