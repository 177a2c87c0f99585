"""PyTorch's pooling modules, turned into Flax's: see :mod:`jaxpool.compat.torch`."""

import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpool._core.op import PoolOp
from jaxpool._core.window import fail, is_sequence
from jaxpool.compat._torch_functions import (
    Caller,
    fractional_max_pool2d,
    fractional_max_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
)

__all__ = ["convert"]


def convert(
    module: Any, *, framework: str = "nnx", channels_last: bool = False, **options: Any
) -> Any:
    """Turns a pooling module of PyTorch's into one of Flax's.

    All of `torch.nn`'s are known, by their class's name and their attributes, and
    `AvgPool2dSame` and `MaxPool2dSame` of timm. They become the module of `jaxpool.nnx`
    or `jaxpool.linen` that gives the same numbers (see `DIFFERENCES`):

      MaxPool, AdaptiveMaxPool     `MaxPool`, `AdaptiveMaxPool`, called with the array;
                                   with `return_indices=True` `MaxPoolWithArgmax` and
                                   `AdaptiveMaxPoolWithArgmax`, which return a pair
      AvgPool, AdaptiveAvgPool     `AvgPool`, `AdaptiveAvgPool`
      LPPool                       `LpPool`
      FractionalMaxPool            `FractionalMaxPool` or `FractionalMaxPoolWithArgmax`,
                                   which sample as the framework's `Dropout` does and
                                   take `samples=`, in the order of the axes
      MaxUnpool                    called with (values, indices) or (values, indices,
                                   output_size)

    `MaxUnpool`, `LPPool` of order -inf and `FractionalMaxPool` with `output_ratio` or
    `_random_samples` become modules that call the function of this file.

    Args:
      module: the PyTorch module.
      framework: `"nnx"` or `"linen"`.
      channels_last: whether the result takes `(N, ..., C)` instead of `(N, C, ...)`.
      **options: further arguments of the new module, such as `rngs=`.

    Returns:
      The module. A batch axis is optional.

    Raises:
      ValueError, TypeError: for another framework or class, or a bad configuration.
    """
    if framework not in ("nnx", "linen"):
        raise fail("convert", "framework", "must be 'nnx' or 'linen'", framework)
    name = type(module).__name__
    number = re.search("([123])d", name)
    family = re.sub("[123]d", "Nd", name, count=1)
    if not number or family not in _CONVERTERS:
        rule = f"must be a pooling module of PyTorch's ({', '.join(_CONVERTERS)})"
        raise fail("convert", "module", rule, name, TypeError)
    caller = Caller(name, int(number[1]))
    new, config = _CONVERTERS[family](caller, module)
    namespace = importlib.import_module(f"jaxpool.{framework}")
    if callable(new):
        op = _row(new, caller, channels_last)
        return namespace._module(op)(**config, **options)
    axes = tuple(a - channels_last for a in caller.axes)
    return getattr(namespace, new)(**config, axis=axes, **options)


Conversion = tuple[str | Callable[..., Any], dict[str, Any]]


def _windowed(caller: Caller, m: Any, padding: bool = True) -> dict[str, Any]:
    """The window of a module of PyTorch's."""
    kernel = caller.ints("kernel_size", m.kernel_size, 1, True)
    config = {"window_shape": kernel, "ceil_mode": m.ceil_mode}
    config["strides"] = (
        kernel if m.stride is None else caller.ints("stride", m.stride, 1, True)
    )
    if padding:
        config["padding"] = caller.ints("padding", m.padding, 0, True)
    return config


def _argmax(name: str, m: Any) -> str:
    return f"{name}WithArgmax" if m.return_indices else name


def _of_max_pool(caller: Caller, m: Any) -> Conversion:
    dilation = caller.ints("dilation", m.dilation, 1, True)
    config = {**_windowed(caller, m), "window_dilation": dilation}
    return _argmax("MaxPool", m), config


def _of_avg_pool(caller: Caller, m: Any) -> Conversion:
    divisor = getattr(m, "divisor_override", None)
    config = {"count_include_pad": m.count_include_pad, "divisor_override": divisor}
    return "AvgPool", {**_windowed(caller, m), **config}


def _of_same_pool(caller: Caller, m: Any) -> Conversion:
    """A pool of timm's, which pads as TensorFlow does before anything else."""
    of = _of_avg_pool if hasattr(m, "count_include_pad") else _of_max_pool
    name, config = of(caller, m)
    config |= {"padding": "SAME", "ceil_mode": False}
    if "count_include_pad" in config:
        config["count_include_pad"] = True
    return name, config


def _of_lp_pool(caller: Caller, m: Any) -> Conversion:
    p = float(m.norm_type)
    if p == -math.inf:
        function = (lp_pool1d, lp_pool2d, lp_pool3d)[caller.nd - 1]
        names = ("norm_type", "kernel_size", "stride", "ceil_mode")
        return function, {n: getattr(m, n) for n in names}
    return "LpPool", {**_windowed(caller, m, padding=False), "p": p}


def _of_adaptive_pool(name: str, caller: Caller, m: Any) -> Conversion:
    size = m.output_size if is_sequence(m.output_size) else (m.output_size,) * caller.nd
    name = _argmax(name, m) if hasattr(m, "return_indices") else name
    return name, {"output_shape": tuple(size)}


def _of_fractional_pool(caller: Caller, m: Any) -> Conversion:
    function = (fractional_max_pool2d, fractional_max_pool3d)[caller.nd - 2]
    names = ("kernel_size", "output_size", "output_ratio", "return_indices")
    samples = getattr(m, "_random_samples", None)
    if samples is not None:
        fixed = jnp.asarray(samples.detach().cpu().numpy())
        function = functools.partial(function, _random_samples=fixed)
    if samples is not None or m.output_size is None:
        return function, {n: getattr(m, n) for n in names}
    config = {"window_shape": tuple(m.kernel_size), "shared": False}
    name = _argmax("FractionalMaxPool", m)
    return name, {**config, "output_shape": tuple(m.output_size)}


def _of_max_unpool(caller: Caller, m: Any) -> Conversion:
    function = (max_unpool1d, max_unpool2d, max_unpool3d)[caller.nd - 1]
    names = ("kernel_size", "stride", "padding")
    return function, {n: getattr(m, n) for n in names}


_CONVERTERS: dict[str, Callable[[Caller, Any], Conversion]] = {
    "MaxPoolNd": _of_max_pool,
    "AvgPoolNd": _of_avg_pool,
    "MaxPoolNdSame": _of_same_pool,
    "AvgPoolNdSame": _of_same_pool,
    "LPPoolNd": _of_lp_pool,
    "AdaptiveMaxPoolNd": functools.partial(_of_adaptive_pool, "AdaptiveMaxPool"),
    "AdaptiveAvgPoolNd": functools.partial(_of_adaptive_pool, "AdaptiveAvgPool"),
    "FractionalMaxPoolNd": _of_fractional_pool,
    "MaxUnpoolNd": _of_max_unpool,
}


def _row(fn: Callable[..., Any], caller: Caller, channels_last: bool) -> PoolOp:
    """The row of an op for one of this file's functions, to make its module of."""
    at_call, first = ("input", "indices"), -1 - caller.nd

    def function(*inputs: Any, deterministic: bool = False, **named: Any) -> Any:
        named |= dict(zip((*at_call, "output_size"), inputs, strict=False))
        if channels_last:
            given = [n for n in at_call if n in named]
            named |= {n: jnp.moveaxis(named[n], -1, first) for n in given}
        if deterministic:  # windows as evenly spread as they can be
            x = named["input"]
            planes = (1, *x.shape[: -caller.nd])[-2:]
            half = jnp.full((*planes, caller.nd), 0.5, x.dtype)
            named |= {"_random_samples": half}
        y = fn(**named)
        if not channels_last:
            return y
        return jax.tree.map(lambda a: jnp.moveaxis(a, first, -1), y)

    parameters = inspect.signature(fn).parameters
    config = [p for n, p in parameters.items() if n not in ("_random_samples", "key")]
    setattr(function, "__signature__", inspect.Signature(config))  # noqa: B010
    function.__doc__ = fn.__doc__
    return PoolOp(
        name=caller.name,
        fn=function,
        family="compat",
        kind="other",
        inputs=(*at_call, "output_size")[: 3 if "indices" in parameters else 1],
        takes_key="key" in parameters and not isinstance(fn, functools.partial),
        camel=caller.name,
    )
