"""What a window means for one input: sizes, pads and counts, in plain ints.

A geometry knows the pooled axes alone, as negative axes. Batch and channel axes may
be anything, symbolic too, and adding one in front (`vmap`) changes nothing here.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.core import max_dim

from jaxpool._core.window import Window, fail

__all__ = [
    "Axis",
    "Bins",
    "Geometry",
    "adaptive_axis",
    "adaptive_bounds",
    "static_size",
]


@dataclass(frozen=True)
class Axis:
    """One pooled axis of one input.

    Window `o` covers positions `o * stride - low + k * dilation`, `0 <= k < window`,
    of which those in `[0, size)` are elements of the input. `high` is what the input
    must be padded with behind so that every window lies inside; `counted_high` is how
    much of that the user asked for. They differ by the overhang of `ceil_mode`, which
    PyTorch's mean does not count.
    """

    axis: int
    size: int
    window: int
    stride: int
    dilation: int
    low: int
    high: int
    counted_high: int
    out: int

    @property
    def symbolic(self) -> bool:
        """Whether one of its numbers is not known yet."""
        window = (self.window, self.stride, self.dilation)
        numbers = (self.size, *window, self.low, self.high, self.out)
        return not all(isinstance(n, int) for n in numbers)

    @property
    def clipped(self) -> "Axis":
        """The same without places that lie in padding for every window."""
        if self.symbolic:
            return self
        reach = (self.out - 1) * self.stride  # from the first window to the last
        first = max((self.low - reach) // self.dilation, 0)
        last = min((self.size - 1 + self.low) // self.dilation, self.window - 1)
        window, low = last - first + 1, self.low - first * self.dilation
        if not 0 < window < self.window:
            return self
        high = max(reach + (window - 1) * self.dilation + 1 - self.size - low, 0)
        return replace(self, window=window, low=low, high=high)

    def counts(self, include_pad: bool) -> np.ndarray:
        """Number of elements `[out]` in every window, padding counted or not."""
        begin, end = (-self.low, self.size + self.counted_high)
        if not include_pad:
            begin, end = 0, self.size
        starts = np.arange(self.out) * self.stride - self.low
        first = np.maximum(-((starts - begin) // self.dilation), 0)
        last = np.minimum((end - 1 - starts) // self.dilation, self.window - 1)
        return np.maximum(last - first + 1, 0)


@dataclass(frozen=True)
class Bins:
    """One pooled axis whose windows are any runs of elements, in order.

    Window `o` covers positions `start[o] <= i < end[o]`, at least one; `start` and
    `end` never decrease, and every element lies in a window.
    """

    axis: int
    size: int
    start: tuple[int, ...]
    end: tuple[int, ...]
    symbolic = False

    @property
    def out(self) -> int:
        """Number of windows."""
        return len(self.start)

    @property
    def window(self) -> int:
        """Number of elements of the largest window."""
        return max(self.counts(False).tolist())

    def counts(self, include_pad: bool) -> np.ndarray:
        """Number of elements `[out]` in every window; there is no padding."""
        del include_pad
        return np.subtract(self.end, self.start)


@dataclass(frozen=True)
class Geometry:
    """A window laid over an input; `axes` are sorted, so row-major is their order."""

    axes: tuple[Any, ...]  # of Axis and Bins

    @classmethod
    def of(cls, window: Window, shape: Sequence[Any]) -> "Geometry":
        """Lays `window` over an input of `shape`, of which only pooled axes count."""
        axes = window.resolve(len(shape))
        return _lay(window, axes, tuple(shape[a] for a in axes))

    @property
    def whole(self) -> bool:
        """Whether one window covers each pooled axis exactly."""
        return not self.binned and all(
            (a.window, a.out, a.low) == (a.size, 1, 0) and 1 in (a.dilation, a.window)
            for a in self.axes
        )

    @property
    def binned(self) -> bool:
        """Whether the windows of some axis differ in more than their place."""
        return any(isinstance(a, Bins) for a in self.axes)

    @property
    def clipped(self) -> "Geometry":
        """The same without places that lie in padding for every window."""
        return Geometry(
            tuple(a.clipped if isinstance(a, Axis) else a for a in self.axes)
        )

    @property
    def symbolic(self) -> bool:
        """Whether a number of a pooled axis, mostly its size, is not known yet."""
        return any(a.symbolic for a in self.axes)

    @property
    def pooled(self) -> tuple[int, ...]:
        """The pooled axes, negative and ascending."""
        return tuple(a.axis for a in self.axes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Input sizes of the pooled axes."""
        return tuple(a.size for a in self.axes)

    @property
    def taps(self) -> int:
        """Number of elements in one window."""
        return math.prod(a.window for a in self.axes)

    def out_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The output's shape for an input of `shape`."""
        out = list(shape)
        for a in self.axes:
            out[a.axis] = a.out
        return tuple(out)

    def full(self, ndim: int, field: str, other: Any) -> tuple[Any, ...]:
        """One entry an axis: `field` of the pooled axes, `other` for the rest."""
        entries = [other] * ndim
        for a in self.axes:
            entries[a.axis] = getattr(a, field)
        return tuple(entries)

    def pads(self, ndim: int) -> tuple[tuple[int, int], ...]:
        """(low, high) padding for each of `ndim` axes."""
        lows, highs = (self.full(ndim, f, 0) for f in ("low", "high"))
        return tuple(zip(lows, highs, strict=True))

    def counts(self, ndim: int, include_pad: bool) -> np.ndarray:
        """Elements of every window, with 1 for each axis that is not pooled."""
        counts = np.ones((1,) * ndim, np.int64)
        for a in self.axes:
            shape = [1] * ndim
            shape[a.axis] = a.out
            counts = counts * a.counts(include_pad).reshape(shape)
        return counts


def static_size(caller: str, size: Any, argument: str = "x") -> int:
    """Returns the size of a pooled axis, for a rule that needs a known int."""
    if not isinstance(size, int):
        rule = "must have pooled axes of known size (only others may be symbolic)"
        raise fail(caller, argument, rule, size)
    return _countable(caller, size, argument)


def _countable(caller: str, size: Any, argument: str = "x") -> Any:
    """Returns the size of a pooled axis, if an int32 can count its places."""
    if isinstance(size, int) and size >= 2**31:
        rule = "must have fewer than 2**31 elements along a pooled axis"
        raise fail(caller, argument, rule, size)
    return size


@functools.lru_cache(4096)
def _lay(window: Window, axes: tuple[int, ...], sizes: tuple[int, ...]) -> Geometry:
    laid, caller = [], window.caller
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        _countable(caller, size)
        k = size if window.shape is None else window.shape[i]
        s = 1 if window.shape is None else window.strides[i]
        d, padding = window.dilation[i], window.padding
        span = (k - 1) * d + 1
        if padding in ("SAME", "SAME_LOWER"):
            out = -(-size // s)
            total = max_dim((out - 1) * s + span - size, 0)
            low = total // 2 if padding == "SAME" else total - total // 2
            high = total - low
        else:
            low, high = (0, 0) if isinstance(padding, str) else padding[i]
            room = size + low + high - span
            out = room // s + 1
            # PyTorch's rule: what is left at the end gets a window of its own if that
            # starts before the end of the input. Of 5 elements by 2: 01 23, and 4.
            if window.ceil_mode:
                started = (static_size(caller, size) + low - 1) // s + 1
                out = max(out, min(-(-room // s) + 1, started))
        if isinstance(size, int) and size < 1:
            rule = "must have elements along the pooled axes"
            raise fail(caller, "x", rule, f"size {size} on axis {axis}")
        if isinstance(out, int) and out < 1:
            rule = (
                f"leaves nothing to pool: a window of {span} with padding "
                f"{(low, high)} on axis {axis} of size {size}"
            )
            shape = window.shape
            raise fail(caller, "window_shape", rule, shape)
        if isinstance(out, int) and out == 1:  # nothing is a stride away
            s = min(s, size + low + high) if isinstance(size, int) else 1
        counted = high
        if window.ceil_mode:
            high = max(high, (out - 1) * s + span - size - low)
        laid.append(Axis(axis, size, k, s, d, low, high, counted, out))
    return Geometry(tuple(sorted(laid, key=lambda a: a.axis)))


def adaptive_bounds(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and end `[out]` of the bins that split `size` positions into `out`.

    Bin `o` is `[floor(o * size / out), ceil((o + 1) * size / out))`: PyTorch's rule,
    in integers. Bins overlap where `out` does not divide `size`, and repeat elements
    where it is larger.
    """
    o = np.arange(out)
    return o * size // out, -(-(o + 1) * size // out)


@functools.lru_cache(4096)
def adaptive_axis(axis: int, size: int, out: int) -> Axis | Bins:
    """The bins of `adaptive_bounds`: windows, if they are evenly spaced and equal."""
    start, end = adaptive_bounds(size, out)
    windows, strides = set((end - start).tolist()), set(np.diff(start).tolist())
    if len(windows) > 1 or len(strides) > 1 or 0 in strides:
        return Bins(axis, size, tuple(start.tolist()), tuple(end.tolist()))
    window = windows.pop()
    stride = strides.pop() if strides else window
    return Axis(axis, size, window, stride, 1, 0, 0, 0, out)
