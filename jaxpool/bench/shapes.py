"""What is timed: windows and inputs, most of them from real models.

The rows of `models` are those of oneDNN's benchdnn (the models' names are its own, and
a `~` marks shapes traced from a framework, where the model is a guess), of XNNPACK's
and PyTorch's benchmarks, and of models in wide use that none of them has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jaxpool

__all__ = ["OPS", "SUITES", "Case"]

OPS = ("max", "avg")

Ints = int | Sequence[int]
Pads = int | tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Case:
    """One window over one input, channels last, or one adaptive pool.

    Means count the padding.

    Attributes:
      name: where it comes from.
      op: max or avg.
      batch: how many samples, at most.
      sample: spatial sizes and channels of a sample.
      window: window sizes; the result's if `adaptive`.
      strides: steps between windows; none if `adaptive`.
      padding: a (low, high) pair for each spatial axis; none if `adaptive`.
      quick: how many samples in a quick run, None for a case that it leaves out.
      scales: whether a small machine takes fewer samples.
      adaptive: whether windows follow from the result's size.
    """

    name: str
    op: str
    batch: int
    sample: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    quick: int | None = None
    scales: bool = True
    adaptive: bool = False

    def quickly(self) -> "Case":
        """Returns the case of a quick run."""
        return self if self.quick is None else replace(self, batch=self.quick)

    def scaled(self, memory: int, itemsize: int) -> "Case":
        """Returns the case whose input takes at most a 512th of `memory` bytes.

        At least one sample is left. Several frameworks' inputs, results, gradients
        and temporary values must fit at once.
        """
        if not self.scales:
            return self
        fits = memory // 512 // (math.prod(self.sample) * itemsize)
        return replace(self, batch=min(self.batch, max(1, fits)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input, channels last."""
        return (self.batch, *self.sample)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result, channels last."""
        if self.adaptive:
            return (self.batch, *self.window, self.sample[-1])
        return jaxpool.output_shape(self.shape, self.window, self.strides, self.padding)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What a pool is told, apart from the input."""
        if self.adaptive:
            return (self.window,)
        return (self.window, self.strides, self.padding)

    @property
    def symmetric(self) -> bool:
        """Whether each axis is padded alike on both sides."""
        return all(low == high for low, high in self.padding)

    @property
    def label(self) -> str:
        """The windows as text: 3/2/1, (1,3,3)/(1,2,2)/(0,1,1), to 7."""
        if self.adaptive:
            return f"to {_text(self.window)}"
        pads = [f"{a}" if a == b else f"{a}:{b}" for a, b in self.padding]
        return "/".join(map(_text, (self.window, self.strides, pads)))


def _text(entries: Sequence[object]) -> str:
    texts = list(map(str, entries))
    return texts[0] if len(set(texts)) == 1 else f"({','.join(texts)})"


def _case(
    op: str,
    name: str,
    shape: tuple[int, ...],
    window: Ints,
    strides: Ints,
    padding: Pads = 0,
    **others,
) -> Case:
    """Returns a case; what is given once counts for each spatial axis."""
    rank = len(shape) - 2

    def each(value: Ints) -> tuple[int, ...]:
        return (value,) * rank if isinstance(value, int) else tuple(value)

    pads = ((padding, padding),) * rank if isinstance(padding, int) else padding
    batch, *sample = shape
    window, strides = each(window), each(strides)
    return Case(name, op, batch, tuple(sample), window, strides, pads, **others)


def _models() -> list[Case]:
    def most(*arguments, **others):
        return _case("max", *arguments, **others)

    def mean(*arguments, **others):
        return _case("avg", *arguments, **others)

    up = ((0, 1), (0, 1))  # SAME here, or an output size rounded up
    frames = ((0, 0), (1, 1), (1, 1))
    return [
        most("ResNet-50 stem", (50, 112, 112, 64), 3, 2, 1, quick=8),
        most("ResNet-50 stem, SAME", (50, 112, 112, 64), 3, 2, up),
        mean("ResNet-50 head", (50, 7, 7, 2048), 7, 1),
        most("AlexNet pool1", (256, 55, 55, 96), 3, 2),
        most("AlexNet pool5", (256, 13, 13, 256), 3, 2),
        most("GoogLeNet pool1", (96, 114, 114, 64), 3, 2, up),
        most("GoogLeNet 3a", (96, 28, 28, 192), 3, 1, 1, quick=8),
        most("GoogLeNet 4b", (96, 14, 14, 512), 3, 1, 1),
        most("GoogLeNet pool4", (96, 14, 14, 832), 3, 2, up),
        most("Inception-v3 pool", (96, 147, 147, 64), 3, 2, quick=4),
        mean("Inception-v3 mixed", (96, 35, 35, 288), 3, 1, 1, quick=8),
        mean("Inception-v3 mixed_4", (96, 17, 17, 768), 3, 1, 1),
        most("Inception-v3 mixed_8", (96, 17, 17, 768), 3, 2),
        most("VGG-16 pool1", (1, 224, 224, 64), 2, 2, quick=1),
        most("VGG-16 pool4", (1, 28, 28, 512), 2, 2),
        most("SqueezeNet stem", (1, 111, 111, 96), 3, 2),
        most("ShuffleNet stem", (1, 112, 112, 24), 3, 2, 1),
        mean("ShuffleNet unit", (1, 28, 28, 240), 3, 2, 1, quick=1),
        mean("~DenseNet transition 1", (512, 28, 28, 256), 2, 2, quick=16),
        mean("~DenseNet transition 2", (2048, 14, 14, 256), 2, 2),
        most("~YOLO SPPF", (32, 13, 13, 512), 5, 1, 2, quick=8),
        most("~YOLO SPP 9", (32, 13, 13, 512), 9, 1, 4),
        most("~YOLO SPP 13", (32, 13, 13, 512), 13, 1, 6, quick=8),
        most("~U-Net, large image", (4, 640, 1024, 8), 2, 2),
        most("~detector stem", (32, 600, 600, 64), 3, 2, 1),
        most("~every second pixel", (4, 32, 32, 256), 1, 2),
        most("~audio", (32, 8177, 64), 4, 4),
        most("~audio, whole", (16, 15000, 1024), 15000, 15000),
        most("3D U-Net pool1", (1, 64, 64, 64, 64), 2, 2),
        most("~3D segmentation", (4, 128, 128, 128, 32), 2, 2),
        most("I3D pool1", (1, 16, 112, 112, 64), (1, 3, 3), (1, 2, 2), frames),
        most("PyTorch's bench 1d", (8, 256, 256), 3, 1),
        mean("PyTorch's bench 1d", (8, 256, 256), 3, 1),
        most("PyTorch's bench 3d", (8, 32, 64, 64, 32), 3, 2),
        mean("PyTorch's bench 3d", (8, 32, 64, 64, 32), 3, 2),
        most("small CNN", (64, 32, 32, 64), 2, 2, quick=64),
    ]


def _windows() -> list[Case]:
    shape = (4, 96, 96, 64)
    return [
        _case(
            op,
            f"window {size}",
            shape,
            size,
            1,
            size // 2,
            quick=shape[0] if size in (3, 9) else None,
        )
        for op in OPS
        for size in (3, 5, 9, 17, 33, 65)
    ]


def _batches() -> list[Case]:
    return [
        _case(
            "max",
            f"batch {batch}",
            (batch, 56, 56, 32),
            3,
            2,
            1,
            quick=batch if batch in (4, 64) else None,
            scales=False,  # the batch is the point; the largest takes 103 MB
        )
        for batch in (1, 4, 16, 64, 256)
    ]


def _channels() -> list[Case]:
    return [
        _case(
            op,
            f"{channels} channels",
            (8, 112, 112, channels),
            *window,
            quick=8 if channels == 8 else None,
        )
        for op in OPS
        for window in ((2, 2, 0), (3, 2, 1))
        for channels in (3, 8, 24)
    ]


def _adaptive() -> list[Case]:
    return [
        Case(name, op, batch, sample, result, (), (), quick, adaptive=True)
        for op in OPS
        for name, batch, sample, result, quick in (
            ("VGG-16 head, 320 pixels", 32, (10, 10, 512), (7, 7), 8),
            ("AlexNet head, 256 pixels", 256, (7, 7, 256), (6, 6), None),
            ("PSPNet, 60x60", 8, (60, 60, 512), (6, 6), None),
            ("PSPNet, 33x33", 16, (33, 33, 512), (6, 6), 4),
            ("~detector region", 32, (50, 50, 256), (7, 7), None),
            ("~audio", 32, (1000, 64), (300,), None),
            ("~larger than the input", 32, (5, 5, 256), (7, 7), None),
        )
    ]


SUITES = {
    "models": _models(),
    "windows": _windows(),
    "batch": _batches(),
    "channels": _channels(),
    "adaptive": _adaptive(),
}
"""Cases by the name of their suite."""
