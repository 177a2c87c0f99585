"""Functions and methods that run a stand-in for a while, in place.

A switch exchanges the code of function objects (`f.__code__`) rather than the names
that lead to them. So it reaches whoever holds one of them: a module attribute, a name
imported earlier, a `functools.partial` in a model built earlier. Nothing has to be
found, and nothing is missed. Of a class it exchanges `__call__`.

All exchanges of the process are in one list. Whatever the order in which they begin and
end, in whichever threads, each function runs the stand-in of the uppermost one that is
on, and its own code when there is none.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import jax

__all__ = ["Switch", "Use", "check", "observed"]

Pairs = Mapping[Any, Callable[..., Any]]
Place = tuple[Any, str]
"""An object, and the attribute of it that is exchanged."""

_lock = threading.RLock()
_on: "list[Use]" = []  # the uppermost last
_own: dict[Place, Any] = {}  # what was there before the first of them
_NOTHING = object()


class Switch:
    """Functions or classes and their stand-ins, exchanged while anybody asks.

    Args:
      pairs: returns what stands in for each, or raises where it knows better.
      observes: whether the stand-ins look on, and run what they stand in for (see
        `observed`). They lie above all others, and JAX forgets nothing when they turn.
    """

    def __init__(self, pairs: Callable[[], Pairs], observes: bool = False):
        self.pairs = pairs
        self.observes = observes

    def use(self) -> "Use":
        """Switches on, until what this returns is restored."""
        return Use(self)

    def restore(self) -> None:
        """Switches off, whoever asked."""
        with _lock:
            for use in [use for use in _on if use.switch is self]:
                use.restore()


class Use:
    """On from the start; off after `restore()`, or after the `with` block it opens."""

    def __init__(self, switch: Switch):
        self.switch = switch
        self.values: dict[Place, Any] = {}
        self._entered = 0
        self._turn_on()

    def restore(self) -> None:
        """Gives functions back what they run without this one."""
        with _lock:
            if self in _on:
                _on.remove(self)
                self._settle()

    def __enter__(self) -> "Use":
        with _lock:
            self._turn_on()
            self._entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            self._entered -= 1
            if not self._entered:
                self.restore()

    def _turn_on(self) -> None:
        with _lock:
            if self in _on:
                return
            pairs = self.switch.pairs()  # raises before anything is changed
            self.values = {}
            for old, new in pairs.items():
                self.values.update(_places(old, new))
            _on.append(self)
            _on.sort(key=lambda use: use.switch.observes)
            self._settle()

    def _settle(self) -> None:
        """Puts into place what is now uppermost, wherever this one changed that."""
        for place in self.values:
            owner, name = place
            now = vars(owner).get(name, getattr(owner, name, _NOTHING))
            _own.setdefault(place, now)
            over = [use.values[place] for use in _on if place in use.values]
            value = over[-1] if over else _own.pop(place)
            if value is _NOTHING:
                delattr(owner, name)
            elif value is not now:
                setattr(owner, name, value)
        alone = not any(u.switch is self.switch and u is not self for u in _on)
        if alone and not self.switch.observes:
            jax.clear_caches()


def _places(old: Any, new: Any) -> dict[Place, Any]:
    """Where a function or a class shows its stand-in."""
    if isinstance(old, type):
        return {(old, "__call__"): new}
    signature = inspect.signature(old)  # the stand-in may take anything
    return {(old, "__code__"): new.__code__, (old, "__signature__"): signature}


def observed(function: FunctionType) -> FunctionType:
    """A function that runs what `function` would if nobody looked on."""
    place = (function, "__code__")
    with _lock:
        below = [u for u in _on if place in u.values and not u.switch.observes]
        own = _own.get(place, function.__code__)
        code = below[-1].values[place] if below else own
    run = FunctionType(
        code,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    run.__kwdefaults__ = function.__kwdefaults__
    return run


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
