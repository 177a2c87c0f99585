"""The questions that every pooling op is asked, each of one case.

jaxpool's own tests ask the same of its own ops. A question raises `AssertionError`, or
what the op raised, where the answer is wrong.
"""

import contextlib
import functools
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jaxpool._core.op import PoolOp
from jaxpool.testing.cases import Case

__all__ = [
    "any_layout",
    "any_number_of_batch_axes",
    "compilations",
    "equals_the_oracle",
    "gradient_of_every_case",
    "half_precision",
    "integer_widths",
    "integers",
    "is_what_its_row_says",
    "jit_and_vmap_change_nothing",
    "mask",
    "nan_and_infinity",
    "no_channels",
    "parameter",
    "parameter_gradient",
    "second_call_compiles_nothing",
    "second_derivative",
    "signed_zeros",
    "ties",
]

# float32 rounds at 6e-8; results here are of the order of 1, of up to 60 terms.
F32: dict[str, Any] = dict(rtol=2e-6, atol=2e-6)


def agree(actual: Any, expected: Any, **tolerance: Any) -> None:
    """Compares an op's result, or its several results, with the expected ones."""
    actual, expected = (jax.tree.leaves(tree) for tree in (actual, expected))
    assert len(actual) == len(expected), f"{len(actual)} results, not {len(expected)}"
    for a, e in zip(actual, expected, strict=True):
        e = np.asarray(e)
        assert a.shape == e.shape, f"shape {a.shape}, not {e.shape}"
        np.testing.assert_allclose(np.asarray(a, e.dtype), e, **tolerance)


def equals_the_oracle(case: Case) -> None:
    """Values are the oracle's."""
    x = case.input()
    agree(jax.jit(case.function())(x), case.expected(x), **F32)


def is_what_its_row_says(case: Case) -> None:
    """It is linear if and only if its row says so, and monotone if it does."""
    f = jax.jit(case.differentiable)
    x, z = case.input(), case.input(seed=1)
    mixed, expected = f(2 * x - 3 * z), 2 * f(x) - 3 * f(z)
    linear = bool(np.allclose(mixed, expected, rtol=1e-5, atol=1e-5))
    assert linear == case.op.linear, f"linear is {linear}"
    if case.op.monotone:
        assert np.all(f(x + np.abs(z)) >= f(x)), "it is not monotone"


def any_layout(case: Case) -> None:
    """Channels first with `axis=` is channels last without."""
    x = case.input()
    if case.op.kind == "global":
        last, first = {"keepdims": True}, {"axis": (-2, -1), "keepdims": True}
    else:
        last, first = {}, {"axis": (-2, -1)}
    moved = jax.jit(case.function(**first))(np.moveaxis(x, -1, 1))
    expected = jax.jit(case.function(**last))(x)
    moved = jax.tree.map(lambda y: jnp.moveaxis(y, 1, -1), moved)
    agree(moved, expected, **F32)


def any_number_of_batch_axes(case: Case, batch: tuple[int, ...]) -> None:
    """Without a batch axis, with an empty one, and with several, it is `vmap`."""
    x = case.input(batch=batch)
    axis = {"axis": (-3, -2)} if case.op.kind == "global" else {}
    flat = x.reshape(-1, *x.shape[len(batch) :])
    expected = jax.jit(jax.vmap(case.function(**axis)))(flat)
    expected = jax.tree.map(lambda y: y.reshape(*batch, *y.shape[1:]), expected)
    agree(jax.jit(case.function(**axis))(x), expected, **F32)


def no_channels(case: Case) -> None:
    """An input without elements gives a result without elements."""
    y = jax.tree.leaves(jax.jit(case.function())(case.input(channels=0)))[0]
    assert y.size == 0, f"{y.size} elements of an input without any"


def jit_and_vmap_change_nothing(case: Case) -> None:
    """It gives the same in and out of `jit`, and under `vmap`."""
    f, x = case.function(), case.input()
    agree(jax.jit(f)(x), f(x), **F32)
    stacked = np.stack([x, -x, 2 * x], 1)
    each = [f(stacked[:, i]) for i in range(3)]
    expected = jax.tree.map(lambda *ys: jnp.stack(ys), *each)
    agree(jax.jit(jax.vmap(f, 1))(stacked), expected, **F32)


def second_call_compiles_nothing(case: Case, channels: int = 5) -> None:
    """Called again with other numbers, out of `jit`, it compiles nothing.

    The number of channels is to be one that no call has had before.
    """
    f, x = case.function(), jnp.asarray(case.input(batch=(3,), channels=channels))
    with compilations() as first:
        jax.block_until_ready(f(x))
    with compilations() as second:
        jax.block_until_ready(f(x))
    assert first, "the first call compiled nothing: other channels, please"
    assert not second, f"the second call compiles again: {second}"


def gradient_of_every_case(case: Case) -> None:
    """The gradient is that of finite differences, in float64."""
    _differences(case, order=1, modes=("rev",))


def second_derivative(case: Case) -> None:
    """So are first and second derivatives in either mode, and mixed."""
    _differences(case, order=2, modes=("fwd", "rev"))


def _differences(case: Case, **which: Any) -> None:
    x = jnp.asarray(case.input(batch=(1,), channels=1, dtype=np.float64))
    assert x.dtype == np.float64, "needs `jax_enable_x64`"
    close = {"eps": 1e-4, "rtol": 1e-4, "atol": 1e-4}
    check_grads(jax.jit(case.differentiable), (x,), **which, **close)


def half_precision(case: Case, dtype: Any) -> None:
    """It rounds once, and holds windows of equals, of 0, and of large numbers."""
    f, gradient = case.function(), jax.grad(finite_sum(case))

    @jax.jit  # all of it at once: one compilation
    def results(x):
        y = jax.tree.leaves(f(x))[0]
        return y, gradient(x), gradient(x.astype(jnp.float32))

    x = case.input()
    given = jnp.asarray(x).astype(dtype)
    y, g, wide = results(given)
    expected = jax.tree.leaves(case.expected(np.asarray(given, np.float64)))[0]
    assert y.dtype == g.dtype == dtype, f"dtypes {y.dtype}, {g.dtype} of {dtype}"
    eps = float(jnp.finfo(dtype).eps)
    agree(y, expected, rtol=eps, atol=eps / 64)
    agree(g, np.asarray(wide, np.float64), rtol=eps, atol=eps / 64)
    for hard in (x * 0, x * 0 - 1, x * 0 + 1e4, x * 0 - 1e4, np.sign(x) * 1e4):
        y, g, _ = results(jnp.asarray(hard).astype(dtype))
        fits = np.abs(jax.tree.leaves(case.expected(hard))[0]) < jnp.finfo(dtype).max
        values = np.asarray(y, np.float32)[np.asarray(fits)]
        assert np.isfinite(values).all(), "a result that fits is not finite"
        assert np.isfinite(np.asarray(g, np.float32)).all(), "a gradient is not finite"


def integers(case: Case, dtype: Any, wide: str | None = None) -> None:
    """Integers keep their dtype, or promote as `jnp.sum` or `jnp.mean` (`wide`) do."""
    x = case.input() * 20
    x = (x > 0) if dtype == "bool" else np.abs(x).round().astype(dtype)
    y = jax.tree.leaves(jax.jit(case.function())(x))[0]
    expected = jax.tree.leaves(case.expected(x.astype(np.float64)))[0]
    like = {"sum": jnp.sum, "mean": jnp.mean}.get(wide or "")
    wanted = like(x).dtype if like else x.dtype
    if jnp.issubdtype(wanted, np.integer):  # which wrap
        expected = expected.astype(np.int64).astype(wanted)
    assert y.dtype == wanted, f"{y.dtype}, not {wanted}"
    # The error of a sum goes with its terms: 20 times those of the other tests.
    agree(y, np.asarray(expected, np.float64), rtol=2e-6, atol=20 * 2e-6)


def integer_widths(
    name: str,
    count: int,
    given: Callable[[Any], tuple[Any, dict[str, Any]]],
    fn: Callable[..., Any],
    oracle: Callable[..., Any],
) -> None:
    """What `name` counts up to `count` is counted in every dtype, up to its limits.

    `given(integers)` are the array and the arguments of a call. What lies outside may
    be refused where it is known.
    """

    def call(integers):
        x, arguments = given(integers)
        return fn(x, **arguments)

    tried = {-1, 0, 1, 5, count - 1, count, count + 1}
    for bits in (7, 8, 15, 16, 31, 32, 63, 64):
        tried |= {2**bits - 1, 2**bits, 2**bits + 1, -(2**bits), 1 - 2**bits}
    for sign, bits in itertools.product(("", "u"), (4, 8, 16, 32, 64)):
        dtype, f = np.dtype(getattr(jnp, f"{sign}int{bits}")), jax.jit(call)
        limits = jnp.iinfo(dtype)
        every = [n for n in tried if limits.min <= n <= limits.max]
        inside = [n for n in every if 0 <= n < count]
        for several in (every, inside):
            # As many of each dtype, so that they share what is compiled.
            integers = np.resize(np.array(several, object), len(tried))
            x, arguments = given(np.clip(integers, -(2**40), 2**40).astype(np.int64))
            expected, integers = oracle(x, **arguments), integers.astype(dtype)
            if jax.dtypes.canonicalize_dtype(dtype) == dtype:  # JAX narrows others
                agree(f(integers), expected, **F32)
            y = _unless_refused(call, integers, name)
            assert y is not None or several is every, f"{dtype} is refused"
            if y is not None:
                agree(y, expected, **F32)


def parameter(case: Case, name: str, first: bool = False) -> None:
    """A parameter of any shape and dtype is right, value by value, or refused by name.

    A vector has a value a channel in every layout: channels last, or `first`.
    """
    # As many channels as places along an axis, so that one could pass for the other.
    x, op = case.input(channels=case.sizes[0]), case.op
    layout: dict[str, Any] = {"axis": tuple(range(2 - x.ndim, 0))} if first else {}
    layout |= {"keepdims": True} if op.kind == "global" else {}

    def call(value):
        value = np.moveaxis(value, -1, 1) if first and value.ndim == x.ndim else value
        laid = np.moveaxis(x, -1, 1) if first else x
        y = jax.tree.leaves(case.function(**layout, **{name: value})(laid))[0]
        return jnp.moveaxis(y, 1, -1) if first else y

    @functools.cache
    def expected(value):
        return jax.tree.leaves(case.with_arguments(**{name: value}).expected(x))[0]

    scalars, taken = _scalars(op, name), set()
    out = np.shape(expected(float(scalars[0])))
    shapes = _shapes(x.shape, (*out[:1], *(1,) * (x.ndim - len(out)), *out[1:]))
    values = [np.resize(np.float32(scalars), shape) for shape in shapes]
    values += [np.resize([1, 2], shape).astype(np.uint8) for shape in shapes[:2]]
    for value in values:
        for f in (jax.jit(call), call)[: 1 if value.ndim > 1 else 2]:
            y = _unless_refused(f, value, name)
            if y is None:
                continue
            taken.add(value.shape)
            whole = value.reshape((1,) * (x.ndim - value.ndim) + value.shape)
            if y.ndim < x.ndim:
                whole = whole.squeeze(tuple(range(1, x.ndim - 1)))
            whole = np.broadcast_to(whole, y.shape)  # or it should have been refused
            each = [np.reshape(expected(float(v)), y.shape) for v in np.unique(value)]
            agree(y, np.select([whole == v for v in np.unique(value)], each), **F32)
    if name in op.learned:
        assert {*shapes[:5]} <= taken, "a scalar, or values along batch and channels"


def parameter_gradient(case: Case, name: str) -> None:
    """The gradient to a parameter is that of finite differences, in float64."""
    x = case.input(dtype=np.float64)
    for shape in _shapes(x.shape, x.shape)[:5:4]:
        value = jnp.asarray(np.resize(_scalars(case.op, name), shape))
        assert value.dtype == np.float64, "needs `jax_enable_x64`"

        def f(value):
            return jax.tree.leaves(case.function(**{name: value})(x))[0]

        close = {"eps": 1e-4, "rtol": 1e-4, "atol": 1e-4}
        check_grads(jax.jit(f), (value,), order=1, modes=("fwd", "rev"), **close)


def _unless_refused(f: Callable[[Any], Any], value: Any, name: str) -> Any:
    """`f(value)`, or None where an error says of the argument what it must be."""
    try:
        return f(value)
    except (TypeError, ValueError) as error:
        if f"`: `{name}` must " not in str(error):
            raise
    return None


def _scalars(op: PoolOp, name: str) -> np.ndarray:
    """Three values for a parameter, near its default."""
    default = inspect.signature(op.fn).parameters[name].default
    near = default if isinstance(default, int | float) and default else 0.5
    return near * np.array([1, 1.25, 1.5])


def _shapes(x: tuple[int, ...], y: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of a parameter, for `x` with channels last and its result, of one rank.

    The first ones are a scalar, and those that differ along batch and channels alone.
    """
    (n, *inner, c), ones = x, (1,) * (len(x) - 2)
    shapes = [(), (c,), (1, *ones, c), (n, *ones, 1), (n, *ones, c), (c + 1,), (1, *x)]
    for sizes in (inner, y[1:-1]):
        shapes += [(1, *ones[:a], k, *ones[a + 1 :], 1) for a, k in enumerate(sizes)]
        shapes += [(1, *sizes, 1), (n, *sizes, c)]
    return list(dict.fromkeys(shapes))


def nan_and_infinity(case: Case, special: float) -> None:
    """NaN and infinities go where the oracle lets them go."""
    x = case.input()
    x[0, 2, 3] = x[1, 0, 0] = x[1, 5, 6] = special
    with np.errstate(invalid="ignore"):
        expected = case.expected(x)
    agree(case.function()(x), expected, **F32)


def ties(case: Case) -> None:
    """Of equal elements it takes the one that the oracle takes."""
    x = np.round(case.input())
    agree(jax.jit(case.function())(x), case.expected(x), **F32)


def signed_zeros(case: Case) -> None:
    """-0. and 0. are equal: results, indices and gradients do not tell them apart."""
    x = np.round(case.input() / 2)
    signed, plain = (np.where(x == 0, zero, x) for zero in (case.input(seed=1) * 0, 0))

    @jax.jit
    def results(x):
        return case.function()(x), jax.grad(finite_sum(case))(x)

    agree(results(signed), results(plain.astype(x.dtype)), rtol=0, atol=0)


def mask(case: Case) -> None:
    """What `where` hides takes no part, whatever it is, and has no gradient."""
    x = case.input()
    some = np.random.default_rng(1).random(x.shape) > 0.6
    some[:, :3, :4] = False  # windows without elements

    @jax.jit
    def value(x, where):
        return case.function(where=where)(x)

    @jax.jit
    def gradient(x, where):
        return jax.grad(finite_sum(case, where=where))(x)

    for where in (some, some[:, :1], some[0, ..., :1]):
        expected = case.expected(x, where)
        agree(value(x, where), expected, **F32)
        for secret in (127, -128) if case.op.integer else (np.nan, np.inf):
            hidden = np.where(np.broadcast_to(where, x.shape), x, secret)
            agree(value(hidden, where), expected, **F32)
            if case.op.integer:
                continue
            g = gradient(hidden, where)
            assert np.isfinite(g).all(), "what is hidden shows in a gradient"
            unseen = np.where(np.broadcast_to(where, x.shape), 0, g)
            assert not np.any(unseen), "what is hidden has a gradient"
    agree(case.function(where=np.True_)(x), case.function()(x), **F32)
    nothing = case.function(where=np.False_)(x)
    agree(nothing, case.expected(x, np.zeros(x.shape, bool)))


def finite_sum(case: Case, **where: Any) -> Callable[[Any], jax.Array]:
    """The sum of an op's results, without those of windows without elements."""
    f = case.function(**where)

    def loss(x):
        y = jax.tree.leaves(f(x))[0]
        return jnp.where(jnp.isfinite(y), y, 0).sum()

    return loss


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Yields the list of what JAX compiles within the context."""
    seen: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record):
            if "XLA comp" in record.getMessage():
                seen.append(record.getMessage())

    collector, logger = Collector(), logging.getLogger("jax")
    logger.addHandler(collector)
    try:
        with jax.log_compiles():
            yield seen
    finally:
        logger.removeHandler(collector)
