"""What the user asked for: a window, checked once and written down in plain ints.

Every argument error of the library is raised here, in one grammar: the function,
the argument, the rule, the value. Nothing in this file knows about arrays.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, cast

__all__ = [
    "Ints",
    "Padding",
    "Window",
    "as_int",
    "as_ints",
    "fail",
    "is_sequence",
    "resolve_axes",
]

Ints = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]
_NAMED_PADDING = ("VALID", "SAME", "SAME_LOWER")


def fail(
    caller: str, argument: str, rule: str, value: object, error: type = ValueError
):
    """Returns the exception for an argument that breaks a rule."""
    return error(f"`{caller}`: `{argument}` {rule}; got {value!r}.")


def as_int(caller: str, argument: str, value: object, minimum: int) -> int:
    """Returns `value` as a Python int that is at least `minimum`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(cast(SupportsIndex, value))
    except Exception:  # a traced array raises an error of JAX's own here
        raise fail(caller, argument, "must be made of ints", value, TypeError) from None
    if number < minimum:
        raise fail(caller, argument, f"must be at least {minimum}", value)
    return number


def as_ints(
    caller: str, argument: str, value: object, length: int, minimum: int
) -> tuple[int, ...]:
    """Returns `value` as `length` ints; a single int is repeated."""
    if not is_sequence(value):
        return (as_int(caller, argument, value, minimum),) * length
    entries = tuple(as_int(caller, argument, v, minimum) for v in cast(Iterable, value))
    if len(entries) != length:
        rule = f"must have {length} entries, one for each pooled axis"
        raise fail(caller, argument, rule, value)
    return entries


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
    given = cast(Iterable, axis if is_sequence(axis) else (axis,))
    axes = tuple(as_int(caller, "axis", a, -(2**63)) for a in given)
    if not axes:
        raise fail(caller, "axis", "must name at least one axis", axis)
    return axes


@dataclass(frozen=True)
class Window:
    """A pooling window, independent of any input: hashable, made of plain ints.

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
        dilation = as_ints(caller, "window_dilation", window_dilation, length, 1)
        if shape is None and set(dilation) != {1}:
            rule = "must be 1 where the window is the whole extent"
            raise fail(caller, "window_dilation", rule, window_dilation)
        if not isinstance(ceil_mode, bool):
            rule = "must be True or False"
            raise fail(caller, "ceil_mode", rule, ceil_mode, TypeError)
        return cls(
            shape=shape,
            strides=(1,) * length
            if strides is None
            else as_ints(caller, "strides", strides, length, 1),
            padding=_padding(caller, padding, shape, dilation, length),
            dilation=dilation,
            ceil_mode=ceil_mode,
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
    """Whether `value` can be iterated over (strings and 0-d arrays cannot)."""
    if isinstance(value, str):
        return False
    try:
        iter(cast(Iterable, value))
    except Exception:
        return False
    return True


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
        return as_ints(caller, "window_shape", value, len(axes), 1)
    shape = tuple(as_int(caller, "window_shape", k, 1) for k in value)
    if not shape:
        raise fail(caller, "window_shape", "must not be empty", value)
    return shape


def _padding(
    caller: str,
    value: Any,
    shape: tuple[int, ...] | None,
    dilation: tuple[int, ...],
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
    entries = tuple(value) if is_sequence(value) else (value,) * length
    if len(entries) != length:
        raise fail(caller, "padding", rule, value)
    pairs = []
    for entry in entries:
        if is_sequence(entry):
            pair = tuple(as_int(caller, "padding", p, 0) for p in entry)
            if len(pair) != 2:
                raise fail(caller, "padding", rule, value)
        else:
            pair = (as_int(caller, "padding", entry, 0),) * 2
        pairs.append(pair)
    if shape is None:
        if any(map(any, pairs)):
            rule = "must be 0 where the window is the whole extent"
            raise fail(caller, "padding", rule, value)
        return tuple(cast(Any, pairs))
    # A window that fits into the padding would pool nothing at all.
    for pair, k, d in zip(pairs, shape, dilation, strict=True):
        if max(pair) >= (span := (k - 1) * d + 1):
            rule = f"must be less than the window's extent, here {span}"
            raise fail(caller, "padding", rule, value)
    return tuple(cast(Any, pairs))
