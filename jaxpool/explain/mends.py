"""What would mend a program that breaks for an input: nothing that was not tried."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxpool._core.user_code import where
from jaxpool._core.window import Window
from jaxpool.explain.calls import Call, EmptyResult, Recorder
from jaxpool.explain.layers import label, layers_of
from jaxpool.explain.programs import Program
from jaxpool.explain.trace import Trace, trace

__all__ = ["Break", "Tries", "break_of"]

_MOST = 16  # times the input's size: no larger input is tried
_MOST_ALIKE = 64  # sizes that give as many features as one another


@dataclass(frozen=True)
class Break:
    """Where a program breaks, and why.

    Attributes:
      layer: the layer's name.
      input_shape: of the array that it got.
      why: what it raised.
      after: the layer that ran last before it; None for the first.
      mends: what makes the whole program run, each tried.
      partial: what makes this layer run, but not all that follow.
    """

    layer: str
    input_shape: tuple[int, ...] | None
    why: str
    after: str | None
    mends: tuple[str, ...]
    partial: tuple[str, ...]


@dataclass
class Tries:
    """How to try a program with other inputs.

    Attributes:
      build: the program for an input.
      x: the input for which it breaks.
      axes: its spatial axes.
      texts: names of the calls, of a chain.
    """

    build: Callable[[jax.ShapeDtypeStruct], Program]
    x: jax.ShapeDtypeStruct
    axes: Sequence[int]
    texts: Sequence[str] = ()

    def sized(self, size: int, grow: bool = True) -> jax.ShapeDtypeStruct:
        """The input with spatial axes of at least a size, or of exactly that one."""
        shape = list(self.x.shape)
        for a in self.axes:
            shape[a] = max(shape[a], size) if grow else size
        return jax.ShapeDtypeStruct(shape, self.x.dtype)

    def run(self, x: jax.ShapeDtypeStruct) -> Recorder:
        """Runs the program on shapes; `failed` of the record says where it broke."""
        recorder = Recorder(marks=False)
        program = self.build(x)
        given = (program.weights, program.rest, x)
        try:
            result = jax.eval_shape(functools.partial(program.run, recorder), *given)
        except Exception:
            recorder.failed = -1 if recorder.failed is None else recorder.failed
        else:
            empty = any(0 in leaf.shape for leaf in jax.tree.leaves(result)[:1])
            recorder.failed = -1 if empty else None
        return recorder

    def works(self, x: jax.ShapeDtypeStruct) -> bool:
        """Whether the program runs for an input."""
        return self.run(x).failed is None


def break_of(broken: Trace, tries: Tries) -> Break:
    """Returns where a program broke, and what mends it."""
    call = None if broken.failed is None else broken.calls[broken.failed]
    name = "the model itself" if call is None else label(call)
    if tries.texts and broken.failed is not None:
        name = tries.texts[broken.failed]
    mends, partial = [], []
    if call is not None and call.function and (failed := broken.failed) is not None:
        program = tries.build(tries.x)
        for text, edit in _edits(call):
            again = trace(program, tries.x, tries.axes, {failed: edit})
            if again.error is None:
                mends.append(text)
            elif again.failed is not None and again.failed > failed:
                then = again.calls[again.failed]
                after = tries.texts[again.failed] if tries.texts else label(then)
                partial.append(f"{text} (then {after} breaks)")
    if (size := _input_size(tries)) is not None:
        mends.append(size)
    shape = call.before if call else None
    why = _reason(broken.error, call)
    after = layers[-1].name if (layers := layers_of(broken, tries.texts)) else None
    return Break(name, shape, why, after, tuple(mends), tuple(partial))


def _reason(error: Exception | None, call: Call | None) -> str:
    window = None if call is None else _window(call)
    if call is not None and call.before and window is not None:
        sizes = [call.before[a] for a in window.resolve(len(call.before))]
        spans, pads = _spans(window), _pads(window)
        rooms = [n + sum(pad) for n, pad in zip(sizes, pads, strict=True)]
        if any(span > room for span, room in zip(spans, rooms, strict=True)):
            over = ", with dilation over" if set(window.dilation) != {1} else ""
            over += f" {_text(spans)}," if over else ""
            padded = " with its padding" if any(map(any, pads)) else ""
            text = f"window {_text(window.shape or ())}{over}"
            return f"{text} does not fit in {_text(sizes)}{padded}"
    lines = str(error).strip().splitlines() or ["no reason given"]
    text = lines[0].rstrip(".")
    if isinstance(error, EmptyResult):
        return f"its result {text}"
    place = where(error) if error else None
    return f"{type(error).__name__}: {text}" + (f" ({place})" if place else "")


def _spans(window: Window) -> list[int]:
    pairs = zip(window.shape or (), window.dilation, strict=True)
    return [(k - 1) * d + 1 for k, d in pairs]


def _window(call: Call) -> Window | None:
    """A function's window, if it has one that could be another one."""
    given = call.arguments
    if not given.keys() >= {"window_shape", "strides", "padding"}:
        return None
    names = ("window_dilation", "ceil_mode", "axis")
    rest = {n: given[n] for n in names if n in given}
    spec = (given["window_shape"], given["strides"], given["padding"])
    try:
        window = Window.of(call.name, *spec, **rest)
    except (TypeError, ValueError):
        return None
    return None if window.shape is None else window


def _pads(window: Window) -> Sequence[tuple[int, int]]:
    pads = window.padding
    return ((0, 0),) * window.length if isinstance(pads, str) else pads


def _edits(call: Call) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Other arguments for a window that does not fit, and what to call them."""
    window = _window(call)
    if window is None or window.shape is None or call.before is None:
        return
    sizes = [call.before[a] for a in window.resolve(len(call.before))]
    rooms = [n + sum(pads) for n, pads in zip(sizes, _pads(window), strict=True)]
    shape, dilation = window.shape, window.dilation
    most = tuple(
        min(k, (room - 1) // d + 1)
        for k, room, d in zip(shape, rooms, dilation, strict=True)
    )
    if most == shape or min(most) < 1:
        return
    yield f"a window of at most {_text(most)}", {"window_shape": most}
    if set(dilation) != {1}:
        yield "no dilation", {"window_dilation": 1}
    spans = _spans(window)
    least = tuple(max(-(-(s - n) // 2), 0) for s, n in zip(spans, sizes, strict=True))
    pairs = tuple((p, p) for p in least)
    yield f"padding {_text(least)} on both sides", {"padding": pairs}
    yield "padding SAME", {"padding": "SAME"}


def _input_size(tries: Tries) -> str | None:
    """The smallest input of the same batch and channels that works, by search."""
    if not tries.axes:
        return None
    sizes = [tries.x.shape[a] for a in tries.axes]
    low, high = min(sizes), max(sizes)
    while high <= _MOST * max(sizes):
        if tries.works(tries.sized(high)):
            break
        low, high = high, 2 * high
    else:
        return _exact_size(tries)
    while high - low > 1:
        middle = (low + high) // 2
        if tries.works(tries.sized(middle)):
            high = middle
        else:
            low = middle
    x = tries.sized(high)
    if not _verified(tries, x):
        return None
    return f"an input of at least {_sizes(tries, x)}"


def _exact_size(tries: Tries) -> str | None:
    """The one size of input that gives a layer as many features as it has weights for.

    Those grow with the input, so the size can be searched for.
    """
    most = _MOST * max(tries.x.shape[a] for a in tries.axes)
    call = _broken_call(tries.run(tries.sized(most)))
    wanted = getattr(call.of, "in_features", None) if call else None
    if call is None or not isinstance(wanted, int):
        return None

    def given(size: int) -> int:
        recorder = tries.run(tries.sized(size, grow=False))
        if recorder.failed is None:
            return wanted
        reached = _broken_call(recorder)
        if reached is None or reached.before is None:
            return 0
        same = (reached.path, reached.name) == (call.path, call.name)
        return reached.before[-1] if same else 0

    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if given(middle) >= wanted:
            high = middle
        else:
            low = middle
    least = most = tries.sized(high, grow=False)
    if not _verified(tries, least):
        return None
    for size in range(high + 1, high + 1 + _MOST_ALIKE):
        if not tries.works(x := tries.sized(size, grow=False)):
            break
        most = x
    sizes = _sizes(tries, least)
    if most is not least and _verified(tries, most):
        sizes += f" to {_sizes(tries, most)}"
    return f"an input of {sizes}, which {label(call)} is made for"


def _broken_call(recorder: Recorder) -> Call | None:
    failed = recorder.failed
    return None if failed is None or failed < 0 else recorder.calls[failed]


def _verified(tries: Tries, x: jax.ShapeDtypeStruct) -> bool:
    return trace(tries.build(x), x, tries.axes).error is None


def _sizes(tries: Tries, x: jax.ShapeDtypeStruct) -> str:
    return _text(x.shape[a] for a in tries.axes)


def _text(numbers) -> str:
    return "x".join(map(str, numbers))
