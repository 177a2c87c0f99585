"""Folders of images: a subfolder for each class, read by Pillow."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.compare.reading import first_line, memory, split
from jaxpool.compare.settings import UserError, check

__all__ = ["fitted", "read_folder"]

_KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_PARTS = ("train", "test")
_SHARE = 5
"""Of a class's images, one in so many tests, where the folder does not say which."""


def read_folder(root: Path, size: int | None) -> dict[str, np.ndarray]:
    """Reads the images of a folder.

    Args:
      root: the folder, with a subfolder of images for each class; or with two folders
        `train` and `test` of that form. Hidden files are passed over. A class's label
        is its place among the sorted names. Where the folder has no `test`, one image
        in five of each class is for it.
      size: height and width that images are brought to, None if they have one already.

    Returns:
      `x_train`, `y_train`, `x_test` and `y_test`: uint8 [N, H, W, C], with one channel
      where all images are grey and three where any has colours; transparency is
      dropped, and pictures stand as a camera held upright saw them.

    Raises:
      UserError: for a folder of any other form or an image that cannot be read.
    """
    apart = {path.name for path in _inside(root)} == {*_PARTS}
    parts = [root / part for part in _PARTS] if apart else [root]
    classes = [[path.name for path in _inside(part)] for part in parts]
    rule = f"{root / 'test'} must have the classes of train, {', '.join(classes[0])}"
    check(classes[0] == classes[-1], "data", rule, ", ".join(classes[-1]))
    rule = f"{parts[0]} must have a subfolder of images for each class, at least 2"
    found = ", ".join(classes[0][:5]) or "an empty folder"
    kinds = [(parts[0] / each).is_dir() for each in classes[0]]
    check(all(kinds) and len(kinds) > 1, "data", rule, found)

    files = [[_images(part / each) for each in classes[0]] for part in parts]
    pictures = _read([f for part in files for each in part for f in each], size)
    labels = [np.repeat(np.arange(len(part)), [*map(len, part)]) for part in files]
    if apart:
        count = len(labels[0])
        arrays = pictures[:count], labels[0], pictures[count:], labels[1]
        keys = [f"{kind}_{part}" for part in _PARTS for kind in "xy"]
        return dict(zip(keys, arrays, strict=True))
    fewest = min(files[0], key=len)
    rule = f"{fewest[0].parent} must have at least 2 images, to train and to test"
    check(len(fewest) > 1, "data", rule, len(fewest))
    test_size = max(len(pictures) // _SHARE, len(files[0]))
    return split(pictures, labels[0], test_size)


def _inside(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted by name, and not hidden."""
    check(folder.is_dir(), "data", "must be a folder of images", str(folder))
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error
    return [path for path in paths if not path.name.startswith(".")]


def _images(folder: Path) -> list[Path]:
    """Returns the images of a class."""
    paths = _inside(folder)
    other = [path for path in paths if path.suffix.lower() not in _KINDS]
    rule = f"{folder} must hold images alone ({', '.join(_KINDS)})"
    check(not other, "data", rule, ", ".join(path.name for path in other[:5]))
    check(bool(paths), "data", f"{folder} must hold images", "an empty folder")
    return paths


def _read(paths: list[Path], size: int | None) -> np.ndarray:
    """Reads images, all as grey as they are: uint8 [N, H, W] or [N, H, W, 3]."""
    colour, first = False, None
    for path in paths:  # headers alone
        with _opened(path) as picture:
            known = picture.mode in _GREY | _COLOUR
            check(known, "data", f"{path} must have 8 bits a channel", picture.mode)
            colour |= picture.mode in _COLOUR
            wide, high = (size, size) if size else _upright(picture, path)
            first = first or (path, (wide, high))
        rule = (
            f"must have images of one size (--size brings them to one): {first[0]} "
            f"is {first[1][0]}x{first[1][1]}"
        )
        check((wide, high) == first[1], "data", rule, f"{path} of {wide}x{high}")
    assert first
    wide, high = first[1]
    room = 8 * len(paths) * wide * high * (3 if colour else 1)  # float32, and beside it
    rule = "must hold images that fit into memory (--size makes them smaller)"
    check(room <= memory(), "data", rule, f"{room:,} bytes")
    shape = (len(paths), high, wide, *((3,) if colour else ()))
    pictures = np.empty(shape, np.uint8)
    for i, path in enumerate(paths):
        with _opened(path) as picture:
            try:
                pictures[i] = fitted(picture, size, "RGB" if colour else "L")
            except Exception as error:  # whatever damage makes Pillow raise
                raise _unreadable(path, error) from error
    return pictures


def _opened(path: Path) -> Any:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except Exception as error:  # whatever damage makes Pillow raise
        raise _unreadable(path, error) from error


def _upright(picture: Any, path: Path) -> tuple[int, int]:
    """Returns width and height, exchanged where the camera was held on its side."""
    try:
        turned = picture.getexif().get(0x0112, 1) > 4
    except Exception as error:  # whatever damage makes Pillow raise
        raise _unreadable(path, error) from error
    return picture.size[::-1] if turned else picture.size


def fitted(picture: Any, size: int | None, mode: str | None = None) -> Any:
    """Returns a picture upright, in a mode, its middle square brought to `size`.

    What does not belong to that square, left and right or above and below, is cut off.
    Without `size` the whole picture stays, without `mode` its own mode.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture)
    upright = upright.convert(mode) if mode else upright
    if size is None:
        return upright
    return ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"`compare`: `data` {path} cannot be read: {first_line(error)}")
