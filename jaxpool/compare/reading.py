"""What reading images of any kind needs."""

import os

import numpy as np

from jaxpool.compare.settings import UserError

__all__ = ["first_line", "memory", "missing", "split"]


def missing(name: str, package: str, extra: str) -> UserError:
    """Returns the error for a data set whose package is not installed."""
    return UserError(
        f"`compare`: `data` {name} needs the package {package}: "
        f"pip install 'jaxpool[{extra}]'"
    )


def split(x: np.ndarray, y: np.ndarray, test_size: int) -> dict[str, np.ndarray]:
    """Splits at random, with each class's share kept; the same split every time.

    Returns:
      `x_train`, `y_train`, `x_test` and `y_test`.
    """
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(x)), test_size=test_size, stratify=y, random_state=0
    )
    return {
        "x_train": x[train],
        "y_train": y[train],
        "x_test": x[test],
        "y_test": y[test],
    }


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, or its name."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].strip()


def memory() -> int:
    """Returns the bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows does not tell
        return 2**63
