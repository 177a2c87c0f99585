"""What the user asked for: a window, checked once and written down in plain ints.

Every argument error of the library is raised here, in one grammar: the function,
the argument, the rule, the value. All that this file knows of JAX is what a symbolic
size is.
"""

import math
import operator
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, cast

import numpy as np
from jax.export import is_symbolic_dim

__all__ = [
    "Ints",
    "Padding",
    "Window",
    "as_entries",
    "as_flag",
    "as_int",
    "as_ints",
    "as_number",
    "as_positive",
    "as_shape",
    "as_size",
    "fail",
    "is_name",
    "is_sequence",
    "resolve_axes",
]

Ints = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]
_NAMED_PADDING = ("VALID", "SAME", "SAME_LOWER")
_MOST_AXES = 64  # NumPy's limit
_MOST_TEXT = 500  # characters of a value in an error


def fail(
    caller: str, argument: str, rule: str, value: object, error: type = ValueError
):
    """Returns the exception for an argument that breaks a rule."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no int of thousands of digits
        text = f"{type(value).__name__} of thousands of digits"
    text = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
    return error(f"`{caller}`: `{argument}` {rule}; got {text}.")


def as_int(
    caller: str,
    argument: str,
    value: object,
    minimum: int,
    maximum: int = 2**31 - 1,
) -> int:
    """Returns `value` as a Python int within limits: by default it fits into int32."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(cast(SupportsIndex, value))
    except Exception:  # a traced array raises an error of JAX's own here
        raise fail(caller, argument, "must be made of ints", value, TypeError) from None
    if number < minimum:
        raise fail(caller, argument, f"must be at least {minimum}", value)
    if number > maximum:
        raise fail(caller, argument, f"must be at most {maximum}", value)
    return number


def as_size(caller: str, argument: str, value: Any, minimum: int) -> Any:
    """As `as_int`; a size of a symbolic shape (`jax.export`) is returned as it is."""
    if not is_symbolic_dim(value):
        return as_int(caller, argument, value, minimum)
    try:
        known = bool(value >= minimum)
    except Exception:  # an error of JAX's own where the symbols leave it open
        known = False
    if not known:
        rule = f"must be at least {minimum}, whatever its symbols stand for"
        raise fail(caller, argument, rule, value)
    return value


def as_flag(caller: str, argument: str, value: object) -> bool:
    """Returns `value`, True or False, as a Python bool."""
    if not isinstance(value, bool | np.bool_):
        raise fail(caller, argument, "must be True or False", value, TypeError)
    return bool(value)


def as_number(
    caller: str,
    argument: str,
    value: Any,
    rule: str,
    fits: Callable[[float], bool] = lambda number: True,
) -> float:
    """Returns a real number, or an array of nothing else, as a Python float."""
    try:
        if np.ndim(value) or isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        number = float(value)
    except Exception:  # a traced array raises an error of JAX's own here
        raise fail(caller, argument, rule, value, TypeError) from None
    if not fits(number):
        raise fail(caller, argument, rule, value)
    return number


def as_positive(caller: str, argument: str, value: Any) -> float:
    """Returns a number, finite and greater than 0, as a Python float."""
    rule = "must be finite and greater than 0"
    return as_number(caller, argument, value, rule, lambda n: 0 < n < math.inf)


def is_name(value: object, names: Container[str]) -> bool:
    """Whether `value` is one of these names; what is no text may not compare."""
    return isinstance(value, str) and value in names


def as_entries(caller: str, argument: str, value: Any) -> tuple[Any, ...]:
    """Returns a sequence's entries, which are not more than an array has axes."""
    if len(value) > _MOST_AXES:
        rule = f"must have at most {_MOST_AXES} entries"
        raise fail(caller, argument, rule, value)
    return tuple(value)


def as_ints(
    caller: str,
    argument: str,
    value: object,
    length: int,
    minimum: int,
    one: Callable[..., int] = as_int,
) -> tuple[int, ...]:
    """Returns `value` as `length` ints, each checked by `one`; an int is repeated."""
    if not is_sequence(value):
        return (one(caller, argument, value, minimum),) * length
    if len(cast(Sequence, value)) != length:
        rule = f"must have {length} entries, one for each pooled axis"
        raise fail(caller, argument, rule, value)
    return tuple(one(caller, argument, v, minimum) for v in cast(Sequence, value))


def as_shape(caller: str, argument: str, value: object) -> tuple[int, ...]:
    """Returns the sizes of all axes of an array."""
    if not is_sequence(value):
        rule = "must be a sequence with one int for each axis"
        raise fail(caller, argument, rule, value, TypeError)
    sizes = as_entries(caller, argument, value)
    return tuple(as_int(caller, argument, n, 0, 2**63 - 1) for n in sizes)


def resolve_axes(caller: str, axis: object, ndim: int) -> tuple[int, ...]:
    """Returns `axis` as distinct negative axes of an array of rank `ndim`."""
    axes = _axis_entries(caller, axis)
    if any(not -ndim <= a < ndim for a in axes):
        raise fail(caller, "axis", f"must lie within the {ndim} axes of `x`", axis)
    axes = tuple(a - ndim if a >= 0 else a for a in axes)
    if len(set(axes)) != len(axes):
        raise fail(caller, "axis", "must name each axis once", axis)
    return axes


def _axis_entries(caller: str, axis: object) -> tuple[int, ...]:
    given = as_entries(caller, "axis", axis) if is_sequence(axis) else (axis,)
    axes = tuple(as_int(caller, "axis", a, -(2**31)) for a in given)
    if not axes:
        raise fail(caller, "axis", "must name at least one axis", axis)
    return axes


@dataclass(frozen=True)
class Window:
    """A pooling window, independent of any input: hashable, made of plain ints.

    Or of sizes of a symbolic shape, where those are what the user gave.

    Attributes:
      shape: window size for each pooled axis, or None for the whole extent.
      strides: step between neighbouring windows, for each pooled axis.
      padding: `"VALID"`, `"SAME"`, `"SAME_LOWER"`, or (low, high) for each axis.
      dilation: distance between neighbouring elements of one window, for each axis.
      ceil_mode: round the output size up instead of down (PyTorch's rule).
      axes: the pooled axes as the user named them, or None for the axes before a
        trailing channel axis.
      caller: the function that errors name.
    """

    shape: tuple[int, ...] | None
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    axes: tuple[int, ...] | None
    caller: str

    @classmethod
    def of(
        cls,
        caller: str,
        window_shape: Ints | None,
        strides: Ints | None = None,
        padding: Padding = "VALID",
        window_dilation: Ints = 1,
        ceil_mode: bool = False,
        axis: Ints | None = None,
    ) -> "Window":
        """Checks and normalises the arguments that every windowed op shares."""
        axes = None if axis is None else _axis_entries(caller, axis)
        shape = _window_shape(caller, window_shape, axes)
        length = len(shape or axes or ())
        if axes is not None and len(axes) != length:
            rule = f"must have {length} entries to match `window_shape` {shape}"
            raise fail(caller, "axis", rule, axis)
        dilation = as_ints(
            caller, "window_dilation", window_dilation, length, 1, as_size
        )
        if shape is None and set(dilation) != {1}:
            rule = "must be 1 where the window is the whole extent"
            raise fail(caller, "window_dilation", rule, window_dilation)
        return cls(
            shape=shape,
            strides=(1,) * length
            if strides is None
            else as_ints(caller, "strides", strides, length, 1, as_size),
            padding=_padding(caller, padding, shape, length),
            dilation=dilation,
            ceil_mode=as_flag(caller, "ceil_mode", ceil_mode),
            axes=axes,
            caller=caller,
        )

    @property
    def length(self) -> int:
        """Number of pooled axes."""
        return len(self.strides)

    def resolve(self, ndim: int) -> tuple[int, ...]:
        """Returns the pooled axes as negative axes of an array of rank `ndim`."""
        if self.axes is not None:
            return resolve_axes(self.caller, self.axes, ndim)
        if ndim <= self.length:
            rule = (
                f"has {self.length} entries, so `x` must have at least "
                f"{self.length + 1} axes (channels last; name the pooled axes with "
                f"`axis=` for any other layout), but it has {ndim}"
            )
            raise fail(self.caller, "window_shape", rule, self.shape)
        return tuple(range(-1 - self.length, -1))


def is_sequence(value: object) -> bool:
    """Whether `value` has entries in order: text, mappings and 0-d arrays have not.

    Nor have iterators, which can be read but once, or without end.
    """
    if isinstance(value, str | bytes | bytearray | Mapping):
        return False
    try:
        len(cast(Sequence, value))
    except Exception:
        return False
    return hasattr(value, "__getitem__")


def _window_shape(
    caller: str, value: Any, axes: tuple[int, ...] | None
) -> tuple[int, ...] | None:
    if value is None or not is_sequence(value):
        if axes is None:
            rule = (
                "must be a sequence with one int for each pooled axis unless `axis=` "
                "says which axes are pooled"
            )
            raise fail(caller, "window_shape", rule, value)
        if value is None:
            return None
        return as_ints(caller, "window_shape", value, len(axes), 1, as_size)
    given = as_entries(caller, "window_shape", value)
    shape = tuple(as_size(caller, "window_shape", k, 1) for k in given)
    if not shape:
        raise fail(caller, "window_shape", "must not be empty", value)
    return shape


def _padding(
    caller: str,
    value: Any,
    shape: tuple[int, ...] | None,
    length: int,
) -> Literal["VALID", "SAME", "SAME_LOWER"] | tuple[tuple[int, int], ...]:
    rule = (
        f"must be one of {', '.join(_NAMED_PADDING)}, an int, or one int or "
        f"(low, high) pair for each of the {length} pooled axes"
    )
    if isinstance(value, str):
        name = value.upper()
        if name not in _NAMED_PADDING:
            raise fail(caller, "padding", rule, value)
        if shape is None and name != "VALID":
            rule = "must be 'VALID' where the window is the whole extent"
            raise fail(caller, "padding", rule, value)
        return cast(Any, name)
    entries = value if is_sequence(value) else (value,) * length
    if len(entries) != length:
        raise fail(caller, "padding", rule, value)
    pairs = []
    for entry in entries:
        if is_sequence(entry):
            if len(entry) != 2:
                raise fail(caller, "padding", rule, value)
            pair = tuple(as_size(caller, "padding", p, 0) for p in entry)
        else:
            pair = (as_size(caller, "padding", entry, 0),) * 2
        pairs.append(pair)
    if shape is None and any(map(any, pairs)):
        rule = "must be 0 where the window is the whole extent"
        raise fail(caller, "padding", rule, value)
    return tuple(cast(Any, pairs))
