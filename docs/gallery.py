"""Draws gallery.md and its pictures: what every pooling method does to a photograph.

`python docs/gallery.py`, with the packages of the extra `jaxpool[compare]`. Methods are
those of `jaxpool compare`, built as there.
"""

import inspect
import io
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_sample_image

from jaxpool.compare.methods import Method, all_methods

FOLDER = Path(__file__).parent
SIZE = 48  # of the photograph, in pixels
CLOSE = 6  # of the close-up, around the result that is looked at
ROW = 1.75  # inches for each method
TITLES = ("photograph", "result", "weights, close-up", "gradient")
INTRODUCTION = f"""\
# What each method does

One photograph of {SIZE}x{SIZE} pixels in red, green, blue, grey. Methods are built as
`jaxpool compare` does: windows of 2x2 with a stride of 2 where a method has
windows, and arrays at their first values where it learns them. Those that sample are
drawn twice, with one key and with `deterministic=True`. `docs/gallery.py` draws it all.
Windows, strides and padding over a grid are in [Windows](windows.md).

- **result**: what the method gives; a grid of its numbers where that is no picture.
- **weights**: how much the result at the marked place changes with each pixel near it,
  summed over channels. For a linear method these are its weights. Red is positive, blue
  negative, white 0.
- **gradient**: how much the sum of all results changes with each pixel, in the same
  colours; the same as the weights where the result is no picture."""


def photograph() -> jax.Array:
    """Returns the photograph, [1, SIZE, SIZE, 4] from 0 to 1."""
    picture = load_sample_image("china.jpg")[40:376, 150:486].astype(np.float32) / 255
    step = len(picture) // SIZE
    small = picture.reshape(SIZE, step, SIZE, step, 3).mean((1, 3))
    return jnp.asarray(np.concatenate([small, small.mean(-1, keepdims=True)], -1))[None]


def draw_family(methods: list[Method], x: jax.Array) -> Figure:
    """Draws a row of panels for each method."""
    rows = [(m, d) for m in methods for d in _modes(m)]
    height = ROW * len(rows) + 0.35
    figure = Figure(figsize=(8.2, height))
    panels = figure.subplots(len(rows), 4, squeeze=False)
    figure.subplots_adjust(
        left=0.19,
        right=0.99,
        bottom=0.06 / height,
        top=1 - 0.3 / height,
        hspace=0.08,
        wspace=0.05,
    )
    for title, panel in zip(TITLES, panels[0], strict=True):
        panel.set_title(title, fontsize=9)
    for (method, deterministic), row in zip(rows, panels, strict=True):
        _draw_method(method, deterministic, x, row)
        name = method.name.replace("_", "_\n") if len(method.name) > 16 else method.name
        if len(_modes(method)) > 1:
            name += "\n(evaluation)" if deterministic else "\n(one key)"
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def _modes(method: Method) -> tuple[bool, ...]:
    """Whether to draw a method with `deterministic=True`, without, or both ways."""
    return (False, True) if method.op and method.op.takes_key else (True,)


def _draw_method(method, deterministic, x, row) -> None:
    model = nnx.Sequential(*method.layers(x.shape, nnx.Rngs(0)))
    model.eval() if deterministic else model.train()
    graph, state = nnx.split(model)

    @jax.jit
    def pool(x):  # the same key each time
        return nnx.merge(graph, state, copy=True)(x)

    y = pool(x)
    picture = y.ndim == 4
    # A place with some detail around it: an edge of the roof.
    place = (0, y.shape[1] * 5 // 12, y.shape[2] // 2) if picture else (0,)
    weights = jax.grad(lambda x: jnp.sum(pool(x)[place]))(x)[0].sum(-1)
    gradient = jax.grad(lambda x: jnp.sum(pool(x)))(x)[0].sum(-1)
    for panel in row:
        panel.set_xticks([])
        panel.set_yticks([])
    row[0].imshow(x[0, ..., :3])
    _draw_result(row[1], np.asarray(y[0], np.float32))
    center = (
        [place[i] * SIZE // y.shape[i] for i in (1, 2)] if picture else [SIZE // 2] * 2
    )
    if picture:
        row[1].add_patch(
            Rectangle((place[2] - 0.5, place[1] - 0.5), 1, 1, fill=False, color="red")
        )
    half = CLOSE // 2
    spread = np.abs(weights) > 1e-3 * np.abs(weights).max()
    far = max((abs(np.argwhere(spread) - center).max() if spread.any() else 0), half)
    top, left = (max(c - far, 0) for c in center)
    box = weights[top : center[0] + far + 2, left : center[1] + far + 2]
    _draw_signed(row[2], box)
    _draw_signed(row[3], gradient)


def _draw_result(panel, y) -> None:
    if y.ndim == 3:
        colors = y[..., :3]
        low, high = colors.min(), colors.max()
        panel.imshow((colors - low) / (high - low or 1))
        return
    values = y.reshape(-1)
    width = math.ceil(math.sqrt(values.size))
    square = np.full(width * math.ceil(values.size / width), np.nan)
    square[: values.size] = values
    panel.imshow(square.reshape(-1, width), cmap="viridis", aspect="auto")


def _draw_signed(panel, values) -> None:
    values = np.asarray(values, np.float32)
    limit = np.abs(values).max() or 1
    norm = TwoSlopeNorm(0, -limit, limit)
    panel.imshow(values, cmap="RdBu_r", norm=norm)


def save(figure: Figure, path: Path) -> None:
    """Writes a picture with a palette of 255 colors, a fifth as large as without."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    Image.open(buffer).convert("RGB").quantize(255).save(path, optimize=True)


def main() -> None:
    """Writes gallery.md, and a picture for each family."""
    folder = FOLDER / "gallery"
    folder.mkdir(exist_ok=True)
    families: dict[str, list[Method]] = {}
    for method in all_methods().values():
        learned_twice = method.name.endswith("_learned")  # the same at first values
        if method.op and not learned_twice:
            families.setdefault(method.op.family, []).append(method)
    x, text = photograph(), [INTRODUCTION]
    for family, methods in track(families.items(), description="families"):
        save(draw_family(methods, x), folder / f"{family}.png")
        lines = [f"## {family.capitalize()}", f"![{family}](gallery/{family}.png)"]
        for method in methods:
            assert method.op is not None
            summary = (inspect.getdoc(method.op.fn) or "").partition("\n")[0]
            lines.append(f"- **{method.name}** (`{method.op.name}`): {summary}")
        text += ["\n\n".join(lines[:2]), "\n".join(lines[2:])]
    (FOLDER / "gallery.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
