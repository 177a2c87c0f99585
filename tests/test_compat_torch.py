"""`jaxpool.compat.torch` is `torch.nn.functional`'s pooling, errors included."""

import functools
import inspect
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxpool
import jaxpool.compat.torch as ours
from jaxpool.testing import questions as ask

pytestmark = pytest.mark.usefixtures("quick_compilation")

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

equal = np.testing.assert_array_equal
# Sums in another order, of numbers around 1: a few float32 roundings of the largest.
close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)

NAMES = [
    name
    for name, fn in vars(F).items()
    if "pool" in name and not name.startswith("_") and callable(fn)
]


def normals(*shape):
    rng = np.random.default_rng(math.prod(shape))
    return rng.standard_normal(shape).astype(np.float32)


# Names and signatures.


def documented(name):
    """A builtin's signature, from the first line of its documentation."""
    line = next(n for n in getattr(F, name).__doc__.splitlines() if name in n)
    scope = {}
    exec(f"def {line.partition(' ->')[0].strip()}: pass", scope)
    return inspect.signature(scope[name])


def signature_of(name):
    if name.startswith("avg_pool") or name == "adaptive_avg_pool1d":
        return documented(name)
    # What has `return_indices` is a dispatcher over a private function.
    fn = getattr(F, f"_{name}", getattr(F, name))
    return inspect.signature(fn)


def test_every_function_is_there():
    assert len(NAMES) == 28
    assert [n for n in NAMES if not callable(getattr(ours, n, None))] == []


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    theirs = signature_of(name).parameters.values()
    mine = inspect.signature(getattr(ours, name)).parameters.values()
    mine = [p for p in mine if p.name != "key"]
    assert [(p.name, p.default, p.kind) for p in mine] == [
        (p.name, p.default, p.kind) for p in theirs
    ]
    assert getattr(ours, name).__name__ == name
    assert inspect.getdoc(getattr(ours, name))
    has_key = "key" in inspect.signature(getattr(ours, name)).parameters
    assert has_key == name.startswith("fractional")


def test_torch_is_not_imported():
    code = "import sys, jaxpool.compat.torch; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Values, indices and gradients: one call of every form; `test_parity_sweep.py` has the
# rest.

CALLS = [
    # name, shape, arguments
    ("max_pool1d", (2, 3, 9), dict(kernel_size=3)),
    ("max_pool1d", (3, 9), dict(kernel_size=(3,), stride=[], padding=[1])),
    ("max_pool2d", (2, 3, 7, 8), dict(kernel_size=[2], stride=(2, 3), dilation=2)),
    ("max_pool2d", (3, 7, 8), dict(kernel_size=(3, 2), padding=1, ceil_mode=True)),
    ("max_pool2d", (2, 3, 7, 8), dict(kernel_size=2, return_indices=True)),
    ("max_pool3d", (2, 5, 6, 4), dict(kernel_size=2, stride=1, return_indices=True)),
    ("max_pool1d_with_indices", (2, 3, 9), dict(kernel_size=2)),
    ("max_pool2d_with_indices", (2, 3, 7, 8), dict(kernel_size=2, stride=1)),
    ("max_pool3d_with_indices", (1, 2, 5, 6, 4), dict(kernel_size=(2, 3, 2))),
    ("avg_pool1d", (2, 3, 9), dict(kernel_size=3, stride=2, padding=1)),
    ("avg_pool1d", (3, 9), dict(kernel_size=2, stride=2, ceil_mode=True)),
    ("avg_pool2d", (2, 3, 7, 8), dict(kernel_size=3, count_include_pad=False)),
    ("avg_pool2d", (3, 7, 8), dict(kernel_size=(2, 3), divisor_override=-2)),
    ("avg_pool3d", (1, 2, 5, 6, 4), dict(kernel_size=3, padding=1, ceil_mode=True)),
    ("lp_pool1d", (2, 3, 9), dict(norm_type=2, kernel_size=3)),
    ("lp_pool2d", (2, 3, 7, 8), dict(norm_type=4.0, kernel_size=(2, 3), stride=[2])),
    ("lp_pool2d", (3, 7, 8), dict(norm_type=math.inf, kernel_size=2)),
    ("lp_pool1d", (3, 9), dict(norm_type=-math.inf, kernel_size=2)),
    ("lp_pool3d", (2, 5, 6, 4), dict(norm_type=2, kernel_size=2, stride=1)),
    ("adaptive_max_pool1d", (2, 3, 9), dict(output_size=4)),
    ("adaptive_max_pool1d", (3, 9), dict(output_size=(4,), return_indices=True)),
    ("adaptive_max_pool2d", (2, 3, 7, 8), dict(output_size=(None, 3))),
    ("adaptive_max_pool3d", (2, 5, 6, 4), dict(output_size=3, return_indices=True)),
    ("adaptive_max_pool1d_with_indices", (2, 3, 9), dict(output_size=11)),
    ("adaptive_max_pool2d_with_indices", (3, 7, 8), dict(output_size=[3, 4])),
    ("adaptive_max_pool3d_with_indices", (2, 5, 6, 4), dict(output_size=(2, None, 1))),
    ("adaptive_avg_pool1d", (2, 3, 9), dict(output_size=[4])),
    ("adaptive_avg_pool2d", (3, 7, 8), dict(output_size=3)),
    ("adaptive_avg_pool2d", (2, 3, 7, 8), dict(output_size=(None, 1))),
    ("adaptive_avg_pool3d", (1, 2, 5, 6, 4), dict(output_size=(3, None, 2))),
]


def as_numpy(out):
    out = out if isinstance(out, tuple) else (out,)
    return [y.detach().numpy() for y in out]


@pytest.mark.parametrize(("name", "shape", "arguments"), CALLS)
def test_values_indices_and_gradients(name, shape, arguments):
    x = normals(*shape)
    tensor = torch.from_numpy(x).requires_grad_()
    theirs = getattr(F, name)(tensor, **arguments)
    first = theirs[0] if isinstance(theirs, tuple) else theirs
    first.sum().backward()

    @jax.jit
    def mine(x):
        def total(x):
            out = getattr(ours, name)(x, **arguments)
            return (out[0] if isinstance(out, tuple) else out).sum(), out

        return jax.grad(total, has_aux=True)(x)

    gradient, out = mine(x)
    assert isinstance(out, tuple) == isinstance(theirs, tuple)
    pairs = zip(jax.tree.leaves(out), as_numpy(theirs), strict=True)
    for actual, expected in pairs:
        close(actual, expected)
    close(gradient, tensor.grad.numpy())


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("size", ["output_size", "output_ratio"])
def test_fractional_max_pool(nd, size, unbatched):
    x = normals(2, 3, 7, 8, 9)
    x = x[:, :, 0] if nd == 2 else x
    x = x[0] if unbatched else x
    rng = np.random.default_rng(nd)
    samples = rng.random((1 if unbatched else 2, 3, nd)).astype(np.float32)
    kernel = (2, 3, 2)[-nd:]
    given = {"output_size": (4, 5, 3)[-nd:], "output_ratio": (0.5, 0.7, 0.4)[-nd:]}
    name, arguments = f"fractional_max_pool{nd}d", {size: given[size]}
    tensor = torch.from_numpy(x).requires_grad_()
    theirs = getattr(F, name)(
        tensor,
        kernel,
        **arguments,
        return_indices=True,
        _random_samples=torch.from_numpy(samples),
    )
    theirs[0].sum().backward()

    def total(x, samples):
        call = functools.partial(getattr(ours, name), x, kernel, **arguments)
        out = call(return_indices=True, _random_samples=samples)
        alone = call(_random_samples=samples)
        return out[0].sum(), (*out, alone)

    gradient, (values, indices, alone) = jax.grad(total, has_aux=True)(x, samples)
    equal(values, theirs[0].detach().numpy())
    equal(indices, theirs[1].numpy())
    equal(alone, values)
    equal(gradient, tensor.grad.numpy())


def test_fractional_max_pool_with_a_key_places_every_plane_on_its_own():
    x = jnp.broadcast_to(jnp.arange(40.0)[:, None], (3, 4, 40, 1))
    arguments = dict(kernel_size=(2, 1), output_size=(13, 1), key=jax.random.key(0))
    y = ours.fractional_max_pool2d(x, **arguments)
    equal(y, ours.fractional_max_pool2d(x, **arguments))
    assert len(np.unique(y.reshape(12, 13), axis=0)) > 2
    with pytest.raises(ValueError, match="`fractional_max_pool2d`: `key` is needed"):
        ours.fractional_max_pool2d(x, (2, 1), (13, 1))


@pytest.mark.parametrize("nd", [1, 2, 3])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("output_size", [None, (9, 7, 8)])
def test_max_unpool(nd, full, output_size):
    x = normals(2, 3, 9, 7, 8)[(..., *([0] * (3 - nd)))]
    sizes = x.shape[2:]
    if output_size is not None:
        output_size = x.shape if full else sizes
    tensor = torch.from_numpy(x)
    pooled, at = getattr(F, f"max_pool{nd}d")(tensor, 2, return_indices=True)
    unpool = getattr(F, f"max_unpool{nd}d")
    even = tuple(2 * n for n in pooled.shape[2:])
    if output_size is None and even != sizes:  # the indices are those of x
        output_size = sizes
    theirs = unpool(pooled, at, 2, output_size=output_size)
    y = getattr(ours, f"max_unpool{nd}d")(
        pooled.numpy(), at.numpy().astype(np.int32), 2, output_size=output_size
    )
    equal(y, theirs.numpy())
    assert np.count_nonzero(y) == pooled.numel()


# Errors. Each row is refused by PyTorch, and here with an error that says why.

X1, X2, X3 = np.ones((2, 3, 9)), np.ones((2, 3, 9, 8)), np.ones((2, 3, 9, 8, 7))
X1, X2, X3 = (x.astype(np.float32) for x in (X1, X2, X3))
I1, I2, I3 = (np.arange(x[0, 0].size).reshape(1, 1, *x.shape[2:]) for x in (X1, X2, X3))
V1, V2, V3 = (i.astype(np.float32) for i in (I1, I2, I3))
NO_CHANNELS = np.ones((2, 0, 9, 8), np.float32)
WINDOWED = ["max_pool{}d", "max_pool{}d_with_indices", "avg_pool{}d", "lp_pool{}d"]
INPUTS = {1: X1, 2: X2, 3: X3}


def windowed_errors():
    """(function, arguments, argument, words) for all windowed pools."""
    at_least = "must be at least"
    for form in WINDOWED:
        for nd, x in INPUTS.items():
            name = form.format(nd)
            before = (x, 2) if "lp" in name else (x,)
            few = (2,) * (nd + 1)
            rows = [
                (dict(kernel_size=0), "kernel_size", at_least),
                (dict(kernel_size=0, stride=1), "kernel_size", at_least),
                (dict(kernel_size=-2), "kernel_size", at_least),
                (dict(kernel_size=few), "kernel_size", "must "),
                (dict(kernel_size=()), "kernel_size", "must "),
                (dict(kernel_size=2.5), "kernel_size", "must be made of ints"),
                (dict(kernel_size="2"), "kernel_size", "must be made of ints"),
                (dict(kernel_size=None), "kernel_size", "must be made of ints"),
                (dict(kernel_size=True), "kernel_size", "must be made of ints"),
                (dict(kernel_size=2, stride=0), "stride", at_least),
                (dict(kernel_size=2, stride=-1), "stride", at_least),
                (dict(kernel_size=2, stride=few), "stride", f"must have {nd} entries"),
                (dict(kernel_size=2, stride=1.5), "stride", "must be made of ints"),
                (dict(kernel_size=2, ceil_mode=1), "ceil_mode", "True or False"),
                (dict(kernel_size=2, ceil_mode=None), "ceil_mode", "True or False"),
                (dict(kernel_size=20), "kernel_size", "must fit into the input"),
                (dict(), None, "missing a required argument: 'kernel_size'"),
                (dict(kernel_size=2, window=2), None, "unexpected keyword"),
            ]
            if "lp" not in name:
                rows += [
                    (dict(kernel_size=3, padding=2), "padding", "at most half"),
                    (dict(kernel_size=2, padding=-1), "padding", at_least),
                    (dict(kernel_size=2, padding=()), "padding", "entries"),
                    (dict(kernel_size=2, padding=few), "padding", "entries"),
                    (dict(kernel_size=2, padding="SAME"), "padding", "made of ints"),
                    (dict(kernel_size=2, padding=None), "padding", "made of ints"),
                ]
            if "max" in name:
                wide = dict(kernel_size=3, padding=2, dilation=3)
                rows += [
                    (wide, "padding", "at most half of `kernel_size`"),
                    (dict(kernel_size=2, dilation=0), "dilation", at_least),
                    (dict(kernel_size=2, dilation=-1), "dilation", at_least),
                    (dict(kernel_size=2, dilation=few), "dilation", "entries"),
                    (dict(kernel_size=5, dilation=9), "kernel_size", "at dilation"),
                ]
            for arguments, argument, words in rows:
                yield name, before, arguments, argument, words
            for bad in (x[0, 0], x[None], x[:, :0], x[..., :0]):
                words = "must have elements" if bad.size == 0 else "must have the axes"
                yield name, (bad, *before[1:]), dict(kernel_size=2), "input", words
            for dtype in (bool, np.complex64):
                if "lp" in name and dtype is bool:
                    continue  # has powers in PyTorch
                bad = x.astype(dtype)
                arguments = (name, (bad, *before[1:]), dict(kernel_size=2))
                yield *arguments, "input", "must be made of integers or real floats"


def adaptive_errors():
    for form in ("adaptive_max_pool{}d", "adaptive_avg_pool{}d"):
        for nd, x in INPUTS.items():
            name = form.format(nd)
            rows = [
                (-1, "must be at least 1"),
                ((2,) * (nd + 1), f"must have {nd} entries"),
                (2.5, "must be made of ints"),
                ("2", "must be made of ints"),
                (None, "must be made of ints"),
                ((), f"must have {nd} entries"),
            ]
            if nd == 1:
                rows.append(((None,), "must be made of ints"))
            else:
                rows.append(((2,), f"must have {nd} entries"))
                rows.append(((2.0,) * nd, "must be made of ints"))
            for size, words in rows:
                yield name, (x, size), {}, "output_size", words
            for bad in (x[0, 0], x[None]):
                yield name, (bad, 2), {}, "input", "must have the axes"
            yield name, (x[..., :0], 2), {}, "input", "must have elements"
            for dtype in (bool, np.complex64):
                yield name, (x.astype(dtype), 2), {}, "input", "must be made of"
            yield name, (x,), {}, None, "missing a required argument: 'output_size'"
    yield "adaptive_max_pool2d", (NO_CHANNELS, 2), {}, "input", "must have elements"


def other_errors():
    """The rest, one by one."""
    for nd in (2, 3):
        name, x = f"avg_pool{nd}d", INPUTS[nd]
        rule, given = "must not be 0", dict(divisor_override=0)
        yield name, (x, 2), given, "divisor_override", rule
        given = dict(divisor_override=2.5)
        yield name, (x, 2), given, "divisor_override", "must be made of ints"
        given = dict(count_include_pad=1)
        yield name, (x, 2), given, "count_include_pad", "must be True or False"
    yield "avg_pool1d", (X1, 2), dict(divisor_override=2), None, "unexpected keyword"
    small = X3[:, :, :3, :3, :3]
    words = "must be at most the input's size"
    yield "avg_pool3d", (small, 5, 1, 2), {}, "kernel_size", words
    yield "avg_pool3d", (small, (1, 1, 4), 3, 0, True), {}, "kernel_size", words

    given = ((1, 1, 4), 3, True)
    yield "lp_pool3d", (small, 3, *given), {}, "kernel_size", words

    for nd, x in INPUTS.items():
        name = f"lp_pool{nd}d"
        yield name, (x, 0, 2), {}, "norm_type", "must be greater than 0"
        yield name, (x, None, 2), {}, "norm_type", "must be a number"
        yield name, (x, "2", 2), {}, "norm_type", "must be a number"
        yield name, (x,), dict(kernel_size=2), None, "missing a required argument"
        yield name, (x, 2, (2,)), {}, "kernel_size", "must "
    yield "lp_pool1d", (X1, 2, [2]), {}, "kernel_size", "must be an int"

    for nd in (2, 3):
        x, name = INPUTS[nd], f"fractional_max_pool{nd}d"
        long, ratio = (2,) * (nd + 1), "output_ratio"
        yield name, (x, 2), {}, "output_size", "or `output_ratio` must be given"
        yield name, (x, 2, (2,)), {}, "output_size", f"must have {nd} entries"
        yield name, (x, 2, long), {}, "output_size", f"must have {nd} entries"
        yield name, (x, 2, -1), {}, "output_size", "must be at least 1"
        yield name, (x, 2, 2.5), {}, "output_size", "must be made of ints"
        yield name, (x, (2,), 4), {}, "kernel_size", f"must have {nd} entries"
        yield name, (x, long, 4), {}, "kernel_size", f"must have {nd} entries"
        yield name, (x, 2.5, 4), {}, "kernel_size", "must be made of ints"
        yield name, (x, 10, 1), {}, "output_size", "must give at most"
        yield name, (x, 2, 9), {}, "output_size", "must give at most"
        for bad in ((0.5,) * (nd - 1), (0.5,)):
            yield name, (x, 2), {ratio: bad}, ratio, f"must be a number, or {nd}"
        yield name, (x, 2), {ratio: (-0.5,) * nd}, ratio, "must leave something"
        yield name, (x, 2), {ratio: (1.5,) * nd}, ratio, "must give at most"
        yield name, (x, 2), {ratio: ("a",) * nd}, ratio, "must be made of numbers"
        for bad in (x[0, 0], x[:, :0]):
            words = "must have elements" if bad.size == 0 else "must have the axes"
            yield name, (bad, 2, 4), {}, "input", words
        bad = x.astype(np.complex64)
        yield name, (bad, 2, 4), {}, "input", "must be made of"
        shape = (2, 3, nd)
        for wrong in ((2, 3, nd + 1), (2, 2, nd), (1, 3, nd), (3, nd), ()):
            given = dict(_random_samples=np.zeros(wrong, np.float32))
            words = f"must have the shape {shape}"
            yield name, (x, 2, 4), given, "_random_samples", words
        given = dict(_random_samples=np.zeros(shape, np.float16))
        yield name, (x, 2, 4), given, "_random_samples", "must have the dtype"
    ratio = "output_ratio"
    words = "must be a number, or 2"
    yield "fractional_max_pool2d", (X2, 2), {ratio: (0.5,) * 3}, ratio, words
    words = "must give at most [7, 6, 5] windows"
    yield "fractional_max_pool3d", (X3, 2, (4, 4, 6)), {}, "output_size", words

    for nd, (v, i) in {1: (V1, I1), 2: (V2, I2), 3: (V3, I3)}.items():
        name, out = f"max_unpool{nd}d", "output_size"
        yield name, (v, i, 2), {out: (1,) * nd}, out, "must differ from"
        sizes = tuple(2 * n for n in v.shape[2:])
        largest = (sizes[0] + 2, *sizes[1:])
        least = (sizes[0] - 2, *sizes[1:])
        yield name, (v, i, 2), {out: largest}, out, "by less than the stride"
        yield name, (v, i, 2), {out: least}, out, "by less than the stride"
        yield name, (v, i, 2), {out: 18}, out, "must be a sequence of"
        yield name, (v, i, 2), {out: (18,) * (nd + 1)}, out, "must be a sequence of"
        yield name, (v, i, 2), {out: (18,) * (nd + 3)}, out, "must be a sequence of"
        floats = tuple(map(float, sizes))
        yield name, (v, i, 2), {out: floats}, out, "must be made of ints"
        yield name, (v, i, (2,) * (nd + 1)), {}, "kernel_size", "entries"
        yield name, (v, i, 2.5), {}, "kernel_size", "must be made of ints"
        yield name, (v, i, 2, 2, 99), {}, "padding", "must leave something"
        yield name, (v, i[0], 2), {}, "indices", "must have the shape of `input`"
        yield name, (v, i[..., 1:], 2), {}, "indices", "must have the shape of"
        yield name, (v, i.astype(np.float32), 2), {}, "indices", "must be integers"
        yield name, (v[0, 0], i[0, 0], 2), {}, "input", "must have the axes"
        yield name, (v[..., :0], i[..., :0], 2), {}, "input", "must have elements"
        yield name, (v[:, :0], i[:, :0], 2), {}, "input", "must have elements"
        yield name, (v.astype(bool), i, 2), {}, "input", "must be made of"
        yield name, (v.astype(np.complex64), i, 2), {}, "input", "must be made of"
        yield name, (v,), dict(kernel_size=2), None, "missing a required argument"
    yield "max_unpool3d", (V3, I3, 2, 0), {}, "stride", "must be at least 1"
    yield "max_unpool3d", (V3, I3, 2, (2,) * 4), {}, "stride", "must have 3 entries"


ERRORS = [*windowed_errors(), *adaptive_errors(), *other_errors()]


def as_tensors(values):
    return [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values]


def test_errors_of_every_function_are_known():
    base = {name.removesuffix("_with_indices") for name in NAMES}
    assert base <= {row[0] for row in ERRORS}
    assert len(ERRORS) > 400


@pytest.mark.parametrize("name", sorted({row[0] for row in ERRORS}))
def test_what_torch_refuses_is_refused_with_a_reason(name):
    for _, before, arguments, argument, words in (r for r in ERRORS if r[0] == name):
        shapes = [getattr(v, "shape", v) for v in before]
        label = f"{name}(*{shapes}, **{arguments})"
        tensors = dict(zip(arguments, as_tensors(arguments.values()), strict=True))
        try:
            getattr(F, name)(*as_tensors(before), **tensors)
        except Exception:
            taken = False
        else:
            taken = True
        assert not taken, f"PyTorch takes {label}"
        with pytest.raises((ValueError, TypeError)) as caught:
            getattr(ours, name)(*before, **arguments)
        message = str(caught.value)
        begin = f"`{name}`: " + (f"`{argument}`" if argument else "")
        assert message.startswith(begin), (label, message)
        assert words in message, (label, message)
        assert argument is None or "; got " in message, (label, message)


# Differences.


def test_differences_are_complete_rows():
    families = {"all"} | {re.sub("[123]d.*", "", n) for n in NAMES}
    for row in ours.DIFFERENCES:
        assert all(row)
        for name in row.what.split(", "):
            assert name in families, name
    assert len(ours.DIFFERENCES) > 10


def test_differences_of_the_norm():
    x = np.array([[-1, -2, 3, 0.5]], np.float32)
    tensor = torch.from_numpy(x)
    assert F.lp_pool1d(tensor, 3, 2).isnan().tolist() == [[True, False]]
    close(ours.lp_pool1d(x, 3, 2)[0, 0], 9 ** (1 / 3))
    assert F.lp_pool1d(tensor, 1, 2)[0, 0] == -3
    assert ours.lp_pool1d(x, 1, 2)[0, 0] == 3
    overhang = ours.lp_pool1d(np.ones((1, 5), np.float32), 2, 2, ceil_mode=True)
    close(overhang[0], [2**0.5, 2**0.5, 1])
    close(F.lp_pool1d(torch.ones(1, 5), 2, 2, ceil_mode=True)[0], [2**0.5] * 3)
    assert F.lp_pool1d(torch.ones(1, 4), -1, 2)[0, 0] == 0.5
    with pytest.raises(ValueError, match="`norm_type` must be greater than 0, or -inf"):
        ours.lp_pool1d(x, -1, 2)


def test_unpooling_takes_integers_of_every_dtype():
    def given(indices):
        values = np.arange(1, len(indices) + 1, dtype=np.float32)[None]
        return values, dict(indices=indices[None], kernel_size=7)

    def expected(values, indices, kernel_size):
        size = kernel_size * values.size
        y = oracle.unpool(values[0, :, None], indices[0, :, None], (size,))
        return y[None, :, 0]

    ask.integer_widths("indices", 300, given, ours.max_unpool1d, expected)


def test_a_tensor_whose_integers_do_not_fit():
    values, indices = np.ones((1, 1), np.float32), torch.tensor([[2**32 + 1]])
    with pytest.raises(ValueError, match="`indices` must hold integers of int32"):
        ours.max_unpool1d(values, indices, 3)


def test_differences_of_unpooling():
    values = np.array([[1, 2, 3]], np.float32)
    indices = np.zeros((1, 3), np.int32)
    tensor = torch.from_numpy(values).requires_grad_()
    theirs = F.max_unpool1d(tensor, torch.from_numpy(indices).long(), 1)
    theirs.sum().backward()
    gradient = jax.grad(lambda v: ours.max_unpool1d(v, indices, 1).sum())(values)
    equal(theirs.detach().numpy(), ours.max_unpool1d(values, indices, 1))
    equal(tensor.grad.numpy(), [[1, 1, 1]])
    equal(gradient, [[0, 0, 1]])
    beyond = indices + np.array([0, 1, 99], np.int32)
    with pytest.raises(RuntimeError, match="invalid max index"):
        F.max_unpool1d(tensor, torch.from_numpy(beyond).long(), 1)
    equal(ours.max_unpool1d(values, beyond, 1), [[1, 2, 0]])
    for arguments in ((0, 2), (2, 2, -1)):
        F.max_unpool1d(tensor, torch.from_numpy(indices).long(), *arguments)
        with pytest.raises(ValueError, match="must be at least"):
            ours.max_unpool1d(values, indices, *arguments)


def test_differences_of_indices_and_integers():
    x = np.array([[1, np.nan, np.nan, 2]], np.float32)
    values, index = ours.max_pool1d(x, 4, return_indices=True)
    theirs = F.max_pool1d(torch.from_numpy(x), 4, return_indices=True)
    assert np.isnan(values).all()
    assert (index.item(), theirs[1].item()) == (1, 2)
    assert (index.dtype, theirs[1].dtype) == (jnp.int32, torch.int64)
    whole = np.array([[1, 2, 4, 5]], np.int32)
    assert F.avg_pool1d(torch.from_numpy(whole).long(), 2).tolist() == [[1, 4]]
    equal(ours.avg_pool1d(whole, 2), [[1.5, 4.5]])
    equal(ours.max_pool1d(whole, 2), [[2, 5]])


def test_differences_of_empty_results_and_ratios():
    x = torch.from_numpy(X2)
    assert F.adaptive_avg_pool2d(x, 0).numel() == 0
    assert F.adaptive_avg_pool2d(x[:, :0], 2).numel() == 0
    assert F.fractional_max_pool2d(x, 2, 0).numel() == 0
    for call in (
        lambda: ours.adaptive_avg_pool2d(X2, 0),
        lambda: ours.adaptive_avg_pool2d(X2[:, :0], 2),
        lambda: ours.fractional_max_pool2d(X2, 2, 0, key=jax.random.key(0)),
        lambda: ours.fractional_max_pool2d(X2, 0, 4, key=jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
    with pytest.raises(TypeError):
        F.fractional_max_pool2d(x, 2, output_ratio=0.5)
    y = ours.fractional_max_pool2d(X2, 2, output_ratio=0.5, key=jax.random.key(0))
    assert y.shape == (2, 3, 4, 4)


def test_an_empty_batch_is_welcome_on_both_sides():
    equal(
        ours.max_pool2d(X2[:0], 2).shape, F.max_pool2d(torch.ones(0, 3, 9, 8), 2).shape
    )
    assert ours.avg_pool2d(X2[:0], 2).shape == (0, 3, 4, 4)
    assert ours.adaptive_avg_pool2d(X2[:0], 2).shape == (0, 3, 2, 2)


# Modules.

N = torch.nn
POSITIVE = {1: np.abs(normals(2, 3, 11)), 2: np.abs(normals(2, 3, 9, 8))}
POSITIVE[3] = np.abs(normals(2, 3, 7, 6, 8))
SAMPLES = torch.from_numpy(np.random.default_rng(0).random((2, 3, 3), np.float32))
MODULES = [
    *(c(3) for c in (N.MaxPool1d, N.MaxPool2d, N.MaxPool3d)),
    N.MaxPool1d(3, 2, 1, 2, ceil_mode=True),
    N.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    N.MaxPool3d((2, 3, 2), ceil_mode=True),
    N.MaxPool2d(2, return_indices=True),
    N.MaxPool1d(2, return_indices=True),
    N.MaxPool3d(2, stride=1, return_indices=True),
    *(c(3, 2, 1) for c in (N.AvgPool1d, N.AvgPool2d, N.AvgPool3d)),
    N.AvgPool1d(3, ceil_mode=True, count_include_pad=False),
    N.AvgPool2d((3, 2), padding=(1, 0), count_include_pad=False, divisor_override=4),
    N.AvgPool3d((3, 2, 3), stride=(2, 1, 2), padding=1, ceil_mode=True),
    *(c(2, 3) for c in (N.LPPool1d, N.LPPool2d, N.LPPool3d)),
    N.LPPool2d(3.5, (2, 3), stride=1),
    N.LPPool1d(math.inf, 2),
    N.LPPool2d(-math.inf, 2, stride=(1, 2)),
    *(c(5) for c in (N.AdaptiveMaxPool1d, N.AdaptiveMaxPool2d, N.AdaptiveMaxPool3d)),
    N.AdaptiveMaxPool2d((None, 4), return_indices=True),
    N.AdaptiveMaxPool1d((4,), return_indices=True),
    N.AdaptiveMaxPool3d((2, None, 3), return_indices=True),
    *(c(3) for c in (N.AdaptiveAvgPool1d, N.AdaptiveAvgPool2d, N.AdaptiveAvgPool3d)),
    N.AdaptiveAvgPool2d((None, 12)),
    N.AdaptiveAvgPool3d((1, 2, None)),
    N.FractionalMaxPool2d(2, 4, _random_samples=torch.rand(2, 3, 2)),
    N.FractionalMaxPool2d(
        (2, 3),
        output_ratio=0.5,
        return_indices=True,
        _random_samples=torch.rand(2, 3, 2),
    ),
    N.FractionalMaxPool3d(2, (4, 3, 5), _random_samples=torch.rand(2, 3, 3)),
]
FRAMEWORKS = ["nnx", "linen"]


@pytest.fixture
def flax_promotes():
    """Flax itself mixes dtypes and ranks."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def called(module, framework, *inputs, **named):
    if framework == "nnx":
        return module(*inputs, **named)
    return module.apply({}, *inputs, **named)


def dimensions(module):
    return int(type(module).__name__[-2])


def same(actual, expected, channels_last=False):
    pairs = zip(jax.tree.leaves(actual), as_numpy(expected), strict=True)
    for a, e in pairs:
        close(np.moveaxis(a, -1, 1) if channels_last else a, e)


@pytest.mark.usefixtures("flax_promotes")
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_converted_module(module, framework):
    x = POSITIVE[dimensions(module)]
    theirs = module(torch.from_numpy(x))
    same(called(ours.convert(module, framework=framework), framework, x), theirs)
    last = ours.convert(module, framework=framework, channels_last=True)
    same(called(last, framework, np.moveaxis(x, 1, -1)), theirs, channels_last=True)


@pytest.mark.usefixtures("flax_promotes")
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_converted_unpooling(framework, nd):
    x = POSITIVE[nd]
    unpool = getattr(N, f"MaxUnpool{nd}d")(3, stride=2)
    pool = getattr(N, f"MaxPool{nd}d")(3, stride=2, return_indices=True)
    values, at = pool(torch.from_numpy(x))
    pair = values.numpy(), at.numpy().astype(np.int32)
    module = ours.convert(unpool, framework=framework)
    sizes = x.shape[2:]
    theirs = unpool(values, at, output_size=sizes)
    same(called(module, framework, *pair, output_size=sizes), theirs)
    same(called(module, framework, *pair, sizes), theirs)
    last = ours.convert(unpool, framework=framework, channels_last=True)
    pair = [np.moveaxis(a, 1, -1) for a in pair]
    same(called(last, framework, *pair, sizes), theirs, channels_last=True)
    if nd == 1:
        same(called(module, framework, values.numpy(), at.numpy()), unpool(values, at))


@pytest.mark.usefixtures("flax_promotes")
@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("indices", [False, True])
def test_converted_sampling(nd, indices):
    from flax import nnx

    x = POSITIVE[nd]
    module = getattr(N, f"FractionalMaxPool{nd}d")(2, 4, return_indices=indices)
    in_nnx = ours.convert(module, rngs=nnx.Rngs(0))
    out = jax.tree.leaves(in_nnx(x))
    assert [y.shape for y in out] == [
        y.shape for y in as_numpy(module(torch.tensor(x)))
    ]
    samples = np.random.default_rng(0).random((2, 3, nd)).astype(np.float32)
    module.register_buffer("_random_samples", torch.from_numpy(samples))
    # The order of PyTorch's two is that of the axes, backwards.
    given = samples[..., ::-1] if nd == 2 else samples
    same(in_nnx(x, samples=given, deterministic=True), module(torch.from_numpy(x)))
    ratio = getattr(N, f"FractionalMaxPool{nd}d")(2, output_ratio=0.6)
    y = ours.convert(ratio, rngs=nnx.Rngs(0))(x)
    assert y.shape == ratio(torch.from_numpy(x)).shape
    in_linen = ours.convert(module, framework="linen")
    assert jax.tree.leaves(in_linen.apply({}, x))[0].shape == y.shape or nd


def test_every_module_is_converted():
    classes = {type(m).__name__ for m in MODULES}
    classes |= {f"MaxUnpool{nd}d" for nd in (1, 2, 3)}
    assert classes == set(N.modules.pooling.__all__)


@pytest.mark.usefixtures("flax_promotes")
def test_timms_modules():
    layers = pytest.importorskip("timm.layers.pool2d_same")
    for module in (
        layers.MaxPool2dSame(3, 2),
        layers.MaxPool2dSame((2, 3), (2, 1), dilation=2),
        layers.AvgPool2dSame(3, 2, count_include_pad=False),
    ):
        x = POSITIVE[2]
        same(ours.convert(module)(x), module(torch.from_numpy(x)))


@pytest.mark.parametrize(
    ("module", "arguments", "error", "words"),
    [
        (N.Conv2d(1, 1, 1), {}, TypeError, "`module` must be a pooling module"),
        (N.ReLU(), {}, TypeError, "got 'ReLU'"),
        (object(), {}, TypeError, "got 'object'"),
        (N.MaxPool2d(2), {"framework": "haiku"}, ValueError, "`framework` must be"),
        (
            N.MaxPool2d((2, 2, 2)),
            {},
            ValueError,
            "`MaxPool2d`: `kernel_size` must have",
        ),
        (N.AvgPool1d(2, stride=0), {}, ValueError, "`AvgPool1d`: `stride` must be at"),
    ],
)
def test_convert_refuses(module, arguments, error, words):
    with pytest.raises(error, match=words):
        ours.convert(module, **arguments)


# In JAX.


def test_symbolic_batch():
    (n,) = jax.export.symbolic_shape("n")
    spec = jax.ShapeDtypeStruct((n, 3, 9, 8), jnp.float32)
    for fn in (
        lambda x: ours.max_pool2d(x, 3, 2, 1),
        lambda x: ours.avg_pool2d(x, 3, 2, 1),
        lambda x: ours.adaptive_avg_pool2d(x, 3),
    ):
        exported = jax.export.export(jax.jit(fn))(spec)
        close(exported.call(X2), fn(X2))


def test_nothing_is_computed_here():
    """The functions are adapters: what they return is what `jaxpool` returns."""
    x = normals(2, 3, 9, 8)
    equal(ours.max_pool2d(x, 3, 2, 1), jaxpool.max_pool(x, 3, 2, 1, axis=(-2, -1)))
    equal(ours.avg_pool2d(x, 3), jaxpool.avg_pool(x, 3, 3, axis=(-2, -1)))
    equal(ours.lp_pool2d(x, 2, 3), jaxpool.lp_pool(x, 3, 3, axis=(-2, -1)))
