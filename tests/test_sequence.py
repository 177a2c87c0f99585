"""Sequence pooling: layouts, masks, padding anywhere, and numbers from papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families.sequence import MODES, sequence_pool

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")

F32 = dict(rtol=2e-6, atol=2e-6)
close = np.testing.assert_allclose
static = ("mode", "num_prefix_tokens", "axis")
pool = jax.jit(jaxpool.sequence_pool, static_argnames=static)


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_reference_numbers():
    """Three tokens of which the last is padding, by hand."""
    x = np.array([[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], np.float32)
    where = np.array([True, True, False])
    for mode, expected in {
        "mean": [2.0, 3.0],
        "weighted_mean": [7 / 3, 10 / 3],
        "mean_sqrt_len": [2 * 2**0.5, 3 * 2**0.5],
        "max": [3.0, 4.0],
        "cls": [1.0, 2.0],
        "last": [3.0, 4.0],
        "avgmax": [2.5, 3.5],
    }.items():
        close(jaxpool.sequence_pool(x, where=where, mode=mode), expected, rtol=1e-6)


def sentence_transformers(x, mask):
    """Its Pooling of `[B, L, C]` and `[B, L]` of 0 and 1, padding behind."""
    m = np.broadcast_to(mask[..., None], x.shape).astype(np.float64)
    ranks = m * np.arange(1, x.shape[1] + 1)[:, None]
    clamp = lambda n: np.maximum(n.sum(1), 1e-9)  # noqa: E731
    last = np.maximum(mask.sum(1) - 1, 0)
    return {
        "cls": x[:, 0],
        "last": (x * m)[np.arange(len(x)), last],
        "max": np.where(m == 0, -1e9, x).max(1),
        "mean": (x * m).sum(1) / clamp(m),
        "mean_sqrt_len": (x * m).sum(1) / np.sqrt(clamp(m)),
        "weighted_mean": (x * ranks).sum(1) / clamp(ranks),
    }


def test_sentence_transformers():
    x, lengths = normals(4, 6, 3), np.array([6, 1, 3, 5])
    mask = np.arange(6) < lengths[:, None]
    for mode, expected in sentence_transformers(x.astype(np.float64), mask).items():
        close(jaxpool.sequence_pool(x, where=mask, mode=mode), expected, **F32)
        close(jaxpool.sequence_pool(x, lengths=lengths, mode=mode), expected, **F32)


@pytest.mark.parametrize("prefix", [0, 1, 4])
def test_prefix_tokens(prefix):
    """The class token, or the patch tokens: timm's `global_pool_nlc`."""
    x = normals(2, 7, 3)
    for mode, expected in {
        "cls": x[:, 0],
        "mean": x[:, prefix:].mean(1),
        "max": x[:, prefix:].max(1),
        "avgmax": 0.5 * (x[:, prefix:].max(1) + x[:, prefix:].mean(1)),
    }.items():
        y = jaxpool.sequence_pool(x, mode=mode, num_prefix_tokens=prefix)
        close(y, expected, **F32)


@pytest.mark.parametrize("prefix", [0, 2])
def test_padding_anywhere_changes_nothing(prefix):
    tokens = normals(4, 3)
    given = dict(mode=MODES, num_prefix_tokens=prefix)
    expected = pool(tokens, **given)

    @jax.jit
    def run(x, where):
        f = lambda x: jaxpool.sequence_pool(x, where=where, **given)  # noqa: E731
        return f(x), jax.grad(lambda x: (f(x) ** 2).sum())(x)

    _, inside = run(tokens, np.ones(4, bool))
    for front, behind in ((0, 3), (3, 0), (1, 2)):
        pads = ((front, behind), (0, 0))
        x = np.pad(tokens, pads, constant_values=np.nan)
        y, g = run(x, np.pad(np.ones(4, bool), pads[0]))
        close(y, expected, **F32)
        # Sums of 7 modes' gradients, of numbers to 10.
        close(g, np.pad(inside, pads), rtol=1e-5, atol=1e-5)


def test_masks():
    x = normals(2, 3, 5, 2)
    rng = np.random.default_rng(1)
    for shape in ((3, 5), (2, 1, 5), (2, 3, 5, 2), (1, 3, 5, 1), ()):
        where = rng.random(shape) > 0.5
        y = pool(x, where=where, mode=MODES)
        full = where if where.ndim == 4 else where[..., None]
        expected = sequence_pool(x, np.broadcast_to(full, x.shape), mode=MODES)
        close(y, expected, **F32)


def test_rows_without_tokens():
    x = np.full((2, 5, 3), np.nan, np.float32)
    empty = np.where(np.array(MODES) == "max", -np.inf, 0)
    expected = np.broadcast_to(np.repeat(empty, 3), (2, 21))

    @jax.jit
    def run(x, given):
        def f(x):
            return jaxpool.sequence_pool(x, mode=MODES, **given)

        return f(x), jax.grad(lambda x: jnp.where(jnp.isfinite(f(x)), f(x), 0).sum())(x)

    for given in (dict(lengths=0), dict(lengths=-3), dict(where=np.False_)):
        y, g = run(x, given)
        np.testing.assert_array_equal(y, expected)
        assert not g.any()


def test_lengths_beyond_the_sequence_and_of_any_integer_dtype():
    x = normals(2, 300, 1)
    expected = jaxpool.sequence_pool(x)
    for dtype in (np.uint8, np.int16, np.uint32):
        lengths = np.array([200, 255]).astype(dtype) * dtype(1)
        y = jaxpool.sequence_pool(x, lengths=lengths)
        close(y, [x[0, :200].mean(0), x[1, :255].mean(0)], **F32)
    close(jaxpool.sequence_pool(x, lengths=10**9), expected, **F32)


def test_layouts():
    x, lengths = normals(2, 5, 3), np.array([2, 4])
    expected = pool(x, lengths=lengths, mode=MODES)
    channels_first = np.moveaxis(x, -1, 1)
    y = pool(channels_first, lengths=lengths, mode=MODES, axis=-1)
    close(y, expected, **F32)
    where = np.moveaxis(np.broadcast_to(x > 0, x.shape), -1, 1)
    y = jaxpool.sequence_pool(channels_first, where=where, axis=2)
    close(y, jaxpool.sequence_pool(x, where=x > 0), **F32)
    heads = np.stack([x, 2 * x], 2)  # [B, L, heads, C]
    y = pool(heads, lengths=lengths[:, None], mode=MODES, axis=1)
    close(y, np.stack([expected, 2 * expected], 1), **F32)


@pytest.mark.parametrize("where", [True, False])
def test_symbolic_batch_and_length(where):
    x = normals(3, 5, 2)
    extra = np.array([[1, 1, 1, 0, 0]] * 3, bool) if where else np.int32([3, 1, 5])
    scope = jax.export.SymbolicScope()
    shape = jax.export.symbolic_shape("b, length, 2", scope=scope)
    spec = (
        jax.ShapeDtypeStruct(shape, x.dtype),
        jax.ShapeDtypeStruct(shape[:2] if where else shape[:1], extra.dtype),
    )

    def f(x, extra):
        given = {"where" if where else "lengths": extra}
        y = jaxpool.sequence_pool(x, mode=MODES, num_prefix_tokens=1, **given)
        return jnp.where(jnp.isfinite(y), y, 0)

    def gradient(x, extra):
        return jax.grad(lambda x: jnp.sum(f(x, extra) ** 2))(x)

    for g in (f, gradient):
        exported = jax.export.export(jax.jit(g))(*spec)
        close(exported.call(x, extra), g(x, extra), **F32)


def test_lengths_at_the_call_of_a_module():
    from jaxpool import linen, nnx

    x, lengths = normals(2, 5, 3), np.array([2, 4])
    expected = jaxpool.sequence_pool(x, lengths=lengths, mode="last")
    close(nnx.SequencePool(mode="last")(x, lengths=lengths), expected)
    close(linen.SequencePool(mode="last").apply({}, x, lengths=lengths), expected)
