"""What a comparison was asked to do, checked before anything runs."""

import math
from dataclasses import asdict, dataclass
from typing import cast

import jax

from jaxpool._core import user_code
from jaxpool._core.window import fail

__all__ = ["MODELS", "Settings", "UserError", "check", "check_count"]

MODELS = {"small": (8, 16), "medium": (32, 64), "large": (64, 128, 256)}
"""Channels of each convolution block, by model name."""


class UserError(user_code.UserError):
    """A request that breaks a rule; the command prints it without a traceback."""


def check(
    holds: bool, argument: str, rule: str, value: object, caller: str = "compare"
) -> None:
    """Raises `UserError` unless `holds`."""
    if not holds:
        raise fail(caller, argument, rule, value, UserError)


def check_count(argument: str, value: object) -> None:
    """Raises `UserError` unless `value` is an int of at least 1."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    check(whole, argument, "must be an int", value)
    check(cast(int, value) >= 1, argument, "must be at least 1", value)


@dataclass(frozen=True)
class Settings:
    """What every method of one comparison shares; a resumed one must share it too.

    Attributes:
      data: the data set's name, as `jaxpool.compare.data.load` takes it.
      model: a key of `MODELS`.
      epochs: passes over the training images.
      batch: images in one step, over all devices together.
      lr: the learning rate's peak.
      size: height and width that images are brought to, None to leave them.
    """

    data: str
    model: str
    epochs: int
    batch: int
    lr: float
    size: int | None = None

    def __post_init__(self):
        """Raises `UserError` for a value that breaks a rule."""
        models = f"must be one of {', '.join(MODELS)}"
        check(self.model in MODELS, "model", models, self.model)
        check_count("epochs", self.epochs)
        check_count("batch", self.batch)
        devices = jax.device_count()
        divisible = f"must be divisible by the number of devices, {devices}"
        check(self.batch % devices == 0, "batch", divisible, self.batch)
        positive = math.isfinite(self.lr) and self.lr > 0
        check(positive, "lr", "must be positive and finite", self.lr)
        if self.size is not None:
            check_count("size", self.size)

    def summary(self) -> dict[str, object]:
        """Returns what was set, for results.json."""
        return {key: value for key, value in asdict(self).items() if value is not None}
