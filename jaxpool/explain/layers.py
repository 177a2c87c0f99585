"""What there is to say about each layer, out of a trace."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxpool._core.geometry import Axis, Bins
from jaxpool.explain.calls import FLAX, Call
from jaxpool.explain.fields import Dep, Event
from jaxpool.explain.trace import Trace

__all__ = ["Layer", "Seen", "WindowAxis", "label", "layers_of", "seen_of"]


@dataclass(frozen=True)
class Seen:
    """What an element sees along one spatial axis of the input.

    Attributes:
      size: the receptive field's size, padding included: of the element with most.
      jump: the distance between the fields of neighbours, the product of the strides;
        None where there is no such number, as behind a global pool.
      start: where the first element's field starts; below 0 is padding.
      first, last: the input's elements that the one in the middle does see.
      exact: whether these are numbers and not upper bounds.
    """

    size: int
    jump: float | None
    start: int
    first: int
    last: int
    exact: bool


@dataclass(frozen=True)
class WindowAxis:
    """A layer's windows along one axis.

    Attributes:
      axis: the axis, negative.
      size, out: sizes of the input and the output.
      window: how many elements a window has; the most, where they differ.
      stride, dilation: of the windows; None where they differ.
      low, high: padding in front and behind, as computed.
      dropped: elements at the far edge that no window sees.
      skipped: elements between windows that none sees.
      padded: how many windows look at padding.
      empty: how many look at nothing else.
    """

    axis: int
    size: int
    out: int
    window: int
    stride: int | None
    dilation: int | None
    low: int
    high: int
    dropped: int
    skipped: int
    padded: int
    empty: int

    @classmethod
    def of(cls, a: Axis | Bins) -> "WindowAxis":
        """The description of an axis of a geometry."""
        if isinstance(a, Bins):
            sizes = (a.axis, a.size, a.out, a.window)
            return cls(*sizes, None, None, 0, 0, 0, 0, 0, 0)
        positions = np.arange(a.out)[:, None] * a.stride - a.low
        positions = positions + np.arange(a.window) * a.dilation
        positions = np.unique(positions[(positions >= 0) & (positions < a.size)])
        last = int(positions.max(initial=-1))
        counts = a.counts(False)
        return cls(
            axis=a.axis,
            size=a.size,
            out=a.out,
            window=a.window,
            stride=a.stride,
            dilation=a.dilation,
            low=a.low,
            high=max(a.high, 0),
            dropped=a.size - 1 - last,
            skipped=last + 1 - len(positions),
            padded=int((counts < a.window).sum()),
            empty=int((counts == 0).sum()),
        )


@dataclass(frozen=True)
class Layer:
    """A layer of a chain or a model.

    Attributes:
      number: its place among the layers, from 1.
      name: its text in the chain, or where it stands in the model and what it is.
      op: the op's name, of a pool; else the operation's, or the module's class.
      is_pool: whether it is a pooling function.
      input_shape, output_shape: of the first array that goes in and comes out.
      windows: for each pooled axis; empty where it has none, or they cannot be told.
      ceil_mode: whether sizes were asked to round up.
      upsampling: whether zeros stand between elements: a transposed convolution.
      seen: what it sees of each spatial axis of the input.
      follows: the layer whose result it takes as it is, by position.
      call: the call's number.
      changes: whether it changes the shape, or what is seen.
    """

    number: int
    name: str
    op: str
    is_pool: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    windows: tuple[WindowAxis, ...]
    ceil_mode: bool
    upsampling: bool
    seen: tuple[Seen, ...]
    follows: int | None
    call: int | None
    changes: bool

    @property
    def windows_padded(self) -> int:
        """How many windows look at padding, over all axes."""
        outs = [a.out for a in self.windows]
        inside = [a.out - a.padded for a in self.windows]
        return math.prod(outs) - math.prod(inside)


def seen_of(dep: Dep | None) -> tuple[Seen, ...]:
    """The description of what an array sees."""
    if dep is None:
        return ()
    seen = []
    for f in dep.fields:
        first, last = f.bounds
        middle = len(first) // 2
        jump = None if f.jump is None else float(f.jump)
        bounds = (int(first[middle]), int(last[middle]))
        bounds = bounds if bounds[0] <= bounds[1] else (0, -1)
        seen.append(Seen(f.size, jump, f.start, *bounds, not dep.rough))
    return tuple(seen)


def label(call: Call | None, what: str = "") -> str:
    """Where a layer stands, and what it is."""
    if call is None:
        return what
    name = what if what and what not in _PLAIN else call.name.removeprefix(FLAX)
    return f"{call.path} {name}".strip()


_PLAIN = ("conv_general_dilated",)
"""What a module is there for: its class says it."""


def layers_of(trace: Trace, texts: Sequence[str] = ()) -> list[Layer]:
    """Returns the layers of a trace, in order.

    Those are pooling functions; convolutions and windows elsewhere; modules in which
    there is nothing else to tell; and what mixes whole axes between them.

    Args:
      trace: what a program does.
      texts: names of the calls, of a chain.
    """
    calls, told = trace.calls, {e.call for e in trace.events if e.axes}
    layers: list[Layer] = []
    numbers: dict[int, int] = {}
    for event in trace.events:
        call = None if event.call is None else calls[event.call]
        leaf = call is not None and not call.children
        if event.what:
            wanted = not (call and call.function) and (event.axes or not leaf)
        else:
            wanted = call and leaf and (call.function or event.call not in told)
        if not wanted or 0 in event.after:
            continue
        if not event.what and event.call is not None:
            numbers[event.call] = len(layers)
        name = texts[event.call] if texts and event.call is not None else None
        name = name or label(call, event.what)
        layers.append(_layer(event, call, len(layers) + 1, name, numbers))
    return layers


def _layer(
    event: Event, call: Call | None, number: int, name: str, numbers: dict[int, int]
) -> Layer:
    axes: Sequence[Any] = event.axes
    ceil = False
    if call is not None and not event.what:
        ceil = bool(call.arguments.get("ceil_mode", False))
        if call.geometry and _fits(call):
            axes = call.geometry.axes
    before, after = seen_of(event.seen_before), seen_of(event.seen_after)
    is_pool = (
        call is not None and call.function and call.name not in ("conv", "flatten")
    )
    return Layer(
        number=number,
        name=name,
        op=call.name.removeprefix(FLAX) if call and not event.what else event.what,
        is_pool=is_pool,
        input_shape=event.before,
        output_shape=event.after,
        windows=tuple(map(WindowAxis.of, axes)),
        ceil_mode=ceil,
        upsampling=any(b > 1 for b in event.base),
        seen=after,
        follows=numbers.get(-1 if event.follows is None else event.follows),
        call=event.call if not event.what else None,
        changes=bool(axes) or event.before != event.after or before != after,
    )


def _fits(call: Call) -> bool:
    """Whether the windows that a call was given are those of its result."""
    if call.geometry is None or call.before is None or call.after is None:
        return False
    out = call.geometry.out_shape(call.before)
    pooled = [out[a.axis] for a in call.geometry.axes]
    return len(call.after) < len(out) or pooled == [
        call.after[a.axis] for a in call.geometry.axes
    ]
