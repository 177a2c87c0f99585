"""Dilation and erosion by a flat element, of one height; see test_morphology.py."""

import numpy as np
import oracle


def dilation(e, i, pad, element=0.0):
    return oracle.maximum(e, i, pad) + element


def erosion(e, i, pad, element=0.0):
    return oracle.minimum(e, i, pad) - element


ORACLES = {"dilate_pool": dilation, "erode_pool": erosion}
OWN = {name: [dict(element=0.25)] for name in ORACLES}
WIDE = dict.fromkeys(ORACLES, "mean")
_W = dict(window_shape=(2, 2))
_SHAPE = "`element` must have the window's shape (2, 2)"
_WRONG = [
    (dict(_W, element=np.zeros((2, 3))), ValueError, _SHAPE),
    (dict(_W, element=np.zeros((2, 2, 2))), ValueError, _SHAPE),
    (dict(_W, element=np.zeros((1, 2, 2, 3))), ValueError, _SHAPE),
    (dict(_W, element=1j), TypeError, "`element` must be real"),
    (dict(_W, element="flat"), TypeError, "`element` must be an array of numbers"),
    (
        dict(window_shape=(5, 6), window_dilation=1, padding=4, element=np.zeros(2)),
        ValueError,
        "`element` must have the window's shape (5, 6)",
    ),
]
WRONG = dict.fromkeys(ORACLES, _WRONG)
