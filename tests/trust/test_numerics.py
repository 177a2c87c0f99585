"""How exact every op is, and what it does at the edges of its number format.

An error is counted in units: `eps` of the dtype, times the most that the exact result
moves, to first order, when each input moves by its own size, or times the exact result
where that is more. One unit is what rounding the input may cost, so no algorithm can
promise less than a few, whether terms cancel or not; half of one is a result rounded
correctly.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import EXCEPT, typical

import jaxpool
from jaxpool._core import engine
from jaxpool._core.geometry import Geometry
from jaxpool._core.op import OPS
from jaxpool._core.stages import (
    axis_by_axis,
    holds_nothing,
    large_and_whole,
    stages,
    taps_at,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

DTYPES = ("bfloat16", "float16", "float32", "float64")
KINDS = ("normal", "offset", "huge", "tiny", "cancelling")
CHANNELS = 4
WINDOW = ("window_shape", "padding", "strides", "ceil_mode", "window_dilation")


def ops_of_any_window():
    """The cases of floating ops whose window, extent or output can be chosen."""
    kinds = ("window", "global", "adaptive")
    return [c for c in typical() if c.op.kind in kinds and not c.op.integer]


def plain_windows():
    """Cases of windows that are nothing but a sum, a mean or an extremum."""
    for case in ops_of_any_window():
        plain = case.op.family in ("average", "extremum") and case.op.outputs == 1
        if plain and case.op.kind == "window":
            yield case


def resized(case, n, rank=1):
    """The case with windows of `n` elements along each of `rank` axes, unpadded."""
    given = {k: v for k, v in case.kwargs.items() if k not in WINDOW}
    if case.op.kind == "global":
        return dataclasses.replace(case, sizes=(n,) * rank, kwargs=given)
    if case.op.kind == "adaptive":  # bins of n and of n - 1
        sizes, given["output_shape"] = (max(3 * n - 1, 1),) * rank, (3,) * rank
        return dataclasses.replace(case, sizes=sizes, kwargs=given)
    sizes, rng = (n + 2,) * rank, np.random.default_rng(n)
    for name, value in given.items():
        shape, old = np.shape(value), len(case.sizes)
        if shape[:old] == case.sizes:  # as large as the input
            given[name] = rng.integers(-20, 21, sizes + shape[old:]) / 8
        elif shape:  # an entry for each element of a window
            given[name] = rng.integers(-20, 21, n**rank) / 64
    given["window_shape"] = (n,) * rank
    return dataclasses.replace(case, sizes=sizes, kwargs=given)


def planes(sizes, dtype):
    """An input `[kind, S..., C]` with numbers of each of the `KINDS`."""
    info, rng = jnp.finfo(dtype), np.random.default_rng(0)
    normal = [rng.normal(size=(*sizes, CHANNELS)) for _ in KINDS]
    # NumPy computes the reference in float64: it needs room, and there all of its bits.
    room = 256 if info.bits < 64 else 20
    most = 2.0 ** (min(info.maxexp, room) - 4)
    # So small that powers vanish, and differences not yet.
    least = min(2.0 ** (max(info.minexp + info.nmant, -room) + 6), 2.0**-8)
    signs = 1 - 2 * (np.indices(sizes).sum(0) % 2)[..., None]
    x = [
        normal[0],
        1000 + normal[1],
        normal[2].clip(-4, 4) * most,
        np.copysign(np.abs(normal[3]).clip(2.0**-6), normal[3]) * least,
        signs * (1 + normal[4] / 1024),
    ]
    return np.stack(x).astype(jnp.dtype(dtype))


@pytest.fixture
def wide():
    """Switches 64-bit types on and off."""
    yield functools.partial(jax.config.update, "jax_enable_x64")
    jax.config.update("jax_enable_x64", False)


class Passes:
    """A case forward and backward: as it is, and what it should be, in float64."""

    def __init__(self, case, wide):
        """Each function is compiled once for each dtype."""
        self.case, self.wide, f = case, wide, case.differentiable

        def gradient(x, c):
            return jax.vjp(f, x)[1](c)[0]

        def turned(x, c, d):  # by how much the gradient turns
            return jax.jvp(lambda x: gradient(x, c), (x,), (d,))[1]

        def both(x, c):
            y, pull = jax.vjp(f, x)
            return y, pull(c)[0]

        self.both, self.gradient, self.turned = map(jax.jit, (both, gradient, turned))

    def run(self, x, cotangent):
        """The result and the gradient, in the dtype of the arrays."""
        self.wide(x.dtype == np.float64)
        return jax.tree.map(np.asarray, self.both(jnp.asarray(x), cotangent))

    def exact(self, x, cotangent):
        """((result, what it may move by), the same of the gradient), in float64.

        Results are the oracle's. Gradients are the op's own in float64, which
        `test_contract.py` compares with differences of its values.
        """
        self.wide(True)
        with np.errstate(all="ignore"):
            y = jax.tree.leaves(self.case.expected(x))[0]
        x, c = (jnp.asarray(np.asarray(a, np.float64)) for a in (x, cotangent))
        size, signs = np.abs(x), np.random.default_rng(1)
        within = tuple(range(1, x.ndim - 1))
        reach, scale = np.zeros(y.shape), np.zeros(x.shape)
        # Planes and channels are apart from each other: one output of each at a time.
        for at in np.ndindex(y.shape[1:-1]):
            one = np.zeros(y.shape)
            one[:, *at] = 1
            moves = (np.abs(self.gradient(x, one)) * size).sum(within)
            reach[:, *at] = np.tile(moves, y.shape[-1] // x.shape[-1])
            scale += np.abs(self.gradient(x, one * c))
        moves = [size * signs.choice([-1, 1], x.shape) for _ in range(16)]
        turns = np.max([np.abs(self.turned(x, c, move)) for move in moves], 0)
        return (y, reach), (np.asarray(self.gradient(x, c)), scale + turns)


def units(actual, expected, scale, dtype):
    """The largest error of each plane, in units, and whether a result was lost.

    A result that does not fit into the dtype is not asked for, and nothing below its
    smallest normal number counts: XLA's CPU backend computes without such.
    """
    info = jnp.finfo(dtype)
    actual = np.asarray(actual, np.float64)
    asked = np.abs(expected) < float(info.max)
    lost = asked & ~np.isfinite(actual)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.abs(actual - expected) - float(info.tiny)
        scale = float(info.eps) * np.maximum(np.abs(expected), scale)
        error = np.where(asked & ~lost & (error > 0), error / scale, 0)
    within = tuple(range(1, error.ndim))
    return error.max(within), lost.any(within)


def in_torch(case, x, cotangent):
    """What PyTorch gives for both passes of the case, or None where it has no such."""
    if importlib.util.find_spec("torch") is None:  # the extra `parity`
        return None
    import torch

    pools = torch.nn.functional
    n = case.kwargs["window_shape"] if case.op.kind == "window" else case.sizes
    kernel, out = (*n, 1)[:2], (3, 3 if len(n) > 1 else 1)
    same = {
        "max_pool": lambda x: pools.max_pool2d(x, kernel, 1),
        "max_pool_with_argmax": lambda x: pools.max_pool2d(x, kernel, 1),
        "avg_pool": lambda x: pools.avg_pool2d(x, kernel, 1),
        "sum_pool": lambda x: pools.avg_pool2d(x, kernel, 1, divisor_override=1),
        "lp_pool": lambda x: pools.lp_pool2d(x, 2, kernel, 1),
        "adaptive_max_pool": lambda x: pools.adaptive_max_pool2d(x, out),
        "adaptive_max_pool_with_argmax": lambda x: pools.adaptive_max_pool2d(x, out),
        "adaptive_avg_pool": lambda x: pools.adaptive_avg_pool2d(x, out),
        "global_max_pool": lambda x: pools.adaptive_max_pool2d(x, 1),
        "global_avg_pool": lambda x: x.mean((2, 3), keepdim=True),
        "global_sum_pool": lambda x: x.sum((2, 3), keepdim=True),
        "global_lp_pool": lambda x: torch.linalg.vector_norm(x, 2, (2, 3), True),
        "global_lse_pool": lambda x: x.logsumexp((2, 3), True) - np.log(n[0]),
    }.get(case.op.name)
    if same is None:
        return None

    def moved(a):  # [K, S..., C] as [K, C, H, W], in a dtype that PyTorch reads
        wide = torch.from_numpy(np.asarray(a, np.float64)).movedim(-1, 1)
        wide = wide.reshape(*wide.shape[:2], *(*wide.shape[2:], 1, 1)[:2])
        return wide.to(getattr(torch, a.dtype.name))

    def back(a, like):
        a = a.detach().double().reshape(*a.shape[:2], *like.shape[1:-1])
        return a.movedim(1, -1).numpy()

    given = moved(x).requires_grad_()
    y = same(given)
    y.backward(moved(cotangent))
    return back(y, cotangent), back(given.grad, x)


def measure(passes, dtype):
    """For each pass and library: the names, and errors and losses for each kind."""
    case = passes.case
    x = planes(case.sizes, dtype)
    out = jax.eval_shape(case.differentiable, jax.ShapeDtypeStruct(x.shape, np.float32))
    drawn = np.random.default_rng(2).uniform(0.5, 1.5, out.shape)
    cotangent = drawn.astype(jnp.dtype(dtype))
    (y, reach), gradient = passes.exact(x, cotangent)
    exact = (y, np.maximum(reach, LEAST.get(case.op.name, 0.0))), gradient
    ours, theirs = passes.run(x, cotangent), in_torch(case, x, cotangent)
    for library, results in (("jaxpool", ours), ("PyTorch", theirs or ())):
        pairs = zip(("forward", "backward"), results, exact, strict=False)
        for direction, result, expected in pairs:
            yield direction, library, *units(result, *expected, dtype)


# The most units that an op may be off, by family: sums of windows of windows round few
# times; exponentials, logarithms and powers are approximations of XLA's. Half precision
# computes in float32 and rounds once.
MOST = {
    **dict.fromkeys(("extremum", "average", "adaptive", "blend", "masked"), 2),
    **dict.fromkeys(("monoid", "stochastic", "exponential", "power"), 16),
    "rank": 4,
    "importance": 128,  # weights by distances from a mean, which cancel
}
HALF = 0.51
# Numbers that fit into the dtype, lost on the way to a result that does.
LOST = {
    **{
        case.op.name: "adds up before it divides or terms cancel"
        for case in ops_of_any_window()
        if case.op.linear
    },
    "detail_preserving_pool": "squares distances, which overflow from 2**64 on",
}
# What results are at least as far apart as: exponentials of small numbers round to
# multiples of eps, so that the logarithm of their mean does (the oracle's too).
LEAST = {"lse_pool": 1.0, "global_lse_pool": 1.0}
# Ops whose larger windows are left out.
LARGEST = {
    "detail_preserving_pool": (3, "a window of 8 takes XLA minutes in float64"),
    "lse_pool": (16, "a window of 64 takes XLA minutes in float64"),
    "soft_pool": (16, "as `lse_pool`"),
}
# Windows along one axis for every op, and squares of the plain ones.
ROWS = (1, 2, 3, 5, 8, 16, 64)
SQUARES = (2, 8, 64)


def window_sizes(case):
    """(window, axes) for each size that is asked of an op."""
    largest = LARGEST.get(case.op.name, (64,))[0]
    yield from ((n, 1) for n in ROWS if n <= largest)
    if case.op.linear:
        yield from ((n, 2) for n in SQUARES)


def check_errors(case, sizes, dtypes, wide, record):
    """Holds the errors of all sizes against the bounds, and records the largest."""
    worst, lost = {}, {}
    for n, rank in sizes:
        passes = Passes(resized(case, n, rank), wide)
        for dtype in dtypes:
            for direction, library, errors, losses in measure(passes, dtype):
                name = dtype, direction, library
                window = "x".join([str(n)] * rank)
                found = max(zip(errors.tolist(), KINDS, strict=True))
                worst[name] = max(worst.get(name, (-1.0,)), (*found, window))
                lost[name] = lost.get(name, 0) + int(losses.sum())
    for (dtype, direction, library), (error, kind, window) in worst.items():
        record(
            what="error",
            op=case.op.name,
            family=case.op.family,
            dtype=dtype,
            direction=direction,
            library=library,
            units=round(error, 3),
            kind=kind,
            window=window,
            largest=max(sizes)[0],
            lost=lost[dtype, direction, library],
        )
    for (dtype, direction, library), found in worst.items():
        if library == "jaxpool":
            most = HALF if jnp.dtype(dtype).itemsize < 4 else MOST[case.op.family]
            assert found[0] <= most, (dtype, direction, found)
            assert not lost[dtype, direction, library] or case.op.name in LOST


@pytest.mark.parametrize("case", list(plain_windows())[:2], ids=str)
def test_small_windows_round_once(case, wide, record):
    check_errors(case, [(3, 1)], ("bfloat16", "float32"), wide, lambda **_: None)


@pytest.mark.full
@pytest.mark.parametrize("case", ops_of_any_window(), ids=str)
def test_errors_are_bounded(case, wide, record):
    check_errors(case, list(window_sizes(case)), DTYPES, wide, record)


@pytest.mark.full
@pytest.mark.parametrize("case", list(plain_windows()), ids=str)
def test_errors_of_every_window(case, wide, record):
    """All sizes from 1 to 64, where the error grows with the number of terms."""

    def renamed(**facts):
        record(**{**facts, "what": "each size"})

    sizes = [(n, 1) for n in range(1, 65)]
    check_errors(case, sizes, ("bfloat16", "float32"), wide, renamed)


def test_the_bounds_would_see_half_precision():
    """A mean that adds up in bfloat16 is far outside of them."""
    x = planes((66,), "bfloat16")[:1]
    total = functools.reduce(lambda a, b: a + b, [x[:, i : i + 3] for i in range(64)])
    exact = sum(np.asarray(x, np.float64)[:, i : i + 3] for i in range(64))
    scale = sum(np.abs(x, dtype=np.float64)[:, i : i + 3] for i in range(64))
    assert units(total, exact, scale * 0, "bfloat16")[0].max() > 10 * HALF


def spec(window_shape, strides=None, padding="VALID", window_dilation=None):
    """The arguments of an op, by name."""
    return {name: value for name, value in locals().items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Form:
    """A window, and what the engine has to make of it: `takes(geometry)`.

    `kind` is that of the ops that have such a window, `axis` says that channels are
    not last, and `asked` is what `jaxpool.lowering` is given.
    """

    kind: str
    sizes: tuple[int, ...]
    window: dict
    takes: Callable[[Geometry], bool]
    first: bool = False
    asked: str = "auto"

    def case(self, op):
        """The op with this window, channels last."""
        case = next(c for c in typical() if c.op is op)
        others = {k: v for k, v in case.kwargs.items() if k not in WINDOW}
        return dataclasses.replace(case, sizes=self.sizes, kwargs=others | self.window)

    def function(self, case):
        """What is asked of `case`, in the layout that the form needs."""
        if not self.first:
            return case.differentiable
        n = len(self.sizes)
        f = case.function(axis=tuple(range(-n, 0)))
        return lambda x: jnp.moveaxis(
            jax.tree.leaves(f(jnp.moveaxis(x, -1, 1)))[0], 1, -1
        )


def slides(geometry):
    return any(a.stride < a.window for a in geometry.axes)


def in_one_stage(geometry):
    return len(stages(geometry)) == 1 and not large_and_whole(geometry)


def disjoint(geometry):
    return in_one_stage(geometry) and all(len(taps_at(a)) == 1 for a in geometry.axes)


FORMS = {
    "one stage": Form(
        "window",
        (6, 7),
        spec((3, 3), (2, 2), ((1, 1), (2, 0))),
        lambda g: in_one_stage(g) and slides(g),
    ),
    "one stage, disjoint": Form("window", (6, 7), spec((2, 3), (2, 3)), disjoint),
    "one stage, stepping over": Form(
        "window",
        (3, 4),
        spec((2, 2), (1, 1), ((3, 3), (0, 1)), (4, 1)),
        lambda g: in_one_stage(g) and holds_nothing(stages(g)[0]),
    ),
    "a stage an axis": Form(
        "window",
        (6, 7),
        spec((3, 2), padding="SAME"),
        lambda g: axis_by_axis(g) and len(stages(g)) == 2,
        first=True,
    ),
    "a stage an axis, larger": Form(
        "window",
        (7, 6),
        spec((5, 4), padding="SAME"),
        lambda g: not axis_by_axis(g) and len(stages(g)) == 2,
    ),
    "windows of windows": Form(
        "window", (17,), spec((13,), padding="SAME"), lambda g: len(stages(g)) > 1
    ),
    "few elements over all": Form(
        "global", (2, 3), {}, lambda g: g.whole and in_one_stage(g)
    ),
    "one reduction": Form("global", (4, 5), {}, large_and_whole),
    "bins": Form(
        "adaptive",
        (11,),
        dict(output_shape=(4,)),
        lambda g: g.binned and in_one_stage(g),
    ),
    "windows of bins": Form(
        "adaptive",
        (32,),
        dict(output_shape=(3,)),
        lambda g: g.binned and len(stages(g)) > 1,
    ),
    "XLA's own": Form(
        "window",
        (6, 7),
        spec((3, 3), (2, 2), ((1, 1), (2, 0))),
        slides,
        asked="reduce_window",
    ),
    "XLA's own, disjoint": Form(
        "window",
        (6, 7),
        spec((2, 3), (2, 3)),
        lambda g: not slides(g),
        asked="reduce_window",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_windows_take_the_form_they_are_here_for(name, monkeypatch):
    form, seen = FORMS[name], []
    choose = engine.chosen_form

    def spied(geometry):
        seen.append((geometry, choose(geometry)))
        return seen[-1][1]

    monkeypatch.setattr(engine, "chosen_form", spied)
    case = form.case(max_of(form))
    with jaxpool.lowering(form.asked):
        jax.eval_shape(form.function(case), case.input())
    ((geometry, chosen),) = seen
    assert form.takes(geometry)
    assert chosen == form.asked if form.asked != "auto" else "stages"


def max_of(form):
    """The op that takes the maximum of such windows: the plainest that chooses."""
    family = "adaptive" if form.kind == "adaptive" else "extremum"
    ops = [o for o in OPS.values() if (o.family, o.kind) == (family, form.kind)]
    return next(o for o in ops if o.monotone and o.outputs == 1 and not o.linear)


def ops_of(form):
    """Ops of such windows: all, or those that the engine computes by themselves."""
    all_ops = form is FORMS["one stage"] or form is FORMS["windows of windows"]
    for case in ops_of_any_window():
        plain = case.op.family in ("extremum", "average") or form.kind != "window"
        sized = any(
            np.ndim(v)
            for k, v in case.kwargs.items()
            if k not in WINDOW and k != "output_shape"
        )
        if case.op.kind == form.kind and (plain or (all_ops and not sized)):
            yield case.op


def members(case, x):
    """`[element, window]`: which windows an element lies in, by where its NaN goes."""
    plane = x[:1, ..., :1]
    probes = np.repeat(plane, plane.size, 0)
    probes.reshape(plane.size, -1)[np.diag_indices(plane.size)] = np.nan
    with np.errstate(all="ignore"):
        y = jax.tree.leaves(case.expected(probes))[0]
    return np.isnan(y).reshape(plane.size, -1)


def first_equal(x, y, inside):
    """`[plane, window]`: where the first element that is the result stands, or -1.

    None if some window has elements, and none of them is its result.
    """
    x, y = x.reshape(len(x), -1, 1), y.reshape(len(y), 1, -1)
    equal = inside & ((x == y) | (np.isnan(x) & np.isnan(y)))
    if np.any(inside.any(0) & ~equal.any(1)):
        return None
    return np.where(equal.any(1), equal.argmax(1), -1)


def check_gradient(x, expected, gradient, cotangent, inside, usual):
    """What every op promises of its gradient at inputs `[plane, S..., 1]`.

    Elements that share no window with an odd one have the `usual` gradient; those whose
    windows all have finite results have finite gradients. `expected`, `cotangent` and
    `inside` are those of all windows.
    """
    count = len(x)
    g, y = gradient.reshape(count, -1), expected.reshape(count, -1)
    spoilt = (inside & ~np.isfinite(y)[:, None]).any(-1)
    assert np.isfinite(g[~spoilt]).all()
    odd = ~np.isfinite(x.reshape(count, -1))
    touched = (inside & (odd[..., None] & inside).any(1)[:, None]).any(-1)
    usual = np.broadcast_to(usual.reshape(1, -1), g.shape)
    np.testing.assert_allclose(g[~touched], usual[~touched], rtol=2e-6, atol=2e-6)


def check_choice(x, expected, gradient, cotangent, inside):
    """Of results that are elements, the first such element has all of the gradient."""
    g, c = gradient.reshape(len(x), -1), cotangent.reshape(len(x), -1)
    winner = first_equal(x, expected, inside)
    chosen = winner[:, None] == np.arange(g.shape[1])[:, None]
    np.testing.assert_allclose(g, (chosen * c[:, None]).sum(-1), rtol=2e-6)


def marked_forms():
    """(form, op) for each form; the maximum alone unless all of it is asked for."""
    for name, form in FORMS.items():
        for op in ops_of(form):
            marks = () if op is max_of(form) else pytest.mark.full
            yield pytest.param(name, op, id=f"{name}-{op.name}", marks=marks)


@pytest.mark.parametrize(("name", "op"), list(marked_forms()))
def test_nan_and_infinity_at_each_place(name, op, record):
    """In small arrays and in ones that XLA treats as large, forward and backward."""
    form = FORMS[name]
    case = form.case(op)
    plain = case.input(batch=(1,), channels=1)
    x = np.repeat(plain, 3 * plain.size, 0)
    places = np.arange(len(x))
    x.reshape(len(x), -1)[places, places % plain.size] = np.repeat(
        np.float32([np.nan, np.inf, -np.inf]), plain.size
    )
    with np.errstate(all="ignore"):
        expected = jax.tree.leaves(case.expected(x))[0]
    rng = np.random.default_rng(0)
    cotangent = rng.integers(1, 8, (1, *expected.shape[1:])).astype(np.float32)

    def both(x):
        y, pull = jax.vjp(form.function(case), x)
        return y, pull(jnp.broadcast_to(cotangent, y.shape))[0]

    @jax.jit
    def run(x, plain):
        small = jax.lax.map(lambda x: both(x[None]), x)
        return both(plain)[1], both(x), jax.tree.map(lambda a: a[:, 0], small)

    repeats = -(-4096 // x.size)
    with jaxpool.lowering(form.asked):
        usual, *results = run(np.tile(x, (repeats, *[1] * (x.ndim - 1))), plain)
    inside = members(case, plain)
    usual_result = jax.tree.leaves(case.expected(plain))[0]
    chooses = first_equal(plain, usual_result, inside) is not None
    cotangent = np.broadcast_to(cotangent, expected.shape)
    for y, g in results:
        y, g = (np.asarray(a).reshape(repeats, len(x), *a.shape[1:]) for a in (y, g))
        np.testing.assert_array_equal(y, np.broadcast_to(y[:1], y.shape))
        np.testing.assert_array_equal(g, np.broadcast_to(g[:1], g.shape))
        np.testing.assert_allclose(y[0], expected, rtol=2e-6, atol=2e-6)
        check_gradient(x, expected, g[0], cotangent, inside, np.asarray(usual))
        if chooses:
            check_choice(x, expected, g[0], cotangent, inside)
    record(what="special", form=name, op=op.name, inputs=2 * len(x))


def differentiable_ops():
    """A case for each op that has a gradient; the slow ones with `--full`."""
    for case in typical():
        if not case.op.integer:
            quick = case.op.kind == "window" and case.op.family == "extremum"
            yield pytest.param(
                case, id=str(case), marks=() if quick else pytest.mark.full
            )


EVERY_OP = list(differentiable_ops())
EDGES = {
    "ties": np.round,
    "zeros of both signs": lambda x: np.copysign(0, x),
    "all -inf": lambda x: np.full_like(x, -np.inf),
    "all +inf": lambda x: np.full_like(x, np.inf),
}
# Windows of -inf alone give 0 and not what the oracle has.
WEIGHTLESS = {
    "soft_pool": "its docstring says so: no element has a weight",
    "auto_pool": "as `soft_pool`",
}


@pytest.mark.parametrize("case", EVERY_OP)
def test_edges(case, record):
    """Values as the oracle's; both modes choose alike; the sign of zero is nothing."""
    f = case.differentiable

    @jax.jit
    def passes(x, t):
        y, pull = jax.vjp(f, x)
        g = pull(jnp.ones_like(y))[0]
        return y, g, jnp.sum(jax.jvp(f, (x,), (t,))[1]), jnp.sum(g * t)

    def shown(x):
        t = np.random.default_rng(3).integers(-4, 5, x.shape).astype(x.dtype)
        return jax.tree.map(np.asarray, passes(x, t))

    for name, edge in EDGES.items():
        x = edge(case.input()).astype(np.float32)
        y, g, forward, backward = shown(x)
        with np.errstate(all="ignore"):
            expected = jax.tree.leaves(case.expected(x))[0]
        if name == "all -inf" and case.op.name in WEIGHTLESS:
            expected = np.zeros_like(expected)
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=4e-6, err_msg=name)
        if np.isfinite(expected).all():
            assert np.isfinite(g).all(), name
            np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-4)
        if name == "zeros of both signs":
            for again, first in zip(shown(np.abs(x)), (y, g), strict=False):
                np.testing.assert_array_equal(again, first)
    record(what="edges", op=case.op.name)


@pytest.mark.parametrize("case", EVERY_OP)
def test_nothing_and_one(case, record):
    """Gradients of no batch and of no channels; and axes of one element."""
    f = case.differentiable
    gradient = jax.jit(lambda x: jax.vjp(f, x)[1](jnp.ones_like(f(x)))[0])
    empty = []
    if case.batch is None:
        empty.append(case.input(batch=(0,)))
    if not case.op.weights and (case.op.name, "no_channels") not in EXCEPT:
        empty.append(case.input(channels=0))
    for x in empty:
        g = gradient(x)
        assert g.shape == x.shape
        assert g.size == 0
    one = dataclasses.replace(case, sizes=(1,) * len(case.sizes))
    plain = not any(np.ndim(v) > 1 for k, v in case.kwargs.items() if k not in WINDOW)
    if case.op.kind != "other" and plain:
        f, x = one.differentiable, one.input()
        gradient = jax.jit(lambda x: jax.vjp(f, x)[1](jnp.ones_like(f(x)))[0])
        expected = jax.tree.leaves(one.expected(x))[0]
        np.testing.assert_allclose(jax.jit(f)(x), expected, rtol=2e-6, atol=2e-6)
        assert np.isfinite(gradient(x)).all()
    record(
        what="empty",
        op=case.op.name,
        inputs=len(empty),
        one=case.op.kind != "other" and plain,
    )
