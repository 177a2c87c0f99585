"""Flax models, with and without `jaxpool.compat.flax.use()`."""

import contextlib
import functools
import importlib
import inspect
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import flax.core.nn
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.linen import pooling
from flax.linen.pooling import avg_pool, max_pool, min_pool, pool
from jax import lax

import jaxpool
from jaxpool._core.op import OPS
from jaxpool.compat import flax as compat
from jaxpool.compat._switch import Switch, observed
from jaxpool.explain import explain, memory

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The models' convolutions add up float32 in another order from one trace to the next;
# gradients here are sums of hundreds of numbers around 1.
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
equal = np.testing.assert_array_equal

NAMES = ["avg_pool", "max_pool", "min_pool", "pool"]
early = functools.partial(max_pool, window_shape=(2, 2), strides=(2, 2))
early_1d = functools.partial(max_pool, window_shape=(3,))


@pytest.fixture(autouse=True)
def flax_as_it_is():
    """Usual promotion, which Flax's pools need, and Flax's own functions."""
    assert not is_on()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    compat.restore()


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def is_on():
    """Whether what this file imported at its top runs on jaxpool."""
    return "reduce_window" not in str(jax.make_jaxpr(early_1d)(jnp.ones((3, 1))))


# Models.


class Block(nn.Module):
    """A residual block."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        y = nn.Conv(self.features, (3, 3), strides, use_bias=False)(x)
        y = nn.relu(nn.GroupNorm(2)(y))
        y = nn.GroupNorm(2)(nn.Conv(self.features, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.avg_pool(x, strides, strides, "SAME", count_include_pad=False)
            x = nn.Conv(self.features, (1, 1), use_bias=False)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A small residual network: its stem pools as ImageNet's do."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = Block(8, 2)(x)
        x = -nn.pooling.min_pool(-x, (2, 2), padding=((1, 0), (0, 1)))
        return nn.Dense(5)(x.mean((1, 2)))


class CNN(nnx.Module):
    """A small network that holds one of its pools in a partial."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4 * 3 * 3, 5, rngs=rngs)
        self.pool = functools.partial(
            nnx.avg_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME"
        )

    def __call__(self, x):
        x = self.pool(nnx.relu(self.conv1(x)))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2), ((0, 1), (1, 0)))
        x = nnx.pool(x, 0.0, lax.add, (1, 1), None, "VALID")
        return self.head(x.reshape(len(x), -1))


def linen_run():
    x = draw(2, 24, 24, 3)
    model = ResNet()
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def loss(variables, x):
        y = model.apply(variables, x)
        return (y**2).sum(), y

    return lambda: jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)


def nnx_run():
    graph, state = nnx.split(CNN(nnx.Rngs(0)))
    x = draw(2, 10, 10, 2)

    def loss(state, x):
        y = nnx.merge(graph, state)(x)
        return (y**2).sum(), y

    return lambda: jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, x)


@pytest.mark.parametrize("build", [linen_run, nnx_run])
def test_a_model_gives_the_same(build):
    run = build()  # before: the model and what it holds are Flax's
    theirs = run()
    with compat.use():
        assert "reduce_window" not in str(jax.make_jaxpr(run)())
        ours = run()
    assert "reduce_window" in str(jax.make_jaxpr(run)())
    jax.tree.map(close, ours, theirs)
    assert all(float(jnp.abs(g).max()) > 1e-3 for g in jax.tree.leaves(ours[1]))


def test_every_name_and_every_holder():
    x = draw(2, 6, 6, 3)
    calls = {
        "avg_pool": lambda f: f(x, (3, 3), (2, 1), "SAME", False),
        "max_pool": lambda f: f(x, (3, 3), padding=((1, 0), (0, 1))),
        "min_pool": lambda f: f(inputs=x, window_shape=(2, 2), strides=(2, 2)),
        "pool": lambda f: f(x, 1.0, lax.mul, (2, 2), (2, 2), "VALID"),
    }
    holders = [nn, pooling, nnx, flax.core.nn, sys.modules[__name__]]
    held = [(n, getattr(h, n)) for h in holders for n in NAMES if hasattr(h, n)]
    assert len(held) == 3 + 4 + 4 + 2 + 4
    theirs = [calls[name](function) for name, function in held]
    with compat.use():
        for (name, function), expected in zip(held, theirs, strict=True):
            close(calls[name](function), expected)
            ran = str(jax.make_jaxpr(lambda f=function, n=name: calls[n](f))())
            assert "reduce_window" not in ran
            assert getattr(pooling, name) is function
            assert pickle.loads(pickle.dumps(function)) is function


def test_signatures_stay():
    before = [inspect.signature(getattr(pooling, name)) for name in NAMES]
    with compat.use():
        after = [inspect.signature(getattr(pooling, name)) for name in NAMES]
    assert before == after


# On and off.


def test_a_context():
    with compat.use() as outer:
        assert is_on()
        with compat.use():
            assert is_on()
        assert is_on()
        outer.restore()
        assert not is_on()
    assert not is_on()
    with outer:  # again
        assert is_on()
    assert not is_on()


def test_for_good():
    first, second = compat.use(), compat.use()
    first.restore()
    first.restore()
    assert is_on()
    second.restore()
    assert not is_on()
    compat.use()
    compat.use()
    compat.restore()
    assert not is_on()
    compat.restore()


def test_an_exception_ends_it():
    with pytest.raises(KeyError), compat.use() as handle:
        {True: "on"}.pop(is_on()) and {}[handle]
    assert not is_on()


def test_what_jit_has_compiled():
    """Told by a NaN's gradient, which jaxpool keeps and Flax gives to another."""
    step = jax.jit(jax.grad(lambda x: max_pool(x, (3,)).sum()))
    x = jnp.array([1.0, jnp.nan, 3.0])[:, None]
    assert step(x)[1, 0] == 0
    with compat.use():
        assert step(x)[1, 0] == 1
    assert step(x)[1, 0] == 0


def test_within_a_trace():
    """Turning forgets what was traced; a trace under way goes on."""

    @jax.jit
    def run(x):
        before = early(x)
        with compat.use():
            within = early(x)
        return before, within, early(x)

    x = jnp.arange(16.0).reshape(4, 4, 1)
    jax.tree.map(equal, run(x), (early(x),) * 3)
    assert str(jax.make_jaxpr(run)(x)).count("reduce_window_max[") == 2


def test_threads():
    """It is the whole process's, and ends with the last of those who asked."""
    barrier, seen = threading.Barrier(4), []

    def work():
        for _ in range(5):
            barrier.wait()
            with compat.use():
                seen.append(nn.max_pool.__code__ is compat.max_pool.__code__)
                barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 20
    assert not is_on()


# Beside `jaxpool.explain`, which puts stand-ins into the same functions.


def leaves_it_on(x):
    compat.use()
    return nn.max_pool(x, (3, 3))


def leaves_it_off(x):
    compat.use()
    y = nn.max_pool(x, (3, 3))
    compat.restore()
    return y


def breaks(x):
    with compat.use():
        return nn.max_pool(x, (3, 3)) + leaves_it_on(x).broken


def uses_it(x):
    with compat.use():
        y = nn.max_pool(x, (3, 3))
    return nn.avg_pool(y, (1, 1))


def explains(x):
    with compat.use():
        explain(leaves_it_on, x.shape)
    return leaves_it_off(x)


@pytest.mark.parametrize("look", [explain, memory])
@pytest.mark.parametrize("outside", [contextlib.nullcontext, compat.use])
@pytest.mark.parametrize(
    ("model", "on"),
    [
        (leaves_it_on, True),
        (leaves_it_off, False),
        (breaks, True),
        (uses_it, None),
        (explains, False),
    ],
)
def test_a_model_that_turns_it_while_it_is_explained(model, on, outside, look):
    functions = [*(op.fn for op in OPS.values()), max_pool, avg_pool, min_pool, pool]
    before = [(f.__code__, vars(f).copy()) for f in functions]
    with outside():
        on = is_on() if on is None else on
        with contextlib.suppress(AttributeError):
            told = look(model, (1, 6, 6, 1))
            if look is explain and model is not breaks:
                assert told.layers[0].op == "max_pool"
        assert is_on() is on  # as the model left it
        use = compat.use()  # Flax is one that is known
        assert is_on()
        use.restore()
        assert is_on() is on
    compat.restore()
    assert [(f.__code__, vars(f)) for f in functions] == before


def test_in_any_order():
    """Whoever begins and ends when: it is on while somebody asks, and looked at."""
    watched = Switch(lambda: {max_pool: lambda *args: 0, avg_pool: min_pool}, True)
    other = Switch(lambda: {pool: lambda *args: 0})
    switches, draw_one = [compat._switch, watched, other], random.Random(5)
    codes = [f.__code__ for f in (max_pool, avg_pool, min_pool, pool)]
    for _ in range(20):
        uses = []
        for _ in range(30):
            if uses and draw_one.random() < 0.5:
                uses.pop(draw_one.randrange(len(uses)))[1].restore()
            else:
                switch = draw_one.choice(switches)
                uses.append((switch, switch.use()))
            on, seen, taken = (switch in [s for s, _ in uses] for switch in switches)
            assert (min_pool.__code__ is compat.min_pool.__code__) is on
            assert (
                max_pool.__code__ not in (codes[0], compat.max_pool.__code__)
            ) is seen
            below = compat.max_pool.__code__ if on else codes[0]
            assert observed(max_pool).__code__ is below
            assert (pool.__code__ is not codes[3]) is (on or taken)
        for _, use in uses:
            use.restore()
        assert [f.__code__ for f in (max_pool, avg_pool, min_pool, pool)] == codes


def test_a_context_that_is_entered_twice():
    use = compat.use()
    with use:
        with use:
            assert is_on()
        assert is_on()
    assert not is_on()


class Pools(nnx.Module):
    def __call__(self, x):
        with compat.use():
            return nnx.max_pool(
                jax.jit(nnx.max_pool, static_argnums=1)(x, (2, 2)), (2, 2)
            )


def test_explained_in_threads():
    call, told = Pools.__call__, []
    barrier = threading.Barrier(4)

    def work(size):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for _ in range(5):
                barrier.wait()
                explanation = explain(Pools(), (1, size, size, 1))
                told.append([e.output_shape[1] - size for e in explanation.layers])

    threads = [threading.Thread(target=work, args=[size]) for size in range(6, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [[-1, -2]] * 20
    assert Pools.__call__ is call
    assert not is_on()


def halved(x):
    return nn.avg_pool(x, (2, 2), (2, 2))


def test_what_is_traced_while_it_is_explained_is_not_used_later():
    @jax.jit
    def model(x):
        return jax.lax.cond(x.sum() > 0, halved, lambda x: -halved(x), jax.jit(abs)(x))

    x = draw(1, 4, 4, 1) + 1
    theirs = model(x)
    jax.clear_caches()
    needs = memory(model, x.shape, swap={"avg": "max"})
    assert needs.after != needs.before
    for _ in range(2):
        explanation = explain(model, x.shape)
        pools = [e.op for e in explanation.layers if e.is_pool]
        assert pools == ["avg_pool", "avg_pool"]
    equal(model(x), theirs)
    assert "jaxpool" not in str(jax.make_jaxpr(model)(x))


# What is refused.


def test_an_unknown_flax_is_refused(monkeypatch):
    def other(inputs, window_shape, strides=None, padding="SAME"):
        raise NotImplementedError

    def refused(problem):
        with pytest.raises(RuntimeError, match=problem) as raised:
            compat.use()
        assert flax.__version__ in str(raised.value)
        assert all(version in str(raised.value) for version in compat.TESTED)
        assert not is_on()

    with monkeypatch.context() as patch:
        patch.delattr(pooling, "min_pool")
        refused("there is no `min_pool`")
    with monkeypatch.context() as patch:
        patch.setattr(pooling, "max_pool", other)
        refused("`max_pool` has other arguments")
    with monkeypatch.context() as patch:
        patch.setattr(pooling, "min_pool", jax.jit(min_pool))
        refused("`min_pool` is not a plain function")
    with monkeypatch.context() as patch:
        patch.setattr(nnx, "avg_pool", other)
        refused("`flax.nnx.avg_pool` is not that of")
    with compat.use():
        assert is_on()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: nn.max_pool(x, 2), "`max_pool`: `window_shape` must be a sequence"),
        (lambda x: nn.max_pool(x, (9, 9)), "`max_pool`: `window_shape` leaves nothing"),
        (lambda x: nn.avg_pool(x, (2, 2), (0, 1)), "`avg_pool`: `strides` must be at"),
        (
            lambda x: nnx.avg_pool(x, (2, 2), None, ((2, 2), (0, 0)), False),
            "`avg_pool`: `padding` must be less",
        ),
        (
            lambda x: nnx.min_pool(x, (2, 2), padding=((-1, 0), (0, 0))),
            "`min_pool`: `padding` must be at least 0",
        ),
        (lambda x: nnx.max_pool("x", (2, 2)), "`max_pool`: `inputs` must be an array"),
    ],
)
def test_errors_are_in_the_words_of_flax(call, said):
    with compat.use(), pytest.raises((ValueError, TypeError)) as raised:
        call(draw(1, 4, 4, 1))
    assert str(raised.value).startswith(said)


# What differs: the rows of `DIFFERENCES` that are about numbers.


def test_differences():
    tenth = jnp.full((1, 64, 64, 1), 0.1, jnp.bfloat16)
    hundred = jnp.full((1, 4, 4, 1), 100, jnp.int8)
    several = draw(2, 3, 4, 4, 1)
    x = draw(1, 4, 4, 1)

    def product(x):
        return pool(x, 1.0, lax.mul, (2, 2), (2, 2), "VALID").sum()

    assert avg_pool(tenth, (64, 64)).item() == 0.03125
    assert avg_pool(hundred, (4, 4)).item() == 4
    assert avg_pool(tenth, (2, 2), count_include_pad=False).dtype == jnp.float32
    assert max_pool(x, (5, 5)).size == 0
    assert jnp.isnan(avg_pool(x, (2, 2), None, ((2, 0), (0, 0)), False)).any()
    for call in (
        lambda: max_pool(several, (2, 2), padding=((1, 1), (1, 1))),
        lambda: max_pool(x, [2, 2]),
        lambda: max_pool(x, (2, 2), 2),
        lambda: jax.grad(product)(x),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
        with compat.use():
            call()
    with compat.use():
        assert avg_pool(tenth, (64, 64)) == jnp.bfloat16(0.1)
        assert avg_pool(hundred, (4, 4)).item() == 100
        assert avg_pool(tenth, (2, 2), count_include_pad=False).dtype == jnp.bfloat16
    for row in compat.DIFFERENCES:
        assert len(row) == 4
        assert all(isinstance(entry, str) for entry in row)


# Flax's own tests and example, from the sources of the installed version.


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flax")
    wanted = ["--no-deps", "--no-binary=flax", f"flax=={flax.__version__}"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder)]
    subprocess.run([*pip, *wanted], check=True)
    (archive,) = folder.glob("flax-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.mark.full
@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("tests/linen/linen_test.py", "PoolTest"),
        ("tests/core/design/core_resnet_test.py", "resnet"),
        ("examples/imagenet/models_test.py", "resnet"),
    ],
)
def test_the_tests_of_flax(sources, file, chosen):
    code = (
        "import sys, pytest, jaxpool.compat.flax as c; c.use();"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    arguments = ["-q", "-k", chosen, "-p", "no:cacheprovider", "-c", os.devnull]
    root = Path(jaxpool.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(sources / file)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.full
def test_the_imagenet_example_gives_the_same(sources, monkeypatch):
    monkeypatch.syspath_prepend(str(sources / "examples/imagenet"))
    model = importlib.import_module("models").ResNet50(num_classes=10)
    x = draw(1, 4, 64, 64, 3)
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), x[0]
    )

    def loss(params, statistics, x):
        state = {"params": params, "batch_stats": statistics}
        apply = functools.partial(model.apply, mutable=["batch_stats"])
        # Its batch norm names an axis of devices.
        in_axes = ({"params": None, "batch_stats": None}, 0)
        y, updates = jax.vmap(apply, in_axes, axis_name="batch")(state, x)
        return (y**2).sum(), (y, updates)

    def run():
        gradients = jax.value_and_grad(loss, (0, 2), has_aux=True)
        return jax.jit(gradients)(variables["params"], variables["batch_stats"], x)

    theirs = run()
    with compat.use():
        assert "reduce_window" not in str(jax.make_jaxpr(run)())
        ours = run()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # Sums in another order, carried through 50 layers.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * jnp.abs(b).max())
