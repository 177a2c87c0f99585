"""What a value read from a file has to look like."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = [
    "AMOUNT",
    "ANYTHING",
    "COUNT",
    "FLAG",
    "NUMBER",
    "POSITIVE",
    "SHARE",
    "TEXT",
    "TEXTS",
    "Form",
    "Leaf",
    "conform",
    "either",
    "one_of",
    "optional",
]


class Leaf(NamedTuple):
    """A value without parts: what it must be, in words and as a test."""

    rule: str
    holds: Callable[[Any], bool]


Form = Leaf | list[Any] | Mapping[str, Any]
"""A leaf; a list with the form of all elements; or a mapping with the form of each key
that must be there (with a ? behind its name, may be), or of all keys, under "".
"""


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float)


def _is_amount(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 2**63


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


ANYTHING = Leaf("anything", lambda value: True)
TEXT = Leaf("text", lambda value: isinstance(value, str))
TEXTS = Leaf("a list of texts", _are_texts)
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
NUMBER = Leaf("a number", _is_number)  # NaN is one: losses may become that
AMOUNT = Leaf("a number from 0 to 2**63", _is_amount)
POSITIVE = Leaf("a number above 0, to 2**63", lambda v: _is_amount(v) and v > 0)
COUNT = Leaf("an int from 0 to 2**63", lambda v: isinstance(v, int) and _is_amount(v))
SHARE = Leaf("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1)


def optional(leaf: Leaf) -> Leaf:
    """Returns a leaf that null fits too."""
    return Leaf(f"{leaf.rule} or null", lambda v: v is None or leaf.holds(v))


def either(*leaves: Leaf) -> Leaf:
    """Returns a leaf for what fits one of several."""
    rule = " or ".join(leaf.rule for leaf in leaves)
    return Leaf(rule, lambda value: any(leaf.holds(value) for leaf in leaves))


def one_of(*texts: str) -> Leaf:
    """Returns a leaf that these texts fit alone."""
    rule = f"one of {', '.join(texts)}"
    return Leaf(rule, lambda value: isinstance(value, str) and value in texts)


def conform(value: Any, form: Form, where: str = "") -> None:
    """Raises `ValueError` for a value that does not have a form, and says where."""

    def require(holds: bool, rule: str) -> None:
        if not holds:
            shown = repr(value)
            shown = shown if len(shown) < 60 else f"{shown[:60]}…"
            raise ValueError(f"{where or 'it'} must be {rule}; got {shown}")

    if isinstance(form, Leaf):
        require(form.holds(value), form.rule)
    elif isinstance(form, list):
        require(isinstance(value, list), "a list")
        for i, element in enumerate(value):
            conform(element, form[0], f"{where}[{i}]")
    else:
        require(isinstance(value, dict), "an object")
        prefix = f"{where}." if where else ""
        if "" in form:
            for name, part in value.items():
                conform(part, form[""], prefix + name)
            return
        for key, inner in form.items():
            name = key.removesuffix("?")
            if name in value:
                conform(value[name], inner, prefix + name)
            elif name == key:
                raise ValueError(f"{where or 'it'} lacks {name}")
