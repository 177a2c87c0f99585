"""What the modules of both Flax APIs share: their arguments, read off the op table."""

import inspect
from typing import Any

from jaxpool._core.op import PoolOp
from jaxpool._core.window import Window, as_flag

__all__ = ["arguments", "document", "freeze", "learned_shape", "validate"]


def arguments(op: PoolOp, *extra: tuple[str, Any]) -> inspect.Signature:
    """The constructor's arguments: the op's settings, then keyword-only `extra`."""
    # Sorted, as those by position come from two functions.
    own = sorted(op.settings.values(), key=lambda p: p.kind)
    if op.learned:
        features = (("features", None),) if op.per_channel else ()
        extra = (("trainable", True), *features, *extra)
    kind = inspect.Parameter.KEYWORD_ONLY
    own += [inspect.Parameter(name, kind, default=default) for name, default in extra]
    return inspect.Signature(own)


def document(op: PoolOp) -> str:
    """A module's docstring."""
    summary = (op.fn.__doc__ or "").partition("\n")[0]
    text = [summary, "", f"Calls :func:`jaxpool.{op.name}`, whose arguments it takes."]
    if op.learned:
        numbers = "as many numbers, or one a channel with `features=C`"
        text.append(
            f"Learns `{'`, `'.join(op.learned)}`, from the value given"
            f"{': ' + numbers if op.per_channel else ''}; fixed with `trainable=False`."
        )
    if op.learned_arrays:
        text.append(
            f"Learns the arrays of `{'`, `'.join(op.slots)}`, in float32; its own "
            "arguments, beyond the function's, say which, and how large they are."
        )
        text += ["", inspect.getdoc(op.learned_arrays) or ""]
    if op.takes_key:
        text.append(
            "Samples as the framework's `Dropout` does: with a key of the stream "
            "`rng_collection`, unless it is `deterministic`."
        )
    return "\n".join(text)


def freeze(value: Any) -> Any:
    """Returns lists as tuples: a module's configuration has to be hashable."""
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    return value


def validate(op: PoolOp, config: dict[str, Any]) -> None:
    """Raises for bad sizes when the module is built, not when it is called."""
    for name, setting in op.settings.items():
        if setting.annotation is bool:
            as_flag(op.module_name, name, config[name])
    op.weights_for(config)
    spec = {n for n in inspect.signature(Window.of).parameters if n != "caller"}
    if spec <= config.keys():
        Window.of(op.module_name, **{name: config[name] for name in spec})


def learned_shape(start: tuple[int, ...], features: int | None) -> tuple[int, ...]:
    """The shape of a learned argument whose first value has the shape `start`."""
    return start if features is None else (*start[:-1], features)
