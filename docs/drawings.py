"""Draws the windows: `python docs/drawings.py` writes drawings/*.svg.

Where windows lie is read from jaxpool's own geometry, and what they give from its
functions. The files are text, the same from every run, and a test compares them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxpool as jp
from jaxpool._core.geometry import Axis, Bins, Geometry, adaptive_axis
from jaxpool._core.window import Window

__all__ = ["DRAWINGS", "draw"]

FOLDER = Path(__file__).parent / "drawings"
# Okabe and Ito's colours, told apart by most who see few; on a white card, so that they
# look the same on a light page and on a dark one.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9")
INK, QUIET, LINE, PAPER = "#1f2328", "#59636e", "#8c959f", "#ffffff"
CELL = 28
SPEC = ("window_shape", "strides", "padding")  # what pools take by position
EDGE = 12  # around everything

Cells = Sequence[str]


class Picture:
    """Shapes on a card, as large as what is drawn."""

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self.width = self.height = 0.0

    def rect(self, x, y, w, h, fill="none", stroke="none", **more) -> None:
        """Draws a rectangle."""
        place = dict(x=x, y=y, width=w, height=h)
        self._add("rect", x + w, y + h, **place, fill=fill, stroke=stroke, **more)

    def line(self, x1, y1, x2, y2, stroke=LINE, **more) -> None:
        """Draws a line."""
        place = dict(x1=x1, y1=y1, x2=x2, y2=y2)
        self._add("line", max(x1, x2), max(y1, y2), **place, stroke=stroke, **more)

    def dot(self, x, y, r, fill, **more) -> None:
        """Draws a disc."""
        self._add("circle", x + r, y + r, cx=x, cy=y, r=r, fill=fill, **more)

    def text(self, x, y, text, size=13, fill=INK, anchor="start", **more) -> None:
        """Writes a line of text, its middle at the height y."""
        room = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor]
        right = x + room * 0.56 * size * len(text)
        look = dict(x=x, y=y + size * 0.36, fill=fill, font_size=size)
        look |= dict(text_anchor=anchor)
        self._add("text", right, y + size / 2, text, **look, **more)

    def code(self, x, y, text, size=13, **more) -> None:
        """Writes a line of code."""
        self.width = max(self.width, x + 0.62 * size * len(text))
        self.text(x, y, text, size, font_family="ui-monospace, monospace", **more)

    def cell(self, x, y, text, fill="#f6f8fa", color=INK, **more) -> None:
        """Draws an element with its number."""
        self.rect(x + 1, y, CELL - 2, CELL - 2, fill, LINE, rx=3)
        self.text(x + CELL / 2, y + 13, text, 13, color, "middle", **more)

    def gap(self, x, y, text, dash="3 3") -> None:
        """Draws a place where there is no element."""
        look = dict(rx=3, stroke_dasharray=dash)
        self.rect(x + 1, y, CELL - 2, CELL - 2, "none", LINE, **look)
        self.text(x + CELL / 2, y + 13, text, 10, QUIET, "middle")

    def _add(self, tag, right, bottom, text="", **attributes) -> None:
        self.width = max(self.width, right)
        self.height = max(self.height, bottom)
        items = " ".join(
            f'{name.replace("_", "-")}="{_number(value)}"'
            for name, value in attributes.items()
        )
        body = f">{escape(text)}</{tag}>" if text else "/>"
        self.shapes.append(f"  <{tag} {items}{body}")

    def svg(self, title: str) -> str:
        """The file's text."""
        w, h = (round(size) + EDGE for size in (self.width, self.height))
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" '
            f'viewBox="0 0 {w} {h}" role="img" '
            'font-family="system-ui, sans-serif">'
        )
        card = f'  <rect width="{w}" height="{h}" rx="8" fill="{PAPER}"/>'
        lines = [
            head,
            f"  <title>{escape(title)}</title>",
            card,
            *self.shapes,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def _number(value: Any) -> Any:
    return f"{round(float(value), 2):g}" if isinstance(value, float) else value


def _value(value: Any) -> str:
    """A result as text, with two digits after the point at most."""
    value = np.asarray(value).item()
    if isinstance(value, bool):
        return str(value)
    return f"{value:.2f}".rstrip("0").rstrip(".")


# One axis: elements in a row, and under them the windows.


@dataclasses.dataclass
class Lane:
    """One axis with its windows, a panel of a picture.

    Attributes:
      title: the arguments.
      size: how many elements it has.
      windows: for each, the positions that it covers, also those in padding.
      pads: how many positions of padding are before and behind.
      overhang: positions behind them which windows reach with `ceil_mode`.
      cells: what stands in the elements, their positions if nothing is said.
      columns: what to write beside each window, by heading.
      hidden: elements that a mask hides.
      owners: for each element, the number of its device.
    """

    title: str
    size: int
    windows: list[list[int]]
    pads: tuple[int, int] = (0, 0)
    overhang: int = 0
    cells: Cells = ()
    columns: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    hidden: Sequence[int] = ()
    owners: Sequence[int] = ()

    @classmethod
    def of(cls, title: str, size: int, axis: Axis | Bins, **more: Any) -> "Lane":
        """A lane from jaxpool's geometry of an axis."""
        if isinstance(axis, Bins):
            bounds = zip(axis.start, axis.end, strict=True)
            return cls(title, size, [list(range(*b)) for b in bounds], **more)
        windows = [
            [o * axis.stride - axis.low + k * axis.dilation for k in range(axis.window)]
            for o in range(axis.out)
        ]
        pads = (axis.low, axis.counted_high)
        over = axis.high - axis.counted_high
        return cls(title, size, windows, pads, over, **more)


def lanes(panels: Iterable[Lane]) -> Picture:
    """Draws axes, one below the other, in columns that agree."""
    picture, panels, y = Picture(), list(panels), EDGE
    low = max(p.pads[0] for p in panels)
    high = max(p.size + p.pads[1] + p.overhang for p in panels)
    left = EDGE + low * CELL
    side = left + high * CELL + 14
    for panel in panels:
        picture.code(EDGE, y + 8, panel.title)
        for i, heading in enumerate(panel.columns):
            picture.text(side + 62 * i, y + 32, heading, 12, QUIET)
        y += 20
        _row(picture, panel, left, y)
        y += CELL + 5
        for o, window in enumerate(panel.windows):
            _bar(picture, panel, window, left, y, COLORS[o % len(COLORS)])
            for i, texts in enumerate(panel.columns.values()):
                color = COLORS[o % len(COLORS)]
                picture.text(side + 62 * i, y + 6, texts[o], 13, color)
            y += 17
        y += 14
    picture.height -= 2
    return picture


def _row(picture: Picture, panel: Lane, left: float, y: float) -> None:
    read = {i for window in panel.windows for i in window}
    before, behind = panel.pads
    for i in range(-before, panel.size + behind + panel.overhang):
        x = left + i * CELL
        if i >= panel.size + behind:
            picture.gap(x, y, "over", "1 2")
        elif not 0 <= i < panel.size:
            picture.gap(x, y, "pad")
        else:
            struck = dict(fill="#eaeef2", color=LINE, text_decoration="line-through")
            hidden = i not in read or i in panel.hidden
            text = panel.cells[i] if panel.cells else str(i)
            picture.cell(x, y, text, **(struck if hidden else {}))
            if panel.owners:
                color = COLORS[::-1][panel.owners[i]]
                picture.rect(x, y + CELL - 1, CELL, 4, color)


def _bar(picture: Picture, panel: Lane, window, left, y, color) -> None:
    first, last = window[0], window[-1]
    x, width = left + first * CELL + 3, (last - first + 1) * CELL - 6
    picture.rect(x, y, width, 12, color, rx=6, fill_opacity=0.18)
    for i in window:
        taken = 0 <= i < panel.size and i not in panel.hidden
        look = {} if taken else {"fill_opacity": 0.0, "stroke": color}
        picture.dot(left + i * CELL + CELL / 2, y + 6, 4, color, **look)


def _axis(size: int, *window: Any, **more: Any) -> Axis:
    """The geometry of windows over one axis."""
    given = dict(strides=None, padding="VALID", window_dilation=1, ceil_mode=False)
    settings = given | dict(zip(SPEC, window, strict=False)) | more
    laid = Geometry.of(Window.of("drawings", **settings, axis=(-1,)), (size,))
    return laid.axes[0]


def _pooled(fn: Callable[..., Any], x: Any, *args: Any, **more: Any) -> list[str]:
    y = fn(jnp.asarray(x)[:, None], *args, **more)
    return [_value(v) for v in y[:, 0]]


def _strides() -> Picture:
    return lanes(
        Lane.of(f"(3,), strides=({s},)", 8, _axis(8, (3,), (s,))) for s in (1, 2, 3)
    )


def _padding() -> Picture:
    def panel(padding):
        axis = _axis(6, (3,), (2,), padding)
        return Lane.of(f"(3,), strides=(2,), padding={padding!r}", 6, axis)

    return lanes(map(panel, ("VALID", "SAME", "SAME_LOWER", ((2, 1),))))


def _dilation() -> Picture:
    return lanes(
        Lane.of(f"(3,), window_dilation=({d},)", 8, _axis(8, (3,), window_dilation=d))
        for d in (1, 2, 3)
    )


def _ceil() -> Picture:
    def panel(size, window, strides, padding, ceil):
        axis = _axis(size, window, strides, padding, ceil_mode=ceil)
        text = f"{window}, {strides}, {padding!r}, ceil_mode={ceil}"
        return Lane.of(text, size, axis)

    return lanes(
        panel(*case, ceil)
        for case in ((6, (3,), (2,), "VALID"), (4, (2,), (3,), ((1, 1),)))
        for ceil in (False, True)
    )


def _pads() -> Picture:
    x = np.array([6.0, 2.0, 4.0, 8.0, 5.0])

    def panel(text, **how):
        spec = dict(window_shape=(3,), strides=(2,), padding=((1, 0),), ceil_mode=True)
        axis = _axis(5, **spec)
        mean = _pooled(jp.avg_pool, x, **spec, **how)
        divisor = _pooled(jp.sum_pool, x, **spec)
        sums = [float(s) for s in divisor]
        by = [_value(s / float(m)) for s, m in zip(sums, mean, strict=True)]
        columns = {"sum": divisor, "÷": by, "mean": mean}
        cells = [_value(v) for v in x]
        return Lane.of(text, 5, axis, cells=cells, columns=columns)

    return lanes(
        [
            panel("count_include_pad=True"),
            panel("count_include_pad=False", count_include_pad=False),
            panel("divisor_override=4", divisor_override=4),
        ]
    )


def _bins() -> Picture:
    def panel(size, out):
        x = np.arange(size, dtype=np.float32)
        columns = {"mean": _pooled(jp.adaptive_avg_pool, x, (out,))}
        text = f"size {size}, output_shape=({out},)"
        return Lane.of(text, size, adaptive_axis(-1, size, out), columns=columns)

    return lanes(panel(*case) for case in ((6, 3), (7, 3), (3, 5)))


def _regions_drawn() -> Picture:
    def panel(text, **how):
        ((start, end),) = jp.fractional_boundaries((8, 1), (5,), **how)
        bounds = zip(start.tolist(), end.tolist(), strict=True)
        windows = [list(range(*b)) for b in bounds]
        return Lane(f"size 8, output_shape=(5,), {text}", 8, windows)

    return lanes(
        [
            panel("deterministic=True", deterministic=True),
            panel("a key", key=jax.random.key(3)),
            panel("another key", key=jax.random.key(0)),
        ]
    )


def _masked() -> Picture:
    x, hidden = np.array([3.0, 7.0, 5.0, 1.0, 2.0, 9.0]), (1, 4, 5)
    where = jnp.asarray([i not in hidden for i in range(6)])[:, None]

    def panel(rule):
        spec = dict(window_shape=(2,), strides=(2,))
        y, mask = jp.masked_avg_pool(
            jnp.asarray(x)[:, None], **spec, where=where, rule=rule
        )
        columns = {
            "mean": [_value(v) for v in y[:, 0]],
            "mask": [_value(v) for v in mask[:, 0]],
        }
        cells, axis = [_value(v) for v in x], _axis(6, **spec)
        text = f"(2,), strides=(2,), rule={rule!r}"
        return Lane.of(text, 6, axis, cells=cells, columns=columns, hidden=hidden)

    return lanes(map(panel, ("any", "all")))


def _monoid() -> Picture:
    x, axis = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), _axis(6, (2,), (2,))
    columns = {
        "product": _pooled(jp.pool, x, 1.0, jax.lax.mul, (2,), (2,)),
        "sum": _pooled(jp.pool, x, 0.0, jax.lax.add, (2,), (2,)),
        "hypot": _pooled(jp.pool, x, 0.0, jnp.hypot, (2,), (2,)),
    }
    cells = [_value(v) for v in x]
    return lanes([Lane.of("(2,), (2,)", 6, axis, cells=cells, columns=columns)])


def _quantized() -> Picture:
    q, axis = np.array([1, 2, 4, 5, -3, -4], np.int8), _axis(6, (2,), (2,))
    columns = {"mean": _pooled(jp.avg_pool, q.astype(np.float32), (2,), (2,))}
    for preset in ("tflite", "torch"):
        columns[preset] = _pooled(jp.quantized_avg_pool, q, (2,), (2,), preset=preset)
    cells = [str(v) for v in q]
    return lanes([Lane.of("(2,), strides=(2,)", 6, axis, cells=cells, columns=columns)])


def _shards() -> Picture:
    spec = dict(window_shape=(3,), strides=(2,), padding="SAME")
    axis, owners = _axis(8, **spec), [0] * 4 + [1] * 4
    columns = {"device": [str(o) for o in (0, 0, 1, 1)]}
    text = '(3,), strides=(2,), padding="SAME"'
    return lanes([Lane.of(text, 8, axis, columns=columns, owners=owners)])


def _segment() -> Picture:
    ids, x = [0, 2, 0, 1, 2, 2], np.array([3.0, 1.0, 5.0, 4.0, 6.0, 2.0])
    columns = {
        mode: [
            _value(v)
            for v in jp.segment_pool(jnp.asarray(x), jnp.asarray(ids), 3, mode=mode)
        ]
        for mode in ("mean", "max")
    }
    windows = [[i for i, own in enumerate(ids) if own == s] for s in range(3)]
    text = f"segment_ids={ids}"
    cells = [_value(v) for v in x]
    return lanes([Lane(text, 6, windows, cells=cells, columns=columns)])


def _sequence() -> Picture:
    x, modes = np.array([4.0, 1.0, 7.0, 2.0, 9.0, 3.0]), ("mean", "max", "last")

    def panel(length):
        y = jp.sequence_pool(jnp.asarray(x)[:, None], lengths=length, mode=modes)
        columns = {m: [_value(v)] for m, v in zip(modes, y, strict=True)}
        hidden = range(length, 6)
        cells, windows = [_value(v) for v in x], [list(range(length))]
        text = f"lengths={length}"
        return Lane(text, 6, windows, cells=cells, columns=columns, hidden=hidden)

    return lanes(map(panel, (6, 4, 2)))


# Two axes: grids side by side.


def _grid(picture: Picture, x, y, cells, fills=None, title="") -> None:
    """Draws a table of cells, padding for None, and colours over some."""
    picture.text(x, y + 6, title, 12, QUIET)
    for i, j in np.ndindex(len(cells), len(cells[0])):
        text, left, top = cells[i][j], x + j * CELL, y + 19 + i * CELL
        if text is None:
            picture.gap(left, top, "pad")
        else:
            picture.cell(left, top, text)
        if fills and (i, j) in fills:
            look = dict(rx=3, fill_opacity=0.3)
            picture.rect(left + 1, top, CELL - 2, CELL - 2, fills[i, j], **look)


def windows_2d(size: tuple[int, int], *window: Any, **more: Any) -> Picture:
    """Draws some windows over a grid, and the maxima that they give beside it."""
    x = np.arange(np.prod(size), dtype=np.float32).reshape(*size, 1)
    settings = dict(zip(SPEC, window, strict=False)) | more
    y = np.asarray(jp.max_pool(jnp.asarray(x), **settings))[..., 0]
    rows, columns = (
        _axis(
            size[i],
            **{n: v if isinstance(v, str) else (v[i],) for n, v in settings.items()},
        )
        for i in (0, 1)
    )
    picture = Picture()
    left, top = EDGE, EDGE + 20
    text = ", ".join(
        str(v) if n == SPEC[0] else f"{n}={v!r}" for n, v in settings.items()
    )
    picture.code(left, EDGE + 8, text, 12)
    height, width = (a.size + a.low + a.counted_high for a in (rows, columns))
    cells = [
        [
            _value(x[i, j, 0]) if 0 <= i < size[0] and 0 <= j < size[1] else None
            for j in range(-columns.low, width - columns.low)
        ]
        for i in range(-rows.low, height - rows.low)
    ]
    shown = [(0, 0), (0, 1), (rows.out - 1, columns.out - 1)]
    fills = dict(zip(shown, COLORS, strict=False))
    _grid(picture, left, top, cells, title=f"{size[0]}x{size[1]}")
    for n, (i, j) in enumerate(shown):
        at_x = left + j * columns.stride * CELL
        at_y = top + 18 + i * rows.stride * CELL
        for k, m in np.ndindex(rows.window, columns.window):
            tap_x = at_x + m * columns.dilation * CELL
            tap_y = at_y + k * rows.dilation * CELL
            look = dict(rx=3, fill_opacity=0.25)
            picture.rect(tap_x + 3, tap_y + 3, CELL - 6, CELL - 6, COLORS[n], **look)
        inset = 3 if n == 1 else 1  # so that both show where two windows begin
        h, w = (
            ((a.window - 1) * a.dilation + 1) * CELL - 2 * inset
            for a in (rows, columns)
        )
        look = dict(stroke=COLORS[n], rx=5, stroke_width=2.5)
        picture.rect(at_x + inset, at_y + inset, w, h, **look)
    right = left + width * CELL + 28
    result = [[_value(v) for v in row] for row in y]
    _grid(picture, right, top, result, fills, f"{y.shape[0]}x{y.shape[1]}, maxima")
    return picture


def _unpool() -> Picture:
    x = np.array([[1, 6, 2, 1], [3, 2, 0, 4], [5, 0, 7, 7], [2, 1, 3, 0]], np.float32)
    values, indices = jp.max_pool_with_argmax(jnp.asarray(x)[..., None], (2, 2), (2, 2))
    back = jp.max_unpool(values, indices, (4, 4))[..., 0]
    picture, fills, small = Picture(), {}, {}
    for n, flat in enumerate(np.asarray(indices)[..., 0].ravel().tolist()):
        fills[divmod(flat, 4)] = small[divmod(n, 2)] = COLORS[n]

    def texts(a):
        return [[_value(v) for v in row] for row in np.asarray(a)]

    middle = EDGE + 4 * CELL + 20
    right = middle + 2 * CELL + 20
    _grid(picture, EDGE, EDGE, texts(x), fills, "x")
    _grid(picture, middle, EDGE, texts(values[..., 0]), small, "values")
    below = EDGE + 3 * CELL
    _grid(picture, middle, below, texts(indices[..., 0]), small, "indices")
    _grid(picture, right, EDGE, texts(back), fills, "max_unpool")
    y = EDGE + 18
    for x in (EDGE, right):
        picture.line(x, y + 2 * CELL, x + 4 * CELL, y + 2 * CELL, INK)
        picture.line(x + 2 * CELL, y, x + 2 * CELL, y + 4 * CELL, INK)
    return picture


def _indices() -> Picture:
    shape = (2, 3)
    plane = jnp.arange(6).reshape(1, 2, 3, 1).repeat(2, -1)
    picture = Picture()
    for n, target in enumerate(("plane", "tf", "onnx", "onnx_column_major")):
        found = np.asarray(jp.convert_indices(plane, shape, target=target))[0]
        x, y = EDGE + (n % 2) * 200, EDGE + (n // 2) * 112
        picture.code(x, y + 6, f'"{target}"')
        for channel in (0, 1):
            cells = [[str(v) for v in row] for row in found[..., channel]]
            fills = dict.fromkeys(np.ndindex(*shape), COLORS[channel])
            at = x + channel * (3 * CELL + 8)
            _grid(picture, at, y + 16, cells, fills, f"channel {channel}")
    return picture


def _boxes() -> Picture:
    size, bins, picture = 6, (2, 2), Picture()
    x1, y1, x2, y2 = box = (0.6, 1.2, 4.8, 4.6)

    def pooled(x, aligned):
        boxes = jnp.asarray([box], jnp.float32)
        return jp.roi_align(x, boxes, bins, aligned=aligned)[0, ..., 0]

    for n, aligned in enumerate((False, True)):
        zeros = jnp.zeros((size, size, 1))
        weights = jax.jacrev(lambda x, a=aligned: pooled(x, a))(zeros)[..., 0]
        left, top = EDGE + n * (size * CELL + 30), EDGE
        picture.code(left, top + 6, f"aligned={aligned}")
        cells = [[""] * size for _ in range(size)]
        _grid(picture, left, top + 2, cells)
        top += 20
        # Element 0 has its middle at 1/2 where the box is aligned, and at 0 elsewhere.
        shift = 0.0 if aligned else 0.5
        for b, (i, j) in enumerate(np.ndindex(*bins)):
            for r, c in np.argwhere(np.asarray(weights[i, j]) > 0):
                share = float(weights[i, j, r, c] / weights.max())
                x = left + (c + 0.5) * CELL + (2 * j - 1) * 4
                y = top + (r + 0.5) * CELL + (2 * i - 1) * 4
                radius = round(1.5 + 4 * share, 1)
                picture.dot(x, y, radius, COLORS[b], fill_opacity=0.75)
            h, w = (y2 - y1) / bins[0] * CELL, (x2 - x1) / bins[1] * CELL
            x = left + (x1 + shift) * CELL + j * w
            y = top + (y1 + shift) * CELL + i * h
            picture.rect(x, y, w, h, stroke=COLORS[b], stroke_width=2)
    return picture


# The way through the library.


def _design() -> Picture:
    boxes = [
        ("window.py", "what the user asked for: plain ints, checked once"),
        ("geometry.py", "what that means for one input: sizes, pads, counts"),
        ("engine.py", "windowed reductions and their derivatives"),
        ("_ops/*.py", "formulas, one family a file; a row for each op"),
        ("nnx.py, linen.py", "modules, made from the rows"),
    ]
    beside = {
        2: "stages, taps, places, linear: one window as few strided slices",
        3: "OPS: compare, bench, docs and the contract tests read the rows",
        4: "compat/: other frameworks' names, without maths of their own",
    }
    picture, y = Picture(), float(EDGE)
    for n, (name, what) in enumerate(boxes):
        height = 62 if n in beside else 46
        color = COLORS[n]
        picture.rect(EDGE, y, 396, height, color, rx=8, fill_opacity=0.12)
        picture.rect(EDGE, y, 396, height, "none", color, rx=8, stroke_width=1.5)
        picture.code(EDGE + 12, y + 15, name, 14, font_weight=600)
        picture.text(EDGE + 12, y + 33, what, 13)
        if n in beside:
            picture.text(EDGE + 12, y + 50, beside[n], 11.5, QUIET)
        y += height
        if n < len(boxes) - 1:
            x = EDGE + 198
            picture.line(x, y + 2, x, y + 14, INK, stroke_width=1.5)
            picture.line(x - 5, y + 10, x, y + 16, INK, stroke_width=1.5)
            picture.line(x + 5, y + 10, x, y + 16, INK, stroke_width=1.5)
            y += 18
    return picture


DRAWINGS: dict[str, tuple[str, Callable[[], Picture]]] = {
    "strides": (
        "Windows of 3 over 8 elements. What no window covers is struck out: "
        "strides that do not divide what is left drop elements at the end.",
        _strides,
    ),
    "padding": (
        "Windows of 3 with a stride of 2 over 6 elements. SAME pads as much as "
        "gives size / stride windows, the odd place behind; SAME_LOWER in front.",
        _padding,
    ),
    "dilation": (
        "Windows of 3 elements, next to each other, and 2 and 3 apart.",
        _dilation,
    ),
    "ceil": (
        "ceil_mode adds a window that overhangs, but none that would start in the "
        "padding behind (PyTorch's rule): below, a third one is left out.",
        _ceil,
    ),
    "pads": (
        "Means of windows of 3, stride 2, one place padded in front, ceil_mode=True. "
        "Padding counts as zeros unless count_include_pad=False; what a window "
        "overhangs never counts.",
        _pads,
    ),
    "bins": (
        "Bins of adaptive pools: equal where the output divides the input, "
        "overlapping where it does not, repeating elements where it is larger.",
        _bins,
    ),
    "fractional": (
        "Regions of fractional pools: two sizes, in an order that the key draws.",
        _regions_drawn,
    ),
    "grid-valid": (
        "Windows of 2x2 with strides of 2: the last row and column fit in none.",
        lambda: windows_2d((5, 5), (2, 2), (2, 2)),
    ),
    "grid-same": (
        "Windows of 3x3 with strides of 2, SAME: padding never wins a maximum.",
        lambda: windows_2d((5, 5), (3, 3), (2, 2), "SAME"),
    ),
    "grid-explicit": (
        "Padding said for each side: (before, behind) for rows, then for columns.",
        lambda: windows_2d((4, 4), (2, 2), (2, 2), ((0, 0), (1, 1))),
    ),
    "grid-strides": (
        "Strides of 1 down and 3 across: windows overlap along one axis alone.",
        lambda: windows_2d((5, 6), (3, 3), (1, 3)),
    ),
    "grid-dilation": (
        "Windows of 2x2 elements that are 2 apart.",
        lambda: windows_2d((5, 5), (2, 2), (1, 1), window_dilation=(2, 2)),
    ),
    "unpool": (
        "max_pool_with_argmax says where each maximum stands, the first of equal "
        "ones; max_unpool writes values back there.",
        _unpool,
    ),
    "masked": (
        "Masked means of windows of 2: the pooled mask says which windows had "
        "elements, or with another rule nothing else.",
        _masked,
    ),
    "sequence": (
        "Three rows of a batch: tokens, and padding that no mode sees.",
        _sequence,
    ),
    "segment": (
        "Rows that belong together by name, in any order.",
        _segment,
    ),
    "regions": (
        "roi_align of one box in 2x2 bins: the dots are the weights of the elements "
        "that each bin reads.",
        _boxes,
    ),
    "monoid": (
        "pool folds each window with any associative function.",
        _monoid,
    ),
    "quantized": (
        "Means of int8: runtimes round halves differently, and jaxpool as each does.",
        _quantized,
    ),
    "indices": (
        "Flat indices of a map of 2x3 with two channels, as frameworks count them.",
        _indices,
    ),
    "shards": (
        "A row of 8 on two devices: the window that reaches over the border needs "
        "one element of the other device, its halo.",
        _shards,
    ),
    "design": (
        "The way through the library: each file imports from those above it.",
        _design,
    ),
}
"""Each drawing by name: what it shows, and what draws it."""


def draw(name: str) -> str:
    """The text of one SVG file."""
    title, picture = DRAWINGS[name]
    return picture().svg(title)


def main() -> None:
    """Writes all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name in DRAWINGS:
        FOLDER.joinpath(f"{name}.svg").write_text(draw(name))


if __name__ == "__main__":
    main()
