"""`jaxpool.explain` and `jaxpool shape`: against what changes when inputs do."""

import contextlib
import doctest
import functools
import importlib
import itertools
import json
import random
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shape_page
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import linear_call
from jax.experimental import io_callback

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool.__main__ import main
from jaxpool._core.op import OPS
from jaxpool.explain import explain, explain_chain, fields, memory
from jaxpool.explain.calls import Recorder
from jaxpool.explain.chain import as_program, parse
from jaxpool.explain.programs import Program
from jaxpool.explain.trace import trace

# What is seen, against what changes a result.


def changes(function, shape, axes):
    """Whether each output changes with inputs i, by trying: of each axis [..., i]."""
    x = jax.random.uniform(jax.random.key(3), shape, minval=1.0, maxval=2.0)
    function = jax.jit(function)
    y = np.asarray(function(x))
    for axis in axes:
        at = jnp.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
        moved = [
            [function(jnp.where(at == i, x + by, x)) for by in (100.0, -100.0)]
            for i in range(shape[axis])
        ]
        yield np.stack([np.any(np.asarray(each) != y, 0) for each in moved], -1)


def seen_by(function, shape, axis):
    """Whether output o changes with inputs i, both along `axis`: bool [o, i]."""
    (values,) = changes(function, shape, [axis])
    return values.any(tuple(a for a in range(values.ndim - 1) if a != axis))


def traced_of(function, shape, axis):
    """The trace of a function, with what it is said to see along `axis`."""

    def run(recorder, weights, rest, x):
        with recorder.recording():
            return function(x)

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = trace(Program(run), x, [axis])
    assert traced.error is None
    return traced


def bounds_of(traced):
    """First and last input that each output is said to see."""
    (field,), shape = traced.result.fields, traced.shape
    along = [-1 if a == field.axis else 1 for a in range(len(shape))]
    return [np.broadcast_to(b.reshape(along), shape) for b in field.bounds]


def spans_of(function, shape, axis):
    """First and last input that outputs are said to see along the same axis."""
    traced = traced_of(function, shape, axis)
    assert traced.result.fields[0].axis in (axis, None)
    bounds = (np.moveaxis(b, axis, 0) for b in bounds_of(traced))
    return *(b.reshape(len(b), -1)[:, 0] for b in bounds), traced.result.rough


def hull(changed):
    """First and last True along the last axis; (n, -1) without any."""
    n = changed.shape[-1]
    none = ~changed.any(-1)
    first, last = changed.argmax(-1), n - 1 - changed[..., ::-1].argmax(-1)
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


# What may read anything, and what does not: more is said to be seen, never less.


def halved(x):
    """A step that sees its neighbours."""
    return jaxpool.avg_pool(x, (3, 3), padding="SAME") / 2


def counted(x):
    """A loop whose length alone depends on the input."""
    return lax.while_loop(
        lambda c: c[0] < x.sum(), lambda c: (c[0] + 1, c[1] + 1), (0.0, jnp.zeros(9))
    )[1]


def callback(run, **options):
    def function(x):
        flipped = lambda x: np.asarray(x)[:, ::-1, ::-1]  # noqa: E731
        return run(flipped, jax.ShapeDtypeStruct(x.shape, x.dtype), x, **options)

    return function


def remembered(x):
    """Two callbacks that exchange what JAX does not see."""
    held = []
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    write = lambda x: held.append(np.asarray(x)[:, ::-1, ::-1])  # noqa: E731
    io_callback(write, None, x, ordered=True)
    return io_callback(held.pop, shape, ordered=True)


def in_a_ref(x):
    ref = jax.new_ref(jnp.zeros_like(x))
    ref[...] = x[:, ::-1, ::-1]
    jax.jit(halved)(x)
    return ref[...]


def in_a_ref_elsewhere(x):
    ref = jax.new_ref(jnp.zeros_like(x))

    @jax.jit
    def write(x):
        ref[0, 1:] = x[0, :-1]

    write(x)
    return ref[...] + 1


def square_of(x):
    """A well-conditioned matrix of the input."""
    x = x[0, ..., 0] @ x[0, ..., 0].mT
    return x / 100 + 9 * jnp.eye(len(x))


def solved(**options):
    return lambda x: lax.linalg.triangular_solve(
        jnp.eye(9) + jnp.tri(9), x[0, ..., 0], left_side=True, lower=True, **options
    )


def root(x):
    solve = lambda g, y: y / g(jnp.ones_like(y))  # noqa: E731
    newton = lambda f, z: z - f(z) / 3  # noqa: E731
    return lax.custom_root(lambda y: 3 * y - halved(x), x, newton, solve)


@jax.custom_jvp
def with_a_tangent(x):
    return halved(x)


with_a_tangent.defjvp(lambda x, dx: (halved(*x), halved(*dx)))


@jax.custom_vjp
def with_a_cotangent(x):
    return halved(x)


with_a_cotangent.defvjp(lambda x: (halved(x), None), lambda _, g: (halved(g),))


@custom_vmap
def with_a_batch(x):
    return halved(x)


def reduced(x):
    add = lambda a, b: (a[0] + b[0], a[1] * b[1])  # noqa: E731
    return lax.reduce((x, x), (jnp.float32(0), jnp.float32(1)), add, (0, 3))[1]


def windows(x, **options):
    """Windows of a function that XLA knows by no name."""
    largest = lambda a, b: lax.max(a, b) + 0  # noqa: E731
    sizes = (1, 3, 2, 1), (1, 1, 2, 1), "VALID"
    return lax.reduce_window(x, -jnp.inf, largest, *sizes, **options)


def pulled(function):
    """The pull-back along a function at 1, ..., n, as a function of a cotangent."""

    def run(x):
        at = jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
        _, pull = jax.vjp(function, at)
        return pull(x)[0]

    return run


def pooled_by_xla(x, step=lax.max, start=-jnp.inf):
    sizes = (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    return lax.reduce_window(x, start, step, *sizes)


def spread(run):
    """`run` on two devices, the columns split between them."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    spec = jax.sharding.PartitionSpec(None, None, "d")
    return lambda x: jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)(x)


def grouped(**options):
    def run(x):
        kernel = jnp.ones((3, 2, 2 if "batch_group_count" in options else 1, 2))
        letters = ("NHWC", "HWIO", "NHWC")
        if "batch_group_count" in options:
            x = jnp.concatenate([x, x])
        pads = [(1, 1), (0, 1)]
        return lax.conv_general_dilated(
            x, kernel, (1, 2), pads, dimension_numbers=letters, **options
        )

    return run


def gathered(x):
    """Rows from a table, all of the columns but the last, each from the first."""
    numbers = lax.GatherDimensionNumbers((1, 2, 3), (1,), (1,))
    return lax.gather(x, jnp.array([[3], [1]]), numbers, (1, 1, 9, 2))


def found(x):
    return jnp.argmax(x.sum((0, 2, 3)))


rows = jnp.array([0, 3, 7])
ANYTHING = {
    "while": lambda x: lax.while_loop(lambda x: x.sum() > 9, halved, x),
    "while counted": counted,
    "for": lambda x: lax.fori_loop(0, found(x), lambda _, x: halved(x), x),
    "scan": jax.vmap(lambda x: scanned(x[None])[0]),
    "scan carries": lambda x: lax.scan(
        lambda s, row: (s + row, s), x[:, 0], x.swapaxes(0, 1)
    )[1],
    "associative scan": lambda x: lax.associative_scan(jnp.add, x, axis=1),
    "cond": lambda x: lax.cond(x.sum() > 9, halved, lambda x: x[:, ::-1], x),
    "switch": lambda x: lax.switch(found(x) % 2, [halved, lambda x: x], x),
    "pure_callback": callback(jax.pure_callback),
    "vmapped callback": jax.vmap(
        lambda x: callback(jax.pure_callback, vmap_method="expand_dims")(x[None])[0]
    ),
    "io_callback": callback(io_callback),
    "callbacks": remembered,
    "ref": in_a_ref,
    "ref elsewhere": in_a_ref_elsewhere,
    "triangular_solve": solved(),
    "triangular_solve of a transpose": solved(transpose_a=True),
    "cholesky": lambda x: jnp.linalg.cholesky(square_of(x)),
    "eigh": lambda x: jnp.linalg.eigh(square_of(x))[0],
    "qr": lambda x: jnp.linalg.qr(square_of(x))[0],
    "lu": lambda x: jax.scipy.linalg.lu_factor(square_of(x))[0],
    "svd": lambda x: jnp.linalg.svd(square_of(x), compute_uv=False),
    "inv": lambda x: jnp.linalg.inv(square_of(x)),
    "tridiagonal": lambda x: lax.linalg.tridiagonal_solve(
        jnp.ones(9), 4 * jnp.ones(9), jnp.ones(9), x[0, ..., 0]
    ),
    "linear solve": lambda x: lax.custom_linear_solve(
        lambda y: 2 * y, x, lambda _, b: b[:, ::-1] / 2, symmetric=True
    ),
    "root": root,
    "custom_jvp": with_a_tangent,
    "custom_vjp": with_a_cotangent,
    "linear_call": lambda x: linear_call(
        lambda _, x: halved(x), lambda _, x: halved(x), (), x
    ),
    "composite": lambda x: lax.composite(halved, "house.halved")(x),
    "exported": lambda x: jax.export.export(jax.jit(halved))(
        jax.ShapeDtypeStruct((1, 9, 10, 2), jnp.float32)
    ).call(x),
    "shard_map": spread(lambda x: x + lax.psum(x, "d")),
    "neighbours": spread(lambda x: lax.ppermute(x, "d", [(0, 1), (1, 0)])),
    "argsort": lambda x: jnp.argsort(x, axis=1),
    "sort of pairs": lambda x: lax.sort((x, x[:, ::-1]), dimension=2)[1],
    "top_k": lambda x: lax.top_k(x.swapaxes(1, 3), 3)[0].swapaxes(1, 3),
    "approx top_k": lambda x: lax.approx_max_k(x, 3, reduction_dimension=1)[0],
    "cumulate back": lambda x: lax.cumsum(x, 1, reverse=True),
    "cumprod": lambda x: lax.cumprod(x / 50, 1),
    "cummax": lambda x: lax.cummax(x, 2),
    "cummin": lambda x: lax.cummin(x, 1, reverse=True),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x / 50, 1),
    "fft": lambda x: jnp.abs(jnp.fft.fft(x, axis=2)),
    "rfft": lambda x: jnp.abs(jnp.fft.rfft2(x, axes=(1, 2))),
    "irfft": lambda x: jnp.fft.irfft(lax.complex(x, x), axis=1),
    "depthwise": grouped(feature_group_count=2),
    "grouped batch": grouped(batch_group_count=2),
    "dilated": grouped(rhs_dilation=(2, 1), lhs_dilation=(1, 2), feature_group_count=2),
    "kernel": lambda x: lax.conv_general_dilated(
        jnp.ones((1, 9, 9, 2)),
        x[0, :3, :3, :, None],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "gather": lambda x: x[:, rows, :][:, :, rows],
    "gather bytes": lambda x: jnp.tile(x, (1, 34, 1, 1))[:, rows.astype(jnp.uint8)],
    "gather in part": gathered,
    "gather pairs": lambda x: x[:, rows, rows],
    "gather in rows": lambda x: jnp.take_along_axis(x, rows[None, :, None, None], 1),
    "gather by value": lambda x: x[:, found(x) + jnp.arange(2)],
    "gather by values": lambda x: jnp.arange(9.0)[x.astype(int) % 9],
    "scatter into": lambda x: x.at[:, rows].set(0),
    "scatter": lambda x: jnp.zeros((1, 9, 10, 2)).at[:, rows].set(x[:, :3]),
    "scatter back": lambda x: jnp.zeros_like(x).at[:, 8 - jnp.arange(9)].set(x),
    "scatter add": lambda x: x.at[:, rows].add(x[:, 6:]),
    "scatter mul": lambda x: x.at[:, rows].multiply(x[:, 6:]),
    "scatter by value": lambda x: jnp.zeros((1, 9, 10, 2)).at[:, found(x)].set(1),
    "slice by value": lambda x: lax.dynamic_slice_in_dim(x, found(x), 2, 1),
    "slice": lambda x: lax.dynamic_slice_in_dim(x, jnp.int32(3), 2, 1),
    "update by value": lambda x: lax.dynamic_update_slice_in_dim(
        jnp.zeros_like(x), x[:, :2], found(x), 1
    ),
    "matmul": lambda x: x[0, ..., 0] @ x[0, ..., 1].mT,
    "matmul in a batch": lambda x: jnp.einsum("nhwc,nhdc->nhwd", x, x),
    "by a matrix": lambda x: jnp.einsum("nhwc,hk->nkwc", x, jnp.tri(9, 4)),
    "ragged": lambda x: lax.ragged_dot(
        x[0, ..., 0], jnp.ones((2, 10, 3)), jnp.array([4, 5])
    ),
    "noise": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "noise by value": lambda x: jax.random.normal(
        jax.random.key(x.sum().astype(int)), (9, 10)
    ),
    "noise by values": lambda x: jax.vmap(jax.random.uniform)(
        jax.vmap(jax.random.key)(x[0, ::-1, 0, 0].astype(int))
    ),
    "gamma": lambda x: jax.random.gamma(jax.random.key(0), jnp.abs(x) + 1),
    "gradient of max": pulled(lambda x: jaxpool.max_pool(x, (3, 3), padding="SAME")),
    "gradient of avg": pulled(lambda x: jaxpool.avg_pool(x, (3, 3), padding="SAME")),
    "gradient of soft": pulled(lambda x: jaxpool.soft_pool(x, (3, 3), padding="SAME")),
    "tangent of soft": lambda x: jax.jvp(
        lambda x: jaxpool.soft_pool(x, (3, 3), padding="SAME"), (x,), (x * x,)
    )[1],
    "gradient of XLA's": pulled(pooled_by_xla),
    "tangent of XLA's": lambda x: jax.jvp(pooled_by_xla, (x,), (x,))[1],
    "gradient of a conv": pulled(lambda x: conv(x, (3, 3))),
    "hessian": lambda x: jax.jvp(
        jax.grad(lambda x: (halved(x) ** 3).sum()), (x,), (x,)
    )[1],
    "reduce": reduced,
    "windows": windows,
    "windows between zeros": lambda x: windows(x, base_dilation=(1, 2, 3, 1)),
    "dilated windows": lambda x: windows(x, window_dilation=(1, 2, 3, 1)),
    "precision": lambda x: lax.reduce_precision(x, 8, 3),
    "bits": lambda x: lax.bitcast_convert_type(x, jnp.uint8),
    "bits together": lambda x: lax.bitcast_convert_type(
        x.astype(jnp.uint8)[..., ::-1], jnp.uint16
    ),
    "tile": lambda x: jnp.tile(x, (1, 2, 1, 1)),
    "unstack": lambda x: jnp.stack(jnp.unstack(x, axis=1)[::-2], 1),
    "unstack channels": lambda x: jnp.unstack(x, axis=3)[1],
    "split": lambda x: jnp.split(x, 3, 1)[1],
    "pad": lambda x: lax.pad(
        x, jnp.float32(0), ((0, 0, 0), (-1, 2, 1), (1, -3, 0), (0, 0, 0))
    ),
    "pad with it": lambda x: lax.pad(
        x, x.sum(), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0))
    ),
    "reduce bits": lambda x: jnp.bitwise_xor.reduce(x.astype(int), axis=2),
    "any": lambda x: (x > 9).any(1) | (x > 99).all(1),
    "argmax": lambda x: jnp.argmax(x, 1) + jnp.argmin(x, 1),
    "prod": lambda x: (x / 50).prod(1) + x.min(2, keepdims=True).max(1),
    "XLA's windows": lambda x: (
        pooled_by_xla(x, lax.min, jnp.inf) + pooled_by_xla(x, lax.add, 0.0)
    ),
    "scatter max": lambda x: x.at[:, rows].max(x[:, 6:]).at[:, 0].min(x[:, 5]),
    "onto the device": lambda x: jax.device_put([x, x[:, ::-1]])[1],
    "barrier": lambda x: lax.optimization_barrier((x, x[:, ::-1]))[0],
}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", ANYTHING)
def test_sees_no_more_than_is_said(name):
    shape, function = (1, 9, 10, 2), ANYTHING[name]
    for axis, values in zip((1, 2), changes(function, shape, (1, 2)), strict=True):
        traced = traced_of(function, shape, axis)
        start, end = hull(values)
        if traced.result is None:
            assert (end < 0).all()
            continue
        first, last = bounds_of(traced)
        assert ((end < start) | (first <= start) & (end <= last)).all()


# What an explanation calls an upper bound: everything, and by what name.
SAID = {
    "while": ("while",),
    "for": ("while",),
    "pure_callback": ("pure_callback",),
    "io_callback": ("io_callback",),
    "ref": ("get", "swap"),
    "triangular_solve": ("triangular_solve",),
    "linear solve": ("custom_linear_solve",),
    "exported": ("call_exported",),
    "shard_map": ("shard_map",),
    "gather by values": ("gather",),
    "slice by value": ("dynamic_slice",),
    "scatter back": ("scatter",),
    "gradient of XLA's": ("select_and_scatter_add",),
}


@pytest.mark.parametrize("name", SAID)
def test_what_may_read_anything_says_so(name):
    explanation = explain(ANYTHING[name], (1, 9, 10, 2), axis=1)
    assert explanation.inexact == SAID[name]
    (seen,) = explanation.seen
    assert (seen.first, seen.last, seen.exact) == (0, 8, False)
    assert f"~ at most: {', '.join(SAID[name])} may read" in str(explanation)


LAX = {
    "and": lax.bitwise_and,
    "convert_element_type": lambda x: lax.convert_element_type(x, jnp.int16),
    "bitcast_convert_type": lambda x: lax.bitcast_convert_type(x, jnp.int32),
    "integer_pow": lambda x: lax.integer_pow(x, 3),
    "name": lambda x: checkpoint_name(x, "here"),
    "not": lax.bitwise_not,
    "or": lax.bitwise_or,
    "polygamma": lambda x: lax.polygamma(jnp.ones_like(x), x),
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 3),
    "regularized_incomplete_beta": lambda x: lax.betainc(x, x, x / 9),
    "select_n": lambda x: lax.select_n(x > 2, x, -x),
    "clamp": lambda x: lax.clamp(x, x * 2, x * 3),
    "copy": jnp.copy,
    "xor": lax.bitwise_xor,
}
# Elsewhere than in `jax.lax`, or in some versions alone.
NOT_IN_LAX = (
    "add_any copy_p eq_to igamma_grad_a le_to lt_to mesh_cast mulhi reshard "
    "sharding_constraint stop_gradient"
).split()


@pytest.mark.parametrize("name", sorted({*fields.ELEMENTWISE} - {*NOT_IN_LAX}))
def test_elementwise_operations_are(name):
    function = LAX.get(name) or getattr(lax, name)
    for arity, dtype in itertools.product((1, 2, 3), ("float32", "int32", "complex64")):
        x = jnp.arange(1, 6).astype(dtype)
        with contextlib.suppress(TypeError, ValueError):
            y = function(*[x] * arity)
            run = lambda x, n=arity: function(*[x] * n)  # noqa: E731
            break
    assert f" {name}[" in f"{jax.make_jaxpr(run)(x)}".replace(f"{name} ", f"{name}[")
    for i in range(5):
        z = run(x.at[i].multiply(2))
        same = np.isclose(y, z, rtol=0, atol=0, equal_nan=True)
        assert same[np.arange(5) != i].all()


def of_chain():
    """Texts of a layer of each op that a chain can hold."""
    for op, text in itertools.product(OPS.values(), ("{}:3/2", "{}:3", "{}:/2", "{}")):
        text = text.format(op.method)
        try:
            parse(text, 2)
        except ValueError:
            continue
        yield op, text


def of_text(text):
    """The layer that a text stands for, as a function."""
    steps = as_program([parse(text, 2)])
    return lambda x: steps.run(Recorder(marks=False), (), (), x)


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
    steps, run = as_program([parse(CHAIN[name], 2)]), of_text(CHAIN[name])
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


def operations(jaxpr):
    """The names of operations in a program, and of those in what they run."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves([*eqn.params.values()]):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


def test_every_rule_is_tried():
    """Each rule about an operation that mixes elements has a program above."""
    programs, tried = [*PROGRAMS.values(), *ANYTHING.values()], set()
    chains = [of_text(text) for text in CHAIN.values()]
    shapes = [(1, 9, 10, 2)] * len(programs) + [(1, 8, 8, 4)] * len(chains)
    for function, shape in zip(programs + chains, shapes, strict=True):
        with jax.disable_jit():
            tried |= {*operations(jax.make_jaxpr(function)(jnp.ones(shape)).jaxpr)}
    in_other_versions = "copy stack tile unstack scatter_add scatter_max scatter_min "
    in_other_versions += "scatter_mul scatter_sub"
    untried = fields.RULES.keys() - fields.ELEMENTWISE - tried
    assert untried <= {*in_other_versions.split()}


# Windows, findings and mends.


def test_windows_of_a_layer():
    first, second = explain_chain((10, 11, 3), ["max:3/2:SAME", "avg:2/2"]).layers
    rows, columns = first.windows
    assert (rows.low, rows.high, rows.padded) == (0, 1, 1)
    assert (columns.low, columns.high, columns.padded) == (1, 1, 2)
    assert first.windows_padded == 5 * 6 - 4 * 4
    assert second.output_shape == (1, 2, 3, 3)
    assert [a.dropped for a in second.windows] == [1, 0]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_chain_has_the_shapes_of_its_functions(axes):
    window = {"window_shape": (3,) * axes, "strides": (2,) * axes, "padding": 1}
    x = jnp.ones((1, *(9, 12, 7)[:axes], 4))
    y = jaxpool.max_pool(x, **window)
    z = jaxpool.avg_pool(y, (2,) * axes, ceil_mode=True)
    found = explain_chain(x.shape[1:], ["max:3/2p1", "avg:2:ceil", "global_max"])
    shapes = [layer.output_shape for layer in found.layers]
    assert shapes == [y.shape, z.shape, (1, 4)]


def pairs():
    """Chains of two pools, drawn at random."""
    draw = random.Random(8)
    for op in ("max", "min", "avg", "sum"):
        for _ in range(12):
            texts = []
            for _ in range(2):
                window, stride = draw.randint(1, 3), draw.randint(1, 3)
                padding = draw.randint(0, 1) if op in ("max", "min") else 0
                padding = min(padding, window - 1)
                texts.append(f"{op}:{window}/{stride}p{padding}")
            yield draw.randint(7, 13), op, texts
    yield 8, "avg", ["avg:2/2p0", "avg:2/2p0"]
    yield 9, "sum", ["sum:2/2p0", "sum:3/3p0"]
    yield 5, "max", ["max:2/2", "max:3p1"]  # the last element is lost
    yield 6, "max", ["max:2/2", "max:3p1"]


def test_pools_in_a_row_are_the_one_that_is_said():
    told = 0
    for size, op, texts in pairs():
        explanation = explain_chain((size, 2), texts)
        row = [f for f in explanation.findings if "in a row" in f.why]
        if not row:
            continue
        told += 1
        numbers = re.search(
            r"window (\d+), stride (\d+)(?:, padding (\d+)(?:\+(\d+))?)?$", row[0].why
        )
        window, stride, low, high = (int(n or 0) for n in numbers.groups())
        padding = ((low, high if numbers[4] else low),)
        x = jax.random.normal(jax.random.key(size), (1, size, 1))
        rising = jnp.arange(float(size)).reshape(x.shape)
        x = jnp.concatenate([x, rising], -1)
        one = getattr(jaxpool, f"{op}_pool")(x, (window,), (stride,), padding)
        two = x
        for text in texts:
            step = parse(text, 1)
            two = step.fn(two, **step.arguments)
        np.testing.assert_allclose(one, two, rtol=1e-6)
    assert told > 10


@pytest.mark.parametrize("op", ["max", "avg"])
def test_a_pool_before_a_global_one(op):
    found = explain_chain((6, 8, 2), [f"{op}:2/2", f"global_{op}"]).findings
    assert [f.why for f in found] == [f"2 in a row are one global_{op}_pool"]
    # Here the pool loses a row, which the global one would see.
    assert not explain_chain((7, 8, 2), [f"{op}:2/2", f"global_{op}"]).findings


def test_pools_whose_results_are_used_twice_are_kept():
    def sppf(x):
        a = jaxpool.max_pool(x, (5, 5), padding=2)
        b = jaxpool.max_pool(a, (5, 5), padding=2)
        return jnp.concatenate([x, a, b], -1)

    def masked(x):
        x = jaxpool.max_pool(x, (2, 2), strides=(2, 2), where=x > 0)
        return jaxpool.max_pool(x, (2, 2), strides=(2, 2))

    assert not explain(sppf, (1, 16, 16, 2)).findings
    assert not explain(masked, (1, 16, 16, 2)).findings


def test_an_error_that_a_model_expects_breaks_nothing():
    def model(x):
        try:
            return jaxpool.max_pool(x, (9, 9))
        except ValueError:
            return jaxpool.max_pool(x, (4, 4))

    assert explain(model, (1, 5, 5, 1)).broken is None
    broken = explain(model, (1, 3, 3, 1)).broken
    assert broken.why == "window 4x4 does not fit in 3x3"
    assert broken.mends[-1] == "an input of at least 4x4"


FINDINGS = {
    "max:1": "pools nothing",
    "max:2/2:ceil": "ceil_mode adds no window",
    "max:2/3": "are in no window: stride 3 is more than window 2",
    "adaptive_max:8": "is as large as its input",
    "avg:8": "its window is its whole input",
}


@pytest.mark.parametrize("text", FINDINGS)
def test_finds_a_pool_to_think_about(text):
    (finding,) = explain_chain((8, 8, 3), [text]).findings
    assert FINDINGS[text] in finding.why
    assert finding.layer == f"1 {text}"


def test_finds_windows_in_padding_alone():
    (finding,) = explain_chain((2, 2, 3), ["max:2p3d4"]).findings
    assert finding.why == "12 of 16 windows lie in padding alone"
    y = jaxpool.max_pool(jnp.zeros((2, 2, 3)), (2, 2), padding=3, window_dilation=4)
    assert (y[..., 0] < 0).sum() == 12


def test_finds_layers_behind_a_single_element():
    texts = ["max:8", "conv:3:SAME", "conv:3:SAME", "global_avg"]
    _, alone, last = explain_chain((8, 8, 3), texts).findings
    assert alone.layer == "2 conv:3:SAME"
    assert "8 of 9 places of its windows are padding, like those of 1" in alone.why
    assert "there is nothing to pool" in last.why


@pytest.mark.parametrize(
    "texts",
    [["conv:3:SAME", "max:3/2p1", "avg:2/2"], ["max:5/3", "soft:3:SAME", "global_avg"]],
)
def test_finds_nothing_in_what_is_as_it_should_be(texts):
    assert not explain_chain((29, 29, 3), texts).findings


def test_each_mend_of_a_chain_mends_it():
    texts = ["max:2/2", "max:2/2", "conv:3", "max:5d2"]
    broken = explain_chain((32, 32, 3), texts).broken
    assert broken.layer == "max:5d2"
    assert broken.input_shape == (1, 6, 6, 3)
    assert broken.why == "window 5x5, with dilation over 9x9, does not fit in 6x6"
    assert broken.mends == (
        "a window of at most 3x3",
        "no dilation",
        "padding 2x2 on both sides",
        "padding SAME",
        "an input of at least 44x44",
    )
    for last in ("max:3d2", "max:5", "max:5p2d2", "max:5d2:SAME"):
        assert explain_chain((32, 32, 3), [*texts[:-1], last]).broken is None
    for last in ("max:4d2", "max:5p1d2"):
        assert explain_chain((32, 32, 3), [*texts[:-1], last]).broken
    assert explain_chain((44, 44, 3), texts).broken is None
    assert explain_chain((43, 43, 3), texts).broken


def test_what_mends_a_layer_but_not_the_chain():
    broken = explain_chain((4, 4, 3), ["max:5", "avg:3"]).broken
    assert "a window of at most 4x4 (then avg:3 breaks)" in broken.partial
    assert broken.mends == ("padding SAME", "an input of at least 7x7")


# Models.


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), rngs=rngs)

    def __call__(self, x):
        return x + self.second(nnx.relu(self.norm(self.first(x))))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.block = Block(8, rngs)
        self.pool = jaxpool.nnx.StochasticPool((2, 2), strides=(2, 2), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6 * 6 * 8, 10, rngs=rngs)

    def __call__(self, x):
        x = jaxpool.max_pool(self.stem(x), (3, 3), strides=(2, 2), padding="SAME")
        x = nnx.max_pool(self.block(x), (2, 2), strides=(1, 1), padding="SAME")
        x = self.drop(self.pool(x))
        return self.head(x.reshape(x.shape[0], -1))


class InLinen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = jaxpool.linen.GeMPool((2, 2), strides=(2, 2))(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10, name="head")(jaxpool.global_avg_pool(x))


@pytest.fixture
def flax_promotes():
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


flax = pytest.mark.usefixtures("flax_promotes")


@flax
def test_layers_of_an_nnx_model():
    model = Network(nnx.Rngs(0))
    before = nnx.state(model, (nnx.Param, nnx.BatchStat))
    explanation = explain(model, (2, 24, 24, 3))
    shown = [(e.name, e.output_shape[1:3]) for e in explanation.layers if e.changes]
    assert shown == [
        ("stem Conv", (24, 24)),
        ("max_pool", (12, 12)),
        ("block.first Conv", (12, 12)),
        ("block.second Conv", (12, 12)),
        ("max_pool", (12, 12)),
        ("pool stochastic_pool", (6, 6)),
        ("reshape", (288,)),
        ("head Linear", (10,)),
    ]
    sizes = [e.seen[0].size for e in explanation.layers if e.changes]
    assert sizes[:6] == [3, 5, 9, 13, 15, 17]
    assert explanation.output_shape == (2, 10)
    after = nnx.state(model, (nnx.Param, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert model.drop.deterministic is False  # it stays as it was


@flax
def test_layers_of_a_linen_model():
    explanation = explain(InLinen(), (2, 24, 24, 3))  # train=False is given to it
    shown = [e.name for e in explanation.layers if e.changes]
    assert shown == ["stem Conv", "GeMPool_0 gem_pool", "global_avg_pool", "head Dense"]
    assert [e.seen[0].size for e in explanation.layers if e.changes][:2] == [3, 4]
    training = explain(InLinen(), (2, 24, 24, 3), train=True)
    assert training.layers[1].seen[0].size > 24  # the norm's mean over everything


class Cropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        start = jax.random.randint(self.make_rng("dropout"), (), 0, 4)
        return lax.dynamic_slice_in_dim(x, start, 2, 1)


@flax
def test_what_is_drawn_is_not_one_draw():
    explanation = explain(Cropped(), (1, 9, 9, 2))
    assert explanation.inexact == ("dynamic_slice",)
    assert (explanation.seen[0].first, explanation.seen[0].last) == (0, 8)


@flax
def test_a_model_is_as_it_was_afterwards():
    codes = {name: op.fn.__code__ for name, op in OPS.items()}
    call = Network.__call__
    explain(Network(nnx.Rngs(0)), (1, 4, 4, 3))  # breaks
    assert codes == {name: op.fn.__code__ for name, op in OPS.items()}
    assert Network.__call__ is call
    assert not hasattr(jaxpool.max_pool, "__signature__")


@flax
def test_the_size_that_a_model_is_made_for():
    broken = explain(Network(nnx.Rngs(0)), (1, 32, 32, 3)).broken
    assert broken.layer == "head Linear"
    assert broken.input_shape == (1, 512)
    assert broken.after == "reshape"
    (mend,) = broken.mends
    form = r"an input of (\d+)x\1 to (\d+)x\2, which head Linear is made for"
    least, most = map(int, re.fullmatch(form, mend).groups())
    assert (least, most) == (23, 26)
    model = Network(nnx.Rngs(0))

    def output(size):
        x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return nnx.eval_shape(lambda model, x: model(x), model, x)

    for size in range(least, most + 1):
        assert output(size).shape == (1, 10)
    for size in (least - 1, most + 1):
        with pytest.raises(TypeError, match="dot_general"):
            output(size)


@flax
def test_the_smallest_input_of_a_model():
    def model(x):
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.max_pool(x, (3, 3))  # empty, for small inputs, without an error

    broken = explain(model, (1, 9, 10, 3)).broken
    assert broken.why == "window 3x3 does not fit in 2x2"
    assert "an input of at least 12x12" in broken.mends
    assert model(jnp.ones((1, 12, 12, 3))).size
    assert not model(jnp.ones((1, 11, 12, 3))).size


@flax
def test_memory_before_and_after_is_that_of_either_model():
    def model(pool):
        return lambda x: pool(x, (3, 3), strides=(2, 2), padding="SAME")

    shape = (2, 16, 16, 4)
    swapped = memory(model(jaxpool.max_pool), shape, batch=8, swap={"max": "soft"})
    plain = memory(model(jaxpool.soft_pool), shape, batch=8)
    assert swapped.input_shape == (8, 16, 16, 4)
    assert plain.after is None
    assert swapped.after == plain.before
    assert swapped.after != swapped.before
    theirs = memory(model(nn.max_pool), shape, batch=8)
    assert theirs.swaps == {"flax.max_pool": "max_pool"}
    assert theirs.after == swapped.before
    x = jax.ShapeDtypeStruct((8, 16, 16, 4), jnp.float32)
    plan = jax.jit(model(nn.max_pool)).lower(x).compile().memory_analysis()
    need = theirs.before["inference"]
    assert need.temporary == plan.temp_size_in_bytes
    assert need.total == need.temporary + 4 * (8 * 16 * 16 * 4 + 8 * 8 * 8 * 4)


@pytest.mark.parametrize(
    ("swap", "rule"),
    [
        ({"max": "global_avg"}, "windowed pools"),
        ({"avg": "max"}, "model calls, which are max_pool"),
    ],
)
def test_what_cannot_be_swapped(swap, rule):
    def model(x):
        return jaxpool.max_pool(x, (2, 2))

    with pytest.raises(ValueError, match=rule):
        memory(model, (1, 4, 4, 1), swap=swap)


# What is wrong.


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mxa:3", "did you mean max"),
        ("max", r"must have `window_shape` \(NAME:SIZE\)"),
        ("max:3x3x3", "for each of the 2 spatial axes"),
        ("max:", "must have `window_shape`"),
        ("max:3-2", r"NAME\[:SIZE\]"),
        ("max:3:samee", "must end with SAME"),
        ("global_avg:3", "not for global_avg"),
        ("max:3p1:SAME", "`padding` once at most"),
        ("conv:3:ceil", "not for conv"),
        ("roi_align:3", "it needs boxes"),
        ("quantized_max:3", "integers alone"),
    ],
)
def test_wrong_layers(text, rule):
    with pytest.raises(ValueError, match=rule):
        explain_chain((8, 8, 3), [text])


def test_wrong_requests():
    with pytest.raises(TypeError, match="a module of Flax or a function"):
        explain(3, (1, 8, 8, 3))
    with pytest.raises(ValueError, match="no size of 0"):
        explain(jnp.sin, (1, 0, 8, 3))
    with pytest.raises(ValueError, match="spatial axes and channels"):
        explain_chain((8,), ["max:2"])
    with pytest.raises(ValueError, match="at least one"):
        explain_chain((8, 8, 3), [])


@pytest.mark.parametrize("module", ["", ".chain", ".memory"])
def test_examples(module):
    module = importlib.import_module(f"jaxpool.explain{module}")
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


# The command and its page.


def run(capsys, command):
    code = main(command.split()[1:])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_json(capsys):
    code, out, _ = run(capsys, "jaxpool shape 32x32x3 max:3/2 global_avg --json")
    told = json.loads(out)
    assert code == 0
    assert [e["output_shape"] for e in told["layers"]] == [[1, 15, 15, 3], [1, 3]]
    assert told["layers"][0]["windows"][0]["dropped"] == 1
    assert told["broken"] is None


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        ("nothing.py:model 1x2", "must be a file that exists"),
        ("nothing 1x2", "must be a shape such as"),
        ("no.such.module:x 1x2", "a module that can be imported"),
        ("jaxpool:max_pools 1x2", "must name something in jaxpool"),
        ("jaxpool:global_avg_pool 1x8x8x3 max:2", "must be one shape"),
        ("jaxpool:__version__ 1x8x8x3", "a module of Flax"),
        ("jaxpool:global_avg_pool 1x8x8x3 --dtype text", "a dtype of JAX"),
        ("jaxpool:global_avg_pool 1x8x8x3 --batch 2", "without --memory"),
        ("jaxpool:global_avg_pool 1x8x8x3 --memory --swap max", "OLD=NEW"),
        ("jaxpool:global_avg_pool 1x8x8x3 --set 1=2", "NAME=VALUE"),
        ("8x8x3 max:2 --memory", "left out for a chain"),
        ("8x8x3 mux:2", "must be known"),
    ],
)
def test_command_refuses(capsys, request_, rule):
    code, out, err = run(capsys, f"jaxpool shape {request_}")
    assert (code, out) == (2, "")
    assert err.startswith("jaxpool shape: ")
    assert rule in err


def test_import_loads_no_flax():
    code = "import sys, jaxpool.explain; print('flax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


@flax
def test_page_shows_what_the_commands_print(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = shape_page.PAGE.read_text()
    assert page.count("```console") > 5
    assert shape_page.renewed(page, "console") == page
