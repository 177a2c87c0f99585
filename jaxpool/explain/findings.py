"""Pools that remove nothing, or everything, and other layers to think about again."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxpool._core.geometry import Axis
from jaxpool._core.op import OPS
from jaxpool.explain.layers import Layer, WindowAxis
from jaxpool.explain.trace import Trace

__all__ = ["Finding", "findings"]


@dataclass(frozen=True)
class Finding:
    """Something about a layer that is seldom meant.

    Attributes:
      layer: its name.
      why: what is the matter.
      do: what to do about it.
    """

    layer: str
    why: str
    do: str


def findings(layers: Sequence[Layer], trace: Trace) -> list[Finding]:
    """Returns what is found about a program's layers, in their order."""
    found: list[Finding] = []
    runs: dict[int, tuple[Layer, ...]] = {}  # of pools that are one, by the last one
    for i, layer in enumerate(layers):
        about: list[Found] = []
        if layer.is_pool and layer.windows:
            about += _of_pool(layer, trace)
            runs[i] = (layer,)
            last = -1 if layer.follows is None else layer.follows
            if last in runs and _joined((*runs[last], layer), trace):
                runs[i] = (*runs.pop(last), layer)
        elif any(a.empty for a in layer.windows) and not layer.upsampling:
            about.append(_empty(layer))
        if _is_alone(layer) and not any(map(_is_alone, layers[:i])):
            about.append(_alone(layers[i:]))
        found += (Finding(f"{layer.number} {layer.name}", *f) for f in about)
    for run in runs.values():
        if len(run) > 1 and (one := _joined(run, trace)):
            names = ", ".join(f"{layer.number} {layer.name}" for layer in run)
            found.append(Finding(names, *one))
    return found


Found = tuple[str, str]


def _of_pool(layer: Layer, trace: Trace) -> Iterator[Found]:
    windows, op = layer.windows, OPS.get(layer.op)
    kind = op.kind if op else "window"
    size, out = _text(a.size for a in windows), _text(a.out for a in windows)
    if all(a.size == 1 for a in windows) and not _is_alone(layer):
        yield f"its input is {size} already: there is nothing to pool", "remove it"
    elif all((a.window, a.stride) == (1, 1) for a in windows):
        same = {
            "adaptive": f"its output, {out}, is as large as its input",
            "global": "its input has one element on each axis",
        }
        why = same.get(kind, "windows of 1 that move by 1")
        yield f"{why}: it pools nothing", "remove it, or give it a larger window"
    elif kind == "window" and all(a.out == 1 and a.window == a.size for a in windows):
        short = layer.op.removesuffix("_pool")
        do = "use a global pool, which does so at every input size"
        if f"global_{short}_pool" in OPS:
            do = f"use global_{short}_pool, which does so at every input size"
        yield f"its window is its whole input, {size}: one element is left", do
    if any(a.empty for a in windows):
        yield _empty(layer)
    if any(a.skipped for a in windows):
        a = max(windows, key=lambda a: a.skipped)
        why = f"{a.skipped} of {a.size} elements along axis {a.axis} are in no window"
        if a.stride and a.dilation == 1 and a.stride > a.window:
            why += f": stride {a.stride} is more than window {a.window}"
        yield why, "use a stride of at most the window's size, or less dilation"
    geometry = None if layer.call is None else trace.calls[layer.call].geometry
    if layer.ceil_mode and geometry:
        rooms = [a.size + a.low + a.counted_high for a in geometry.axes]
        spans = [(a.window - 1) * a.dilation + 1 for a in geometry.axes]
        triples = zip(geometry.axes, rooms, spans, strict=True)
        if all((room - span) // a.stride + 1 == a.out for a, room, span in triples):
            do = "leave it out, unless other input sizes need it"
            yield f"ceil_mode adds no window at this size ({size} to {out})", do


def _empty(layer: Layer) -> Found:
    outs = math.prod(a.out for a in layer.windows)
    full = math.prod(a.out - a.empty for a in layer.windows)
    why = f"{outs - full} of {outs} windows lie in padding alone"
    return why, "use less padding or dilation"


def _is_alone(layer: Layer) -> bool:
    """Whether its windows see one element, and padding otherwise."""
    return bool(layer.windows) and all(
        a.size == 1 and (a.window, a.low + a.high) > (1, 0) for a in layer.windows
    )


def _alone(layers: Sequence[Layer]) -> Found:
    those = [layer for layer in layers if _is_alone(layer)]
    taps = math.prod(a.window for a in those[0].windows)
    more = f", like those of {len(those) - 1} more after it" if len(those) > 1 else ""
    why = f"its input is a single element: {taps - 1} of {taps} places of its windows "
    why += f"are padding{more}"
    return why, "use a larger input, fewer strides before it, or windows of 1"


def _joined(run: Sequence[Layer], trace: Trace) -> Found | None:
    """Pools, each directly on the one before, that are one; None if they are not."""
    *others, last = run
    name, whole = last.op.removeprefix("global_"), last.op.startswith("global_")
    if any(layer.op != name for layer in others):
        return None
    if any(not _plain(layer, trace) for layer in run):
        return None
    joined = run[0].windows
    for layer in run[1:]:
        pairs = [*zip(joined, layer.windows, strict=False)]
        if len(joined) != len(layer.windows):
            return None
        if not all(_is_one(name, a, b, whole) for a, b in pairs):
            return None
        joined = tuple(_one(a, b) for a, b in pairs)
    many = f"{len(run)} in a row are one"
    if whole:
        return f"{many} {last.op}", f"use {last.op} alone"
    pads = [f"{a.low}" if a.low == a.high else f"{a.low}+{a.high}" for a in joined]
    padding = f", padding {_text(pads)}" if set(pads) != {"0"} else ""
    sizes = f"window {_text(a.window for a in joined)}"
    sizes += f", stride {_text(a.stride for a in joined)}{padding}"
    return f"{many} {name} of {sizes}", "use that one"


def _plain(layer: Layer, trace: Trace) -> bool:
    """Whether it is a pool of its elements alone, and more than one of them."""
    call = None if layer.call is None else trace.calls[layer.call]
    if layer.ceil_mode or call is None or call.arrays > 1:  # a mask
        return False
    if call.arguments.get("divisor_override") is not None:
        return False
    return any((a.window, a.stride) != (1, 1) for a in layer.windows)


def _one(a: WindowAxis, b: WindowAxis) -> WindowAxis:
    """Windows `b` of windows `a`, as windows of what those are of."""
    assert a.stride is not None
    assert b.stride is not None
    window, stride = a.window + (b.window - 1) * a.stride, a.stride * b.stride
    low = a.low + b.low * a.stride
    high = max((b.out - 1) * stride + window - a.size - low, 0)
    axis = Axis(a.axis, a.size, window, stride, 1, low, high, high, b.out)
    return WindowAxis.of(axis)


def _is_one(name: str, a: WindowAxis, b: WindowAxis, whole: bool) -> bool:
    """Whether windows `b` of windows `a` are windows, along one axis."""
    if a.stride is None or b.stride is None or not a.dilation == b.dilation == 1:
        return False
    if a.empty or b.empty or (a.dropped and (whole or b.padded)):
        return False  # what `a` drops would be seen
    if name in ("max_pool", "min_pool"):
        if a.stride > a.window:
            return False
    elif name in ("avg_pool", "sum_pool"):  # each element once
        once = b.out == 1 or b.window <= b.stride
        if a.window != a.stride or not once or any((a.low, a.high, b.low, b.high)):
            return False
    else:
        return False
    one = _one(a, b)
    out = (one.size + one.low + one.high - one.window) // (one.stride or 1) + 1
    return whole or out == b.out


def _text(numbers) -> str:
    return "x".join(map(str, numbers))
