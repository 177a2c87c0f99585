"""Errors in the words of the framework whose call was made, and what differs."""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Difference", "speaking"]


class Difference(NamedTuple):
    """One deliberate difference from another framework, for the guide to porting.

    Attributes:
      what: the functions, or what is done with them.
      theirs: what the other framework does.
      ours: what jaxpool does.
      why: the reason, or the thread about it, where there is one.
    """

    what: str
    theirs: str
    ours: str
    why: str = ""


@contextlib.contextmanager
def speaking(caller: str, **words: str) -> Iterator[None]:
    """Renames, in errors of jaxpool, the function to `caller` and arguments as said.

    Every such error is "`function`: `argument` rule; got value.", and puts names, and
    nothing but names, between backquotes.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        match = re.fullmatch(r"`\w+`: (`.*)", str(error), re.DOTALL)
        if match is None:
            raise
        rule = re.sub(r"`(\w+)`", lambda m: f"`{words.get(m[1], m[1])}`", match[1])
        raise type(error)(f"`{caller}`: {rule}") from None
