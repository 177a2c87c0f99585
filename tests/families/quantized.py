"""Cases and oracles of the quantized ops: exact integers, rounded one by one."""

from fractions import Fraction

import numpy as np

from jaxpool import QuantParams
from jaxpool._core.op import OPS

f32 = np.float32


def nearest(number, rounding):
    """An exact fraction rounded to an integer."""
    below = number.numerator // number.denominator
    rest = number - below
    if rest != Fraction(1, 2):
        return below + (rest > Fraction(1, 2))
    up = below % 2 == 1 if rounding == "even" else number > 0
    return below + up


def saturated(number, params):
    limits = np.iinfo(params.dtype)
    return min(max(number, limits.min), limits.max)


def average(
    e,
    i,
    pad,
    params=QuantParams(),  # noqa: B008 (immutable)
    output_params=None,
    preset="tflite",
    rounding=None,
    count_include_pad=None,
    divisor_override=None,
):
    out = output_params or params
    if not e.size:
        return out.zero_point
    if count_include_pad is None:
        count_include_pad = preset == "torch"
    n = divisor_override or e.size + pad * count_include_pad
    steps = [int(q) - params.zero_point for q in e]
    if preset == "tflite":
        exact = Fraction(sum(steps), n) + out.zero_point
    elif preset == "torch":
        exact = float(f32(sum(steps)) * (f32(1) / f32(n)) + f32(out.zero_point))
    else:
        total = f32(0)
        for step in steps:
            total = total + f32(step) * f32(params.scale)
        exact = float((total / f32(n)) / f32(out.scale) + f32(out.zero_point))
    rounding = rounding or {"tflite": "away"}.get(preset, "even")
    return saturated(nearest(Fraction(exact), rounding), out)


def whole_average(e, i, pad, preset="tflite", params=None, output_params=None):
    if preset == "tflite" or not e.size:
        return average(e, i, pad, params or QuantParams(), output_params)
    scale = f32(params.scale) / (f32(output_params.scale) * f32(e.size))
    steps = f32(sum(int(q) - params.zero_point for q in e)) * scale
    number = nearest(Fraction(float(steps)), "even") + output_params.zero_point
    return saturated(number, output_params)


def bin_average(e, i, pad):
    # PyTorch's inverses are exact enough for bins this small.
    return nearest(Fraction(int(e.sum()), e.size), "even")


def maximum(e, i, pad):
    return e.max() if e.size else -128


ORACLES = {
    "quantized_max_pool": maximum,
    "quantized_global_max_pool": maximum,
    "quantized_adaptive_max_pool": maximum,
    "quantized_avg_pool": average,
    "quantized_global_avg_pool": whole_average,
    "quantized_adaptive_avg_pool": bin_average,
}

_REQUANTIZED = {
    "preset": "onnx",
    "params": QuantParams(0.37, -7),
    "output_params": QuantParams(0.23, 11),
}
OWN = {
    "quantized_avg_pool": [
        dict(params=QuantParams(0.1, 5), count_include_pad=True),
        dict(params=QuantParams(0.1, -9), divisor_override=2, rounding="even"),
        dict(params=QuantParams(0.1, 5), preset="torch"),
        dict(params=QuantParams(0.1, 5), preset="onnx", rounding="away"),
        dict(_REQUANTIZED, count_include_pad=True),
    ],
    "quantized_global_avg_pool": [_REQUANTIZED],
}

_W = dict(window_shape=(2, 2))
_FLOATS = (TypeError, "`x` must be int8 or uint8 (`quantize` makes integers of floats)")
_CHOICES = [
    (dict(preset="keras"), ValueError, "`preset` must be one of tflite, onnx, torch"),
    (dict(rounding="up"), ValueError, "`rounding` must be one of even, away"),
    (dict(params=0.1), TypeError, "`params` must be a QuantParams; got 0.1"),
    (dict(output_params="int8"), TypeError, "`output_params` must be a QuantParams"),
    (
        dict(output_params=QuantParams(0.2), preset="torch"),
        ValueError,
        "`output_params` must equal `params`",
    ),
    ({}, *_FLOATS),
]
WRONG = {
    "quantized_max_pool": [(_W, *_FLOATS)],
    "quantized_global_max_pool": [({}, *_FLOATS)],
    "quantized_adaptive_max_pool": [(dict(output_shape=(2, 2)), *_FLOATS)],
    "quantized_avg_pool": [
        *(({**_W, **kwargs}, *rest) for kwargs, *rest in _CHOICES),
        (dict(_W, count_include_pad=1), TypeError, "must be True, False or None"),
        (dict(_W, divisor_override=0), ValueError, "`divisor_override` must be at"),
        (dict(_W, divisor_override=2**23), ValueError, "must be at most 4194304"),
    ],
    "quantized_global_avg_pool": _CHOICES,
    "quantized_adaptive_avg_pool": [
        (dict(output_shape=(2, 2), rounding=0), ValueError, "`rounding` must be one"),
        (dict(output_shape=(2, 2)), *_FLOATS),
    ],
}

_REASONS = {
    "integers have no derivative": [
        "gradient_of_every_case",
        "ties",
    ],
    "takes int8 and uint8 alone": [
        "half_precision",
        "integers",
        "nan_and_infinity",
    ],
}
EXCEPT = {
    (op, question): reason
    for op in OPS
    if OPS[op].integer
    for reason, questions in _REASONS.items()
    for question in questions
}
