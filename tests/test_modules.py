"""Modules of both Flax APIs are their functions, and behave as Flax's own layers do."""

import functools
import itertools
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from contract import typical
from flax import linen as nn
from flax import nnx

import jaxpool
import jaxpool.linen
import jaxpool.nnx
from jaxpool._core.op import OPS

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Families whose learned ops take a mask of positions.
TOKENS = ("attention", "probe", "aggregation")
every_op = pytest.mark.parametrize("case", typical(), ids=lambda c: c.op.name)
# What a module does with its framework depends on what it holds, not on its formula.
KINDS = {
    (c.op.takes_key, bool(c.op.learned), bool(c.op.weights), bool(c.op.arrays)): c
    for c in typical()
}
one_of_each_kind = pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=[] if c in KINDS.values() else pytest.mark.full)
        for c in typical()
    ],
    ids=lambda c: c.op.name,
)


@pytest.fixture(autouse=True)
def flax_promotes():
    """Flax itself mixes dtypes and ranks."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


def at_call(case):
    """What the case gives when the module is called, other than `x`."""
    return {k: v for k, v in case.function().keywords.items() if k in case.op.inputs}


def weights(case):
    """The arrays that the case's module learns."""
    given = case.function().keywords
    if case.op.weights:
        return given["params"]
    return {name: given[name] for name in case.op.slots}


def settings(case):
    """What the module of an op with learned arrays is built with."""
    return {k: v for k, v in case.kwargs.items() if k not in case.op.slots}


def start(case, in_linen, x, **named):
    """The variables of the case's module in Linen, with the case's arrays."""
    variables = in_linen.init(jax.random.key(0), x, **named)
    if not case.op.learned_arrays:
        return variables
    ours = {"params": weights(case)}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, ours)
    return ours


def both(case, **more):
    """The case's module in NNX and, bound to its parameters, in Linen."""
    given = {"deterministic", *case.op.inputs}
    fixed = {k: v for k, v in case.function().keywords.items() if k not in given}
    fixed = settings(case) if case.op.learned_arrays else fixed
    rngs = {"rngs": nnx.Rngs(0)} if case.op.learned_arrays else {}
    sampling = {"deterministic": True} if case.op.takes_key else {}
    in_nnx = getattr(jaxpool.nnx, case.op.module_name)(
        **fixed, **sampling, **rngs, **more
    )
    for name, value in weights(case).items():
        getattr(in_nnx, name)[...] = value
    reserved = {"init": "init_"}
    fixed = {reserved.get(k, k): v for k, v in fixed.items()}
    in_linen = getattr(jaxpool.linen, case.op.module_name)(**fixed, **sampling, **more)
    return in_nnx, in_linen


def equal(actual, expected):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        np.testing.assert_array_equal(a, e)


def test_every_op_has_its_modules():
    names = sorted(op.module_name for op in OPS.values())
    assert jaxpool.nnx.__all__ == jaxpool.linen.__all__ == names
    assert {"MaxPool", "StochasticPool", "GlobalGeMPool"} <= set(names)
    with pytest.raises(AttributeError, match="no pooling module `MaximumPool`"):
        _ = jaxpool.nnx.MaximumPool


@every_op
def test_linen_equals_nnx_equals_function(case):
    x, named = case.input(), at_call(case)
    in_nnx, in_linen = both(case)
    # What is learned is an array, which may be computed with in another way.
    learned = {name: getattr(in_nnx, name)[...] for name in case.op.learned}

    @jax.jit  # all of it at once: one compilation
    def results(x, **where):
        variables = start(case, in_linen, x, **named)
        return (
            case.function(**learned, **where)(x),
            in_nnx(x, **named, **where),
            in_linen.apply(variables, x, **named, **where),
        )

    masks = [{}]
    if case.op.takes_where:
        tokens = case.op.weights and case.op.family in TOKENS
        masks.append({"where": x[..., 0] > 0 if tokens else x > 0})
    for mask in masks:
        expected, of_nnx, of_linen = results(x, **mask)
        equal(of_nnx, expected)
        equal(of_linen, expected)


@one_of_each_kind
def test_nnx_module_survives_its_framework(case):
    x = case.input()
    module, _ = both(case)
    named = at_call(case)
    expected = module(x, **named)
    # What it learns is an argument of the compiled program, not a constant of it.
    learned = {name: getattr(module, name)[...] for name in case.op.learned}
    learned |= case.op.passed(weights(case))
    compiled = nnx.jit(lambda m, x: m(x, **named))(module, x)
    equal(compiled, jax.jit(lambda x, p: case.function(**p)(x))(x, learned))
    equal(nnx.merge(*nnx.split(module))(x, **named), expected)
    assert f"{case.op.module_name}(" in repr(module)
    for name, setting in case.op.config.items():  # what is no default is shown
        if name in case.op.learned:
            continue
        value = getattr(module, name)
        shown = re.search(rf"^  {name}=", repr(module), re.MULTILINE)
        assert bool(shown) == (repr(value) != repr(setting.default)), name


@every_op
def test_tabulate_shows_a_module(case):
    x, named = case.input(), at_call(case)
    in_nnx, in_linen = both(case)
    first, *_ = jax.tree.leaves(jax.eval_shape(lambda: case.function()(x)))
    shape, name = ",".join(map(str, first.shape)), case.op.module_name
    wide = {"width": 300}
    for table in (
        nnx.tabulate(in_nnx, x, **named, console_kwargs=wide),
        in_linen.tabulate(jax.random.key(0), x, **named, console_kwargs=wide),
    ):
        plain = re.sub(r"\x1b\[[\d;]*m", "", table)
        assert f"{name} Summary" in plain
        assert f"[{shape}]" in plain
        assert plain.count(f"│ {name} ") == 1  # one call, and nothing of its inside
        for learned in (*case.op.learned, *weights(case)):
            assert f"{learned}: " in plain


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.learned])
def test_learned_parameters(name):
    case = next(c for c in typical() if c.op.name == name)
    x, sizes = case.input(), [None]
    if case.op.per_channel:
        sizes.append(2)
    for argument, features in itertools.product(case.op.learned, sizes):
        default = OPS[name].config[argument].default
        start = jnp.asarray(case.arguments.get(argument, default), jnp.float32)
        shape = start.shape if features is None else (*start.shape[:-1], features)
        in_nnx, in_linen = both(case, **({"features": features} if features else {}))
        variables = in_linen.init(jax.random.key(0), x)
        expected = jnp.broadcast_to(start, shape)
        equal(in_nnx.__dict__[argument][...], expected)
        equal(variables["params"][argument], expected)

        def loss(value, case=case, argument=argument):
            return jnp.sum(case.function(**{argument: value})(case.input()) ** 2)

        gradient = jax.jit(jax.grad(loss))(expected)
        assert np.all(np.abs(gradient) > 0)
        of_nnx = nnx.jit(nnx.grad(lambda m: jnp.sum(m(x) ** 2)))(in_nnx)
        close = {"rtol": 1e-5, "atol": 1e-5}
        of_nnx = nnx.to_pure_dict(of_nnx)
        np.testing.assert_allclose(of_nnx[argument], gradient, **close)

        def linen_loss(variables, in_linen=in_linen):
            return jnp.sum(in_linen.apply(variables, x) ** 2)

        of_linen = jax.jit(jax.grad(linen_loss))(variables)
        np.testing.assert_allclose(of_linen["params"][argument], gradient, **close)
    fixed_nnx, fixed_linen = both(case, trainable=False)
    assert not jax.tree.leaves(nnx.state(fixed_nnx))
    assert not fixed_linen.init(jax.random.key(0), x)


@pytest.mark.parametrize(
    ("case", "name"),
    [(c, n) for c in typical() for n in c.op.positive],
    ids=lambda v: v if isinstance(v, str) else v.op.name,
)
@pytest.mark.parametrize("value", [-3.0, 0.0, np.nan, (1.0, np.inf)], ids=str)
def test_what_has_to_be_positive_starts_so(case, name, value):
    """Under `jit` a parameter is an array whose numbers nobody knows."""
    x, given = case.input(), case.kwargs | {name: value}
    error = pytest.raises(ValueError, match=f"`{name}` must be finite and greater than")
    with error as of_nnx:
        getattr(jaxpool.nnx, case.op.module_name)(**given)
    in_linen = getattr(jaxpool.linen, case.op.module_name)(**given)
    with error as of_linen:
        jax.jit(in_linen.init)(jax.random.key(0), x)
    assert str(of_nnx.value) == str(of_linen.value)


every_weighted_op = pytest.mark.parametrize(
    "case", [c for c in typical() if c.op.learned_arrays], ids=lambda c: c.op.name
)


@every_weighted_op
def test_learned_arrays(case):
    x = case.input()
    arrays = case.op.weights_for(vars(both(case)[0]))
    given = {**settings(case), **({"deterministic": True} if case.op.takes_key else {})}
    modules = [
        getattr(jaxpool.nnx, case.op.module_name)(**given, rngs=nnx.Rngs(seed))
        for seed in (0, 0, 1)
    ]
    states = [nnx.state(m, nnx.Param) for m in modules]
    first, again, other = (nnx.to_pure_dict(s) for s in states)
    in_linen = getattr(jaxpool.linen, case.op.module_name)(**given)
    variables = in_linen.init(jax.random.key(0), x)["params"]
    assert first.keys() == variables.keys() == arrays.keys()
    for name, (shape, initial) in arrays.items():
        fixed = initial in (nn.initializers.zeros, nn.initializers.ones)
        for value in (first[name], variables[name]):
            assert value.shape == shape
            assert value.dtype == jnp.float32
        equal(first[name], again[name])
        assert (np.asarray(first[name]) == other[name]).all() == fixed

    def loss(y):
        return jnp.sum(jax.tree.leaves(y)[0] ** 2)

    f = lambda p: loss(case.function(**case.op.passed(p))(x))  # noqa: E731
    expected = jax.jit(jax.grad(f))(first)
    of_nnx = nnx.jit(nnx.grad(lambda m: loss(m(x))))(modules[0])
    f = lambda p: loss(in_linen.apply({"params": p}, x))  # noqa: E731
    of_linen = jax.jit(jax.grad(f))(first)
    for name, gradient in nnx.to_pure_dict(of_nnx).items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(of_linen[name], expected[name], rtol=1e-4, atol=1e-4)
    # What samples in training may choose by the arrays in evaluation, without a slope.
    assert case.op.takes_key or any(np.any(g) for g in jax.tree.leaves(expected))


@pytest.mark.parametrize("rngs", [None, 3])
def test_learned_arrays_need_a_source_of_randomness(rngs):
    with pytest.raises((ValueError, TypeError), match="`SimPool`: `rngs` must be nnx"):
        jaxpool.nnx.SimPool(4, rngs=rngs)


@pytest.mark.parametrize("api", [jaxpool.nnx, jaxpool.linen], ids=["nnx", "linen"])
def test_bad_sizes_fail_when_built(api):
    for kwargs, message in (
        ({"features": 0, "num_heads": 1}, "`features` must be at least 1; got 0"),
        ({"features": 6, "num_heads": 4}, "`num_heads` must divide the 6 channels"),
        ({"features": 6, "num_heads": 2, "num_queries": 0}, "`num_queries` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            api.AttentionPool(**kwargs)
    with pytest.raises(TypeError, match="num_heads"):
        api.AttentionPool(4)


class TestSampling:
    """`StochasticPool` follows each framework's `Dropout`."""

    x = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    window: ClassVar = {"window_shape": (2, 2), "strides": (2, 2)}

    @property
    def mean(self):
        return jaxpool.stochastic_pool(self.x, **self.window, deterministic=True)

    def drawn(self, y):
        """Whether every element of y is one of its window's."""
        elements = [self.x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return np.any([y == e for e in elements], axis=0).all()

    def test_nnx(self):
        module = jaxpool.nnx.StochasticPool(**self.window, rngs=nnx.Rngs(0))
        first, second = module(self.x), module(self.x)
        assert self.drawn(first)
        assert self.drawn(second)
        assert (first != second).any()
        again = jaxpool.nnx.StochasticPool(**self.window, rngs=nnx.Rngs(0))
        equal(again(self.x), first)
        module.eval()
        equal(module(self.x), self.mean)
        equal(module(self.x, deterministic=True), self.mean)
        assert (module(self.x, deterministic=False) != self.mean).any()
        module.train()
        assert (module(self.x) != self.mean).any()

    def test_nnx_stream_as_dropout(self):
        model = nnx.Sequential(
            nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=1)),
            jaxpool.nnx.StochasticPool(**self.window, rngs=nnx.Rngs(dropout=1)),
        )
        step = nnx.jit(lambda m, x: m(x))
        assert (step(model, self.x) != step(model, self.x)).any()
        model.eval()
        # Compiled as a whole too: XLA rounds a product and its sum at once, or twice.
        mean = functools.partial(
            jaxpool.stochastic_pool, **self.window, deterministic=True
        )
        equal(step(model, self.x), jax.jit(mean)(self.x))

    def test_nnx_keys_at_the_call(self):
        module = jaxpool.nnx.StochasticPool(**self.window)
        key = jax.random.key(3)
        expected = jaxpool.stochastic_pool(self.x, **self.window, key=key)
        equal(module(self.x, rngs=key), expected)
        assert self.drawn(module(self.x, rngs=nnx.Rngs(5)))
        with pytest.raises(ValueError, match="sampling needs a key"):
            module(self.x)
        with pytest.raises(TypeError, match="`rngs` must be"):
            jaxpool.nnx.StochasticPool(**self.window, rngs=3)

    def test_linen(self):
        module = jaxpool.linen.StochasticPool(**self.window)
        keys = jax.random.split(jax.random.key(0))
        first, second = (
            module.apply({}, self.x, deterministic=False, rngs={"dropout": key})
            for key in keys
        )
        assert self.drawn(first)
        assert (first != second).any()
        equal(module.apply({}, self.x, deterministic=True), self.mean)
        key = jax.random.key(3)
        expected = jaxpool.stochastic_pool(self.x, **self.window, key=key)
        equal(module.apply({}, self.x, deterministic=False, rng=key), expected)
        with pytest.raises(Exception, match="needs PRNG for"):
            module.apply({}, self.x, deterministic=False)
        with pytest.raises(Exception, match="deterministic"):
            module.apply({}, self.x)


def test_sequential_and_checkpoint(tmp_path):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), rngs=rngs),
        jaxpool.nnx.MaxPool([2, 2], strides=[2, 2]),
        jaxpool.nnx.MixedPool((2, 2), alpha=0.25, features=4),
        jaxpool.nnx.StochasticPool((2, 2), rngs=rngs),
        jaxpool.nnx.AdaptiveAvgPool((2, 2)),
        jaxpool.nnx.GlobalGeMPool(),
    )
    model.eval()
    x = np.random.default_rng(0).random((2, 9, 9, 3), np.float32)
    expected = model(x)
    assert expected.shape == (2, 4)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
        checkpointer.wait_until_finished()
        zeros = jax.tree.map(jnp.zeros_like, params)
        restored = checkpointer.restore(tmp_path / "params", zeros)
    nnx.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    assert (model(x) != expected).any()
    state = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(model, state)
    equal(model(x), expected)
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 4


def test_linen_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3))(x)
            x = jaxpool.linen.MaxPool((2, 2), strides=(2, 2))(x)
            x = jaxpool.linen.MixedPool((2, 2), features=4)(x)
            return jaxpool.linen.GlobalAvgPool()(x)

    x = np.random.default_rng(0).random((2, 9, 9, 3), np.float32)
    y, variables = Net().init_with_output(jax.random.key(0), x)
    assert y.shape == (2, 4)
    assert variables["params"]["MixedPool_0"]["alpha"].shape == (4,)


@pytest.mark.parametrize("api", [jaxpool.nnx, jaxpool.linen], ids=["nnx", "linen"])
def test_bad_arguments_fail_when_built(api):
    with pytest.raises(ValueError, match="`MaxPool`: `window_shape` must be at least"):
        api.MaxPool((0, 2))
    with pytest.raises(ValueError, match="`AvgPool`: `padding` must be one of VALID"):
        api.AvgPool((2, 2), padding="ZERO")
    with pytest.raises(TypeError, match="window_shape"):
        api.MaxPool()
    with pytest.raises(TypeError, match="stride"):
        api.MaxPool((2, 2), stride=2)
