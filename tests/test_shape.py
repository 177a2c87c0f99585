"""`jaxpool.explain` and `jaxpool shape`: against what changes when inputs do."""

import functools
import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool.__main__ import main
from jaxpool._core.op import OPS
from jaxpool.explain import explain, explain_chain, memory
from jaxpool.explain.calls import Recorder
from jaxpool.explain.chain import as_program, parse
from jaxpool.explain.programs import Program
from jaxpool.explain.trace import trace

# What is seen, against what changes a result.


def seen_by(function, shape, axis):
    """Whether output o changes with inputs i along `axis`: bool [o, i], by trying."""
    n = shape[axis]
    x = jax.random.uniform(jax.random.key(3), shape, minval=1.0, maxval=2.0)
    at = jnp.arange(n).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    function = jax.jit(function)
    results = [function(x)]
    for i, change in itertools.product(range(n), (100.0, -100.0)):
        results.append(function(jnp.where(at == i, x + change, x)))
    y, *others = map(np.asarray, results)
    rest = tuple(a for a in range(y.ndim) if a != axis)
    changed = np.stack([(other != y).any(rest) for other in others], 1)
    return changed[:, ::2] | changed[:, 1::2]


def spans_of(function, shape, axis):
    """First and last input that each output is said to see along `axis`."""

    def run(recorder, weights, rest, x):
        with recorder.recording():
            return function(x)

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = trace(Program(run), x, [axis])
    assert traced.error is None
    field = traced.result.fields[0]
    out = traced.shape[axis]
    first, last = (np.broadcast_to(b, (out,)) for b in field.bounds)
    return first, last, traced.result.rough


def hull(changed):
    """First and last True of each row; (n, -1) without any."""
    n = changed.shape[1]
    none = ~changed.any(1)
    first, last = changed.argmax(1), n - 1 - changed[:, ::-1].argmax(1)
    return np.where(none, n, first), np.where(none, -1, last)


def conv(x, size, strides=1, padding="SAME", dilation=1, up=1):
    kernel = jnp.ones((*size, x.shape[-1], 2)) / 7
    strides, dilation, up = (
        (n, n) if isinstance(n, int) else n for n in (strides, dilation, up)
    )
    letters = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, up, dilation, dimension_numbers=letters
    )


def residual(x):
    y = conv(conv(x, (3, 3), 2), (3, 3))
    return y + conv(x, (1, 1), 2)


def attention(x):
    x = conv(x, (3, 1))
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    tokens = tokens + jax.nn.softmax(tokens @ tokens.mT) @ tokens
    return tokens.reshape(x.shape)


def unet(x):
    a = conv(x, (3, 3))
    b = jaxpool.max_pool(a, (2, 2), strides=(2, 2))
    b = conv(b, (3, 3), dilation=2)
    b = b.repeat(2, axis=1).repeat(2, axis=2)
    return conv(jnp.concatenate([a[:, : b.shape[1], : b.shape[2]], b], -1), (3, 3))


def squeeze_excite(x):
    return conv(x, (3, 3)) * x.mean((1, 2), keepdims=True)


def scanned(x):
    def body(x, _):
        return jaxpool.avg_pool(x, (3, 3), padding="SAME"), None

    return lax.scan(body, x, length=3)[0]


def pool(name, *args, **kwargs):
    return functools.partial(getattr(jaxpool, name), None, *args, **kwargs)


PROGRAMS = {
    "valid": lambda x: conv(conv(x, (3, 2), 2, "VALID"), (2, 3), 1, "VALID", (2, 1)),
    "same": lambda x: conv(conv(x, (7, 5), 2), (3, 3), 2),
    "pads": lambda x: conv(x, (2, 3), 1, [(1, 0), (0, 2)], 2),
    "transposed": lambda x: conv(x, (3, 3), 1, [(2, 2), (1, 1)], up=(2, 3)),
    "cropped": lambda x: conv(x, (3, 3), 1, [(-1, 0), (0, -2)]),
    "max same": lambda x: jaxpool.max_pool(conv(x, (3, 3)), (3, 3), (2, 2), "SAME"),
    "max ceil": lambda x: jaxpool.max_pool(x, (3, 3), (2, 3), 1, ceil_mode=True),
    "dilated": lambda x: jaxpool.avg_pool(x, (3, 2), (1, 2), 1, window_dilation=(2, 3)),
    "flax": lambda x: nn.max_pool(nn.max_pool(x, (3, 3), (2, 2), "SAME"), (2, 3)),
    "residual": residual,
    "unet": unet,
    "attention": attention,
    "squeeze": squeeze_excite,
    "scan": scanned,
    "remat": jax.checkpoint(residual),
    "jit": jax.jit(unet),
    "vmap": jax.vmap(lambda x: jaxpool.soft_pool(x, (3, 3), (2, 2))),
    "adaptive": lambda x: jaxpool.adaptive_avg_pool(conv(x, (3, 3)), (5, 4)),
    "adaptive max": lambda x: jaxpool.adaptive_max_pool(x, (5, 13)),
    "nearest": lambda x: jax.image.resize(x, (1, 18, 6, 2), "nearest"),
    "linear": lambda x: jax.image.resize(x, (1, 17, 22, 2), "linear", antialias=False),
    "flip": lambda x: jnp.flip(x, 1)[:, 2:, ::2],
    "roll": lambda x: conv(jnp.roll(x, 2, 1), (2, 2), 2),
    "wrap": lambda x: jnp.pad(x, ((0, 0), (2, 1), (1, 1), (0, 0)), "reflect"),
    "index": lambda x: x[:, jnp.array([0, 3, 3, 7])],
    "cumulate": lambda x: jnp.cumsum(conv(x, (2, 2)), 1)[:, ::2],
    "blocks": lambda x: x[:, :8, :8].reshape(1, 4, 2, 4, 2, 2).max((2, 4)),
    "shifted": lambda x: x[:, 1:] - x[:, :-1],
    "where": lambda x: jnp.where(x.sum((1, 2, 3)) > 0, x, 2 * x),
    "transpose": lambda x: conv(x.swapaxes(1, 2), (2, 3)).swapaxes(1, 2),
    "stack": lambda x: jnp.stack([x, conv(x, (3, 3))]).sum(0),
    "cond": lambda x: lax.cond(True, lambda x: conv(x, (3, 3)), lambda x: x * 1.5, x),
    "sort": lambda x: jnp.sort(conv(x, (1, 3)), axis=1),
    "spectral": lambda x: jaxpool.spectral_pool(x, (5, 4)),
    "update": lambda x: lax.dynamic_update_slice(
        jnp.zeros_like(x), x[:, :3], (0, 4, 0, 0)
    ),
}


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", PROGRAMS)
def test_sees_what_changes_the_result(name, axis):
    shape = (1, 9, 10, 2)
    first, last, rough = spans_of(PROGRAMS[name], shape, axis)
    truth = hull(seen_by(PROGRAMS[name], shape, axis))
    assert not rough
    if name == "cond":  # one branch was tried, both are meant
        assert ((first <= truth[0]) & (truth[1] <= last)).all()
        return
    none = truth[1] < 0
    assert ((first > last) == none).all()
    np.testing.assert_array_equal(first[~none], truth[0][~none])
    np.testing.assert_array_equal(last[~none], truth[1][~none])


def test_an_unknown_operation_is_an_upper_bound():
    def model(x):
        index = jnp.argmax(x.sum((0, 2, 3)))
        return lax.dynamic_slice_in_dim(x, index, 2, 1)

    explanation = explain(model, (1, 9, 9, 2))
    assert explanation.inexact == ("dynamic_slice",)
    assert not explanation.seen[0].exact
    assert "~ at most: dynamic_slice" in str(explanation)


def of_chain():
    """Texts of a layer of each op that a chain can hold."""
    for op, text in itertools.product(OPS.values(), ("{}:3/2", "{}:3", "{}:/2", "{}")):
        text = text.format(op.method)
        try:
            parse(text, 2)
        except ValueError:
            continue
        yield op, text


CHAIN = {op.name: text for op, text in reversed([*of_chain()])}
ONE_A_FAMILY = {op.family: op.name for op in OPS.values() if op.name in CHAIN}


@pytest.mark.parametrize(
    "name",
    [
        name
        if ONE_A_FAMILY[OPS[name].family] == name
        else pytest.param(name, marks=pytest.mark.full)
        for name in CHAIN
    ],
)
def test_every_op_sees_no_more_than_is_said(name):
    shape = (1, 8, 8, 4)
    steps = as_program([parse(CHAIN[name], 2)])

    def run(x):
        return steps.run(Recorder(marks=False), (), (), x)

    traced = trace(steps, jax.ShapeDtypeStruct(shape, jnp.float32), [1])
    assert traced.error is None
    field, y = traced.result.fields[0], jax.eval_shape(run, jnp.zeros(shape))
    assert traced.shape == y.shape
    if field.axis != 1:  # says that each sees the whole
        assert field.axis is None or len(y.shape) < 4
        return
    first, last = (np.broadcast_to(b, y.shape[1:2]) for b in field.bounds)
    truth = hull(seen_by(run, shape, 1))
    assert (first <= truth[0]).all()
    assert (truth[1] <= last).all()
    if OPS[name].kind in ("window", "adaptive") and not traced.result.rough:
        np.testing.assert_array_equal((first, last), truth)
