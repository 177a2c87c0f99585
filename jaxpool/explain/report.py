"""What is known about a program, as a table for people and as plain data."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from jaxpool.explain.findings import Finding
from jaxpool.explain.layers import Layer, Seen
from jaxpool.explain.mends import Break

__all__ = ["Explanation"]


@dataclass(frozen=True)
class Explanation:
    """What a chain or a model does with an input.

    Printed, it is a table, 80 columns wide.

    Attributes:
      input_shape: the input's shape.
      spatial_axes: the axes of the input whose receptive fields are followed.
      layers: the layers, in the order of their calls.
      output_shape: of the first result; None where it breaks.
      seen: what an element of the result sees of each spatial axis of the input.
      findings: pools that remove nothing or everything, and the like.
      broken: where it breaks for this input, and what would mend it.
      inexact: operations behind which receptive fields are upper bounds.
      batched: whether shapes begin with a batch that the user gave.
    """

    input_shape: tuple[int, ...]
    spatial_axes: tuple[int, ...]
    layers: tuple[Layer, ...]
    output_shape: tuple[int, ...] | None
    seen: tuple[Seen, ...]
    findings: tuple[Finding, ...]
    broken: Break | None
    inexact: tuple[str, ...]
    batched: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dicts, lists, numbers and text, for JSON."""
        return _plain(dataclasses.asdict(self))

    def print(self, console: Any = None, every: bool = False) -> None:
        """Prints the table.

        Args:
          console: of `rich`; a new one by default.
          every: also layers that change neither the shape nor what is seen.
        """
        from rich.console import Console

        console = console or Console()
        shown = [layer for layer in self.layers if every or layer.changes]
        console.print(self._table(shown))
        console.print()
        hidden = len(self.layers) - len(shown)

        def say(text: str) -> None:
            lines = textwrap.wrap(text, console.width, subsequent_indent="  ")
            console.print("\n".join(lines), markup=False, highlight=False)

        if hidden:
            say(f"Not shown: {hidden} that keep the shape and what is seen.")
        if self.inexact:
            say(f"~ at most: {', '.join(self.inexact)} may read anything.")
        if self.seen and len(self.seen) == len(self.spatial_axes) and not self.broken:
            say(self._reach())
        for finding in self.findings:
            say(f"! {finding.layer}: {finding.why}. {_start(finding.do)}.")
        if self.broken:
            self._say_broken(say)

    def __str__(self) -> str:
        """The table, 80 columns wide."""
        from rich.console import Console

        text = StringIO()
        self.print(Console(file=text, width=80))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _table(self, layers: Sequence[Layer]) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        look = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
        table = Table(**look, padding=(0, 1, 0, 0))
        table.add_column("", justify="right")
        table.add_column("layer", overflow="fold")
        table.add_column("window", overflow="fold")
        table.add_column("output", overflow="fold")
        for name in ("field", "jump", "start", "lost", "padded"):
            table.add_column(name, justify="right", overflow="fold")
        table.add_row("", "input", "", self._shape(self.input_shape))
        for layer in layers:
            cells = (str(layer.number), layer.name, _window(layer))
            cells += (self._shape(layer.output_shape), *_numbers(layer))
            table.add_row(*map(Text, cells))
        return table

    def _shape(self, shape: Sequence[int]) -> str:
        return _times(shape if self.batched else shape[1:]) or "scalar"

    def _reach(self) -> str:
        sizes = [self.input_shape[a] for a in self.spatial_axes]
        spans = [s.last - s.first + 1 for s in self.seen]
        about = "" if all(s.exact for s in self.seen) else "at most "
        where = "An element of the result" if _is_one(self.seen) else "The middle one"
        return f"{where} sees {about}{_times(spans)} of the input's {_times(sizes)}."

    def _say_broken(self, say: Callable[[str], None]) -> None:
        broken = self.broken
        assert broken is not None
        shape = self._shape(broken.input_shape) if broken.input_shape else "?"
        after = f", after {broken.after}" if broken.after else ""
        say(f"{broken.layer} breaks, with an input of {shape}{after}: {broken.why}.")
        if broken.mends:
            say("Tried, and each makes it run:")
        for mend in broken.mends:
            say(f"  - {mend}")
        if broken.partial:
            say("Tried, and each makes this layer run, but not those after it:")
        for mend in broken.partial:
            say(f"  - {mend}")
        if not broken.mends and not broken.partial:
            say(
                "No other window, padding or size of the input that was tried mends it."
            )


def _is_one(seen: Sequence[Seen]) -> bool:
    return all(s.jump is None for s in seen)


def _numbers(layer: Layer) -> tuple[str, ...]:
    seen, windows = layer.seen, layer.windows
    rough = "" if all(s.exact for s in seen) else "~"
    has = bool(windows) and not layer.upsampling
    return (
        rough + _same(s.size for s in seen),
        _same("–" if s.jump is None else f"{s.jump:g}" for s in seen),
        _same(s.start for s in seen),
        _same(a.dropped for a in windows) if has else "",
        str(layer.windows_padded) if has else "",
    )


def _window(layer: Layer) -> str:
    """`3/2 p1 d2 ceil`: size, stride, padding as computed, dilation."""
    axes = layer.windows
    if not axes:
        return ""
    text = _same(a.window for a in axes)
    if any(a.stride is None for a in axes):
        return f"to {text}"
    if any(a.stride != 1 for a in axes) and any(a.out > 1 for a in axes):
        text += f"/{_same(a.stride for a in axes)}"
    if any(a.low or a.high for a in axes):
        pads = (f"{a.low}" if a.low == a.high else f"{a.low}+{a.high}" for a in axes)
        text += f" p{_same(pads)}"
    if any(a.dilation != 1 for a in axes):
        text += f" d{_same(a.dilation for a in axes)}"
    return text + " ceil" * layer.ceil_mode


def _same(values) -> str:
    """`3` for 3 and 3, `3x5` for others."""
    texts = [str(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _times(numbers) -> str:
    return "x".join(map(str, numbers))


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
