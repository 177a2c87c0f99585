"""One comparison in several processes: they act together, and the first one writes.

In a single process all of this is nothing.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from jaxpool.compare.settings import UserError

__all__ = ["is_first", "of_first", "together"]

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
    """Runs `action` in every process.

    Raises:
      UserError: in every process, if a file or a rule kept one of them from it: alone,
        it would leave the others waiting for it.
    """
    if jax.process_count() == 1:
        return action()
    result: Any = None
    message = ""
    try:
        result = action()
    except (UserError, OSError) as error:
        message = str(error) or type(error).__name__
    for process, report in enumerate(_of_all(message)):
        if report:
            raise UserError(f"in process {process}: {report}")
    return result


def of_first(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, which alone runs it, in all.

    It has to be something that JSON keeps as it is; errors are as in `together`.
    """
    if jax.process_count() == 1:
        return action()
    text = together(lambda: json.dumps(action()) if is_first() else "")
    return json.loads(_of_all(text)[0])


def _of_all(text: str) -> list[str]:
    """The text of each process, in each of them."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(process_allgather(np.int32(data.size)))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: data.size] = data
    rows = process_allgather(padded)
    return [bytes(r[:n]).decode() for r, n in zip(rows, sizes, strict=True)]
