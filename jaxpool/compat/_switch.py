"""Functions of another framework that run on jaxpool for a while, in place.

A switch exchanges the code of the framework's own function objects (`f.__code__`)
rather than the names that lead to them. So it reaches whoever holds one of them: a
module attribute, a name imported earlier, a `functools.partial` in a model built
earlier. Nothing has to be found, and nothing is missed.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType

import jax

__all__ = ["Switch", "Use", "check"]

Pairs = Mapping[FunctionType, FunctionType]


class Switch:
    """The framework's functions and their stand-ins, exchanged while anybody asks.

    Args:
      pairs: returns what stands in for each function, or raises where it knows better.
    """

    def __init__(self, pairs: Callable[[], Pairs]):
        self._pairs = pairs
        self._asking: set[Use] = set()
        self._theirs: dict[FunctionType, CodeType] = {}
        self._lock = threading.RLock()

    def use(self) -> "Use":
        """Switches on, until what this returns is restored."""
        return Use(self)

    def restore(self) -> None:
        """Switches off, whoever asked."""
        with self._lock:
            self._set(set())

    def ask(self, use: "Use", on: bool) -> None:
        """Adds or removes one of those for whom it is on."""
        with self._lock:
            self._set(self._asking | {use} if on else self._asking - {use})

    def _set(self, asking: "set[Use]") -> None:
        if asking and not self._theirs:
            pairs = self._pairs()  # raises before anything is changed
            self._theirs = {function: function.__code__ for function in pairs}
            for function, stand_in in pairs.items():
                function.__code__ = stand_in.__code__
            jax.clear_caches()
        elif not asking and self._theirs:
            for function, code in self._theirs.items():
                function.__code__ = code
            self._theirs = {}
            jax.clear_caches()
        self._asking = asking


class Use:
    """On from the start; off after `restore()`, or after the `with` block it opens."""

    def __init__(self, switch: Switch):
        self._switch = switch
        switch.ask(self, True)

    def restore(self) -> None:
        """Gives the framework its own functions back, unless others still ask."""
        self._switch.ask(self, False)

    def __enter__(self) -> "Use":
        self._switch.ask(self, True)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def check(function: object, stand_in: FunctionType) -> str | None:
    """Returns what keeps `stand_in` from taking the place of `function`, if anything.

    The stand-in runs among the globals of the other's module: it may name nothing but
    its arguments, builtins, and what it imports itself.
    """
    name = stand_in.__name__
    if function is None:
        return f"there is no `{name}`"
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        return f"`{name}` is not a plain function"
    if function.__code__.co_freevars:
        return f"`{name}` is a closure"
    theirs, ours = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (function, stand_in)
    )
    if theirs != ours:
        return f"`{name}` has other arguments: {inspect.signature(function)}"
    return None
