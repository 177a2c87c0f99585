"""Learned arrays by name: their shapes, and what they start from.

Names are those of `_ops/attention.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import ArrayLike

from jaxpool._core.arguments import as_array
from jaxpool._core.op import Weight
from jaxpool._core.window import as_int, fail

__all__ = [
    "SHAPES",
    "Initializer",
    "entry",
    "fan_in_uniform",
    "fit_shapes",
    "fuse",
    "layer_norm_weights",
    "module_size",
    "module_sizes",
    "projections",
    "read_params",
    "scaled_normal",
    "sized",
    "uniform",
    "xavier_uniform",
    "zeros",
]

Initializer = Callable[..., Any]
# The axes of each array; equal letters are equal sizes.
SHAPES = {
    "query": "e|qe",
    "q_kernel": "ed",
    "q_bias": "d",
    "k_kernel": "cd",
    "k_bias": "d",
    "v_kernel": "cd",
    "v_bias": "d",
    "out_kernel": "df",
    "out_bias": "f",
    "q_norm_scale": "h",
    "q_norm_bias": "h",
    "k_norm_scale": "h",
    "k_norm_bias": "h",
    "token_norm_scale": "c",
    "token_norm_bias": "c",
    "cls_token": "c",
    "positions": "pc",
    "norm_scale": "f",
    "norm_bias": "f",
    "mlp_in_kernel": "fm",
    "mlp_in_bias": "m",
    "mlp_out_kernel": "mf",
    "mlp_out_bias": "f",
    "attended_norm_scale": "d",
    "attended_norm_bias": "d",
    "ffn_kernel": "dd",
    "ffn_bias": "d",
    "ffn_norm_scale": "d",
    "ffn_norm_bias": "d",
}


def module_sizes(
    caller: str,
    features: int,
    num_heads: int,
    embed_features: int | None = None,
    out_features: int | None = None,
) -> dict[str, Any]:
    """The size of each letter of `SHAPES`, as a module's arguments say."""
    features = as_int(caller, "features", features, 1)
    embed = module_size(caller, "embed_features", embed_features, features)
    num_heads = as_int(caller, "num_heads", num_heads, 1)
    if embed % num_heads:
        rule = f"must divide the {embed} channels of the keys"
        raise fail(caller, "num_heads", rule, num_heads)
    out = features
    if out_features is not None:
        out = as_int(caller, "out_features", out_features, 0) or None
    head = embed // num_heads
    return {"c": features, "d": embed, "e": features, "f": out, "h": head}


def module_size(
    caller: str, argument: str, value: int | None, default: Any = None
) -> Any:
    return default if value is None else as_int(caller, argument, value, 1)


def sized(
    inits: Mapping[str, Initializer],
    sizes: Mapping[str, Any],
    letters: Mapping[str, str] = SHAPES,
) -> dict[str, Weight]:
    """The shape and the initialiser of each array."""
    weights = {}
    for name, initializer in inits.items():
        shapes = [[sizes[a] for a in option] for option in letters[name].split("|")]
        weights[name] = (
            next(tuple(s) for s in shapes[::-1] if None not in s),
            initializer,
        )
    return weights


def fuse(weights: dict[str, Weight]) -> dict[str, Weight]:
    """The same with queries', keys' and values' arrays as one, along the last axis."""
    fused, rest = {}, {}
    for name, ((*lead, last), initializer) in weights.items():
        if name[:2] == "q_":
            fused[f"qkv_{name[2:]}"] = (*lead, 3 * last), initializer
        elif name[:2] not in ("k_", "v_"):
            rest[name] = (*lead, last), initializer
    return {**fused, **rest}


def projections(
    names: Sequence[str],
    kernel: Callable[[int], Initializer],
    bias: Callable[[int], Initializer],
    sizes: Mapping[str, Any],
    use_bias: bool = True,
) -> dict[str, Initializer]:
    """The initialisers of projections, given those for n features to act on."""
    inits = {}
    for name in names:
        n, to = (sizes[letter] for letter in SHAPES[f"{name}_kernel"])
        if to is not None:
            inits[f"{name}_kernel"] = kernel(n)
            if use_bias:
                inits[f"{name}_bias"] = bias(n)
    return inits


def layer_norm_weights(name: str) -> dict[str, Initializer]:
    return {f"{name}_scale": initializers.ones, f"{name}_bias": initializers.zeros}


def uniform(bound: float) -> Initializer:
    def initializer(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initializer


def fan_in_uniform(n: int) -> Initializer:
    return uniform(n**-0.5)


def scaled_normal(n: int) -> Initializer:
    return initializers.normal(n**-0.5)


def xavier_uniform(n: int) -> Initializer:
    return initializers.xavier_uniform()


def zeros(n: int) -> Initializer:
    return initializers.zeros


def read_params(
    caller: str, params: Mapping[str, ArrayLike], needs: Sequence[str]
) -> dict[str, jax.Array]:
    """Returns the floating arrays in `params`, with those that it needs."""
    if not isinstance(params, Mapping):
        rule = "must be a mapping of arrays by name"
        raise fail(caller, "params", rule, type(params), TypeError)
    for name in needs:
        if name not in params:
            raise fail(caller, "params", f"must have `{name}`", sorted(params))
    given = {n: as_array(caller, a, entry(n)) for n, a in params.items()}
    for name, array in given.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            rule = "must be floating"
            raise fail(caller, entry(name), rule, array.dtype, TypeError)
    return given


def fit_shapes(
    caller: str,
    given: Mapping[str, jax.Array],
    shapes: Mapping[str, str],
    sizes: Mapping[str, int],
) -> dict[str, int]:
    """Returns the size of each letter, if all arrays are known and fit together."""
    sizes = dict(sizes)
    if unknown := sorted(set(given) - set(shapes)):
        rule = f"must have no other names than {', '.join(shapes)}"
        raise fail(caller, "params", rule, unknown)
    for name, letters in shapes.items():
        if name in given:
            shape = given[name].shape
            options = [s for s in letters.split("|") if len(s) == len(shape)]
            for letter, n in zip(options[0] if options else "", shape, strict=False):
                sizes.setdefault(letter, n)
            if shape not in [tuple(sizes[a] for a in s) for s in options]:
                full = letters.split("|")[-1]
                wanted = [str(sizes.get(a, a.upper())) for a in full]
                rule = f"must have the shape ({', '.join(wanted)})"
                raise fail(caller, entry(name), rule, shape)
    return sizes


def entry(name: str) -> str:
    return f'params["{name}"]'
