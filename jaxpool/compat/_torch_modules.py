"""PyTorch's pooling modules, turned into Flax's: see :mod:`jaxpool.compat.torch`.

A row of `_CONVERTERS` reads a module's attributes and returns the name of the new class
or a function, and its arguments; `axis` among them is that of the module's own layout.
"""

import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxpool._core.op import PoolOp
from jaxpool._core.window import as_int, fail, is_sequence
from jaxpool._ops.blur import pad_border
from jaxpool._ops.rank import median_pool
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

    Modules are known by their class's name and their attributes: all of `torch.nn`'s,
    those of timm and kornia but for attention, and the blurs of antialiased-cnns. They
    become the module of `jaxpool.nnx` or `jaxpool.linen` that gives the same numbers
    (see `DIFFERENCES`):

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
      AvgPool2dSame, MaxPool2dSame `AvgPool`, `MaxPool`
      SelectAdaptivePool2d, FastAdaptive(Avg, Max, AvgMax, CatAvgMax)Pool
                                   `SelectAdaptivePool`
      Adaptive(Avg, CatAvg)MaxPool2d   `AdaptiveAvgmaxPool`, `AdaptiveCatavgmaxPool`
      LsePlus                      `GlobalLsePool`, learned where `r` requires gradients
      BlurPool, MaxBlurPool, EdgeAwareBlurPool   the same, of each library
      MedianPool2d, MedianBlur     called with the array

    `MaxUnpool`, `LPPool` of order -inf, `FractionalMaxPool` with `output_ratio` or
    `_random_samples`, and medians become modules that call a function.

    Args:
      module: the PyTorch module.
      framework: `"nnx"` or `"linen"`.
      channels_last: whether the result takes `(N, ..., C)` instead of `(N, C, ...)`.
        A module that takes channels last itself (timm's `input_fmt="NHWC"`) stays so.
      **options: further arguments of the new module, such as `rngs=`.

    Returns:
      The module. A batch axis is optional.

    Raises:
      ValueError, TypeError: for another framework or class, or a bad configuration.

    Example:
      >>> import jax.numpy as jnp
      >>> import torch
      >>> from jaxpool.compat.torch import convert
      >>> pool = convert(torch.nn.MaxPool2d(3, stride=2, padding=1))
      >>> type(pool).__name__, pool(jnp.ones((2, 3, 9, 9))).shape
      ('MaxPool', (2, 3, 5, 5))
    """
    if framework not in ("nnx", "linen"):
        raise fail("convert", "framework", "must be 'nnx' or 'linen'", framework)
    name = type(module).__name__
    number = re.search("([123])[dD]", name)
    family = re.sub("[123]([dD])", r"N\1", name, count=1)
    if family not in _CONVERTERS:
        rule = f"must be a pooling module of a known class ({', '.join(_CONVERTERS)})"
        raise fail("convert", "module", rule, name, TypeError)
    filter_rank = getattr(getattr(module, "filt", None), "ndim", 4)
    caller = Caller(name, int(number[1]) if number else filter_rank - 2)
    try:
        new, config = _CONVERTERS[family](caller, module)
    except AttributeError as error:
        rule = "must have the attributes of the class that its name stands for"
        raise fail("convert", "module", rule, error, TypeError) from None
    namespace = importlib.import_module(f"jaxpool.{framework}")
    if callable(new):
        op = _row(new, caller, channels_last)
        return namespace._module(op)(**config, **options)
    axes = config.pop("axis", caller.axes)
    if channels_last and axes[-1] == -1:
        if config.get("flatten") and set(config["output_shape"]) != {1}:
            rule = (
                "must be False where several places are flattened: in the other order "
                "they do not fit the weights behind them"
            )
            raise fail("convert", "channels_last", rule, channels_last)
        axes = tuple(a - 1 for a in axes)
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


def _of_select_pool(caller: Caller, m: Any) -> Conversion:
    """timm's pool by name: the module inside says which, and of which layout."""
    pool = getattr(m, "pool", m)  # a FastAdaptivePool stands for itself
    kind = re.search("(Fast|)Adaptive(.*)Pool", type(pool).__name__)
    flatten = getattr(pool, "flatten", type(m.flatten).__name__ == "Flatten")
    if kind is None:  # the identity
        config = {"pool_type": "", "output_shape": (None,) * caller.nd}
    elif kind[1]:
        dims = pool.dim if hasattr(pool, "dim") else pool.dim_reduce
        axis = tuple(a - (dims[0] == 1) for a in range(-len(dims), 0))
        config = {"pool_type": f"fast{kind[2]}".lower(), "axis": axis}
        config["output_shape"] = (1,) * len(dims)
    else:
        _, config = _of_adaptive_pool("", caller, pool)
        config["pool_type"] = kind[2].lower()
    return "SelectAdaptivePool", {**config, "flatten": flatten}


def _of_lse_pool(caller: Caller, m: Any) -> Conversion:
    """timm's: of tokens `(N, L, C)` in 1 dimension."""
    config = {"r": float(m.r.detach()), "trainable": m.r.requires_grad}
    if caller.nd == 1:
        return "GlobalLsePool", {**config, "axis": (-2,)}
    return "GlobalLsePool", {**config, "keepdims": not m.flatten}


_BORDERS = {
    "refl": "reflect",
    "repl": "edge",
    "circ": "wrap",
    "cons": "constant",
    "zero": "constant",
}


def _border(caller: Caller, argument: str, word: str) -> str:
    """What jaxpool calls PyTorch's mode of padding, or its padding module."""
    if word[:4].lower() not in _BORDERS:
        rule = "must be 'reflect', 'replicate', 'circular', 'constant' or 'zero'"
        raise fail(caller.name, argument, rule, word)
    return _BORDERS[word[:4].lower()]


def _of_blur_pool(caller: Caller, m: Any) -> Conversion:
    """The blur of timm (`pad_mode`), antialiased-cnns (`pad_off`) or kornia."""
    convention, mode = "antialiased", "constant"
    size = m.filt_size if hasattr(m, "filt_size") else m.kernel_size
    if hasattr(m, "pad_mode"):
        convention, mode = "timm", _border(caller, "pad_mode", m.pad_mode)
    elif hasattr(m, "pad_off"):
        as_int(caller.name, "pad_off", m.pad_off, 0, 0)
        mode = _border(caller, "pad", type(m.pad).__name__)
    return "BlurPool", {
        "strides": caller.ints("stride", m.stride, 1),
        "filter_size": caller.ints("kernel_size", size, 1),
        "convention": convention,
        "mode": mode,
    }


def _of_max_blur_pool(caller: Caller, m: Any) -> Conversion:
    _, config = _of_blur_pool(caller, m)
    window = caller.ints("max_pool_size", m.max_pool_size, 1)
    return "MaxBlurPool", {"window_shape": window, **config}


def _of_edge_aware_pool(caller: Caller, m: Any) -> Conversion:
    return "EdgeAwareBlurPool", {
        "filter_size": caller.ints("kernel_size", m.kernel_size, 1),
        "edge_threshold": m.edge_threshold,
        "edge_dilation_kernel_size": m.edge_dilation_kernel_size,
    }


def padded_median2d(
    input: ArrayLike,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | None,
    border: str,
) -> jax.Array:
    """The lower median of windows over a padded input, whose padding takes part.

    `padding` is (left, right, top, bottom), or None for that of TensorFlow's SAME.
    """
    caller = Caller("MedianPool2d", 2)
    x = caller.array(input)
    if padding is None:
        pads = lax.padtype_to_pads(x.shape[-2:], kernel_size, stride, "SAME")
    else:
        pads = [padding[2:], padding[:2]]
    for axis, (low, high) in zip(caller.axes, pads, strict=True):
        x = pad_border(caller.name, x, axis, (low, high), border)
    return median_pool(x, kernel_size, stride, axis=caller.axes)


def _of_median_pool(caller: Caller, m: Any) -> Conversion:
    """timm's, of a reflected border, or kornia's, whose size stays."""
    if hasattr(m, "border_type"):
        kernel = caller.ints("kernel_size", m.kernel_size, 1)
        border = _border(caller, "border_type", m.border_type)
        (h, w), stride = ((k - 1) // 2 for k in kernel), (1, 1)
        padding = (w, w, h, h)
    else:
        kernel, stride, border = m.k, m.stride, "reflect"
        padding = None if m.same else m.padding
    window = {"kernel_size": kernel, "stride": stride}
    return padded_median2d, {**window, "padding": padding, "border": border}


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
    # timm
    "SelectAdaptivePoolNd": _of_select_pool,
    "FastAdaptiveAvgPool": _of_select_pool,
    "FastAdaptiveMaxPool": _of_select_pool,
    "FastAdaptiveAvgMaxPool": _of_select_pool,
    "FastAdaptiveCatAvgMaxPool": _of_select_pool,
    "AdaptiveAvgMaxPoolNd": functools.partial(_of_adaptive_pool, "AdaptiveAvgmaxPool"),
    "AdaptiveCatAvgMaxPoolNd": functools.partial(
        _of_adaptive_pool, "AdaptiveCatavgmaxPool"
    ),
    "LsePlusNd": _of_lse_pool,
    "MedianPoolNd": _of_median_pool,
    "BlurPoolNd": _of_blur_pool,
    # kornia, and antialiased-cnns
    "BlurPool": _of_blur_pool,
    "BlurPoolND": _of_blur_pool,
    "MaxBlurPoolND": _of_max_blur_pool,
    "EdgeAwareBlurPoolND": _of_edge_aware_pool,
    "MedianBlur": _of_median_pool,
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
