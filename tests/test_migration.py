"""Both sides of every row of docs/migration.md give the same numbers."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import migration
import numpy as np
import pytest

import jaxpool
from jaxpool.compat import tf

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {1: (9,), 2: (8, 9), 3: (5, 6, 7)}
BOXES = [[0, 0, 4, 5], [1.3, 2.1, 9.7, 8.2], [-2, 3, 30, 7], [5, 5, 5.4, 5.2]]


@pytest.fixture(autouse=True)
def others_promote():
    """Other frameworks on JAX mix dtypes and ranks, and have keys of their own."""
    relaxed = {
        "jax_numpy_dtype_promotion": "standard",
        "jax_numpy_rank_promotion": "allow",
        "jax_legacy_prng_key": "allow",
    }
    strict = {name: getattr(jax.config, name) for name in relaxed}
    for name, value in relaxed.items():
        jax.config.update(name, value)
    yield
    for name, value in strict.items():
        jax.config.update(name, value)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def numbers(framework, n):
    """What the expressions of a table call their arrays, in NumPy."""
    sizes = SIZES[n]
    first, last = draw(2, 3, *sizes), draw(2, *sizes, 3)
    axes = tuple(range(-n, 0))
    even = first[(..., *(slice(size // 2 * 2) for size in sizes))]
    pooled = jaxpool.max_pool_with_argmax(even, (2,) * n, (2,) * n, axis=axes)
    values, indices = map(np.array, pooled)
    samples = np.random.default_rng(1).random((2, 3, n)).astype(np.float32)
    region = draw(1, 8, 10, 12)
    maps = [draw(1, 4, 16, 18), draw(1, 4, 8, 9, seed=1)]
    return {
        f"x{n}": first if framework in ("PyTorch", "timm", "kornia") else last,
        f"e{n}": first[0],
        f"v{n}": values,
        f"i{n}": indices.astype(np.int64),
        f"t{n}": samples[..., ::-1].copy() if n == 2 else samples,
        f"u{n}": samples,
        "l1": draw(2, 9, 3),
        "o2": np.ones((3, 3), np.float32),
        "e": np.zeros((3, 3), np.float32),
        "m1": np.arange(18).reshape(2, 9) % 4 > 0,
        "g2": region,
        "l2": np.moveaxis(region, 1, -1).copy(),
        "boxes": np.array(BOXES, np.float32),
        "levels": maps,
        "maps": [np.moveaxis(m, 1, -1).copy() for m in maps],
    }


def names(framework, n, array):
    """All names of an expression, with the arrays in one framework's type."""
    arrays = jax.tree.map(array, numbers(framework, n))
    arrays["levels"] = {str(i): level for i, level in enumerate(arrays["levels"])}
    return arrays | {
        "p": (2, 2),
        f"s{n}": tuple(size // 2 * 2 for size in SIZES[n]),
        f"b{n}": (3,) * n,
        "zeros": jnp.zeros(len(BOXES), jnp.int32),
        "key": jax.random.key(0),
        "jp": jaxpool,
        "jnp": jnp,
        "lax": jax.lax,
    }


def other(framework):
    """The other framework's names and its type of array, or a skip."""
    if framework in ("PyTorch", "timm", "torchvision", "kornia"):
        torch = pytest.importorskip("torch")
        own = {"nn": torch.nn, "F": torch.nn.functional}
        if framework == "timm":
            own = {"timm": pytest.importorskip("timm.layers", exc_type=ImportError)}
            importlib.import_module("timm.layers.median_pool")
        if framework == "torchvision":
            own = {"tv": pytest.importorskip("torchvision.ops", exc_type=ImportError)}
        if framework == "kornia":
            parts = ("filters", "morphology")
            pytest.importorskip("kornia", exc_type=ImportError)
            own = {part: importlib.import_module(f"kornia.{part}") for part in parts}
        return own, torch.from_numpy
    own = {}
    if framework == "TensorFlow":  # too large to install: its adapter stands for it
        own = {"tf": SimpleNamespace(nn=tf)}
    elif framework == "Keras":
        keras = pytest.importorskip("keras")
        own = {"layers": keras.layers, "ops": keras.ops}
    elif framework == "Flax":
        own = {n: importlib.import_module(f"flax.{n}") for n in ("linen", "nnx")}
    elif framework == "Equinox":
        own = {"eqx": pytest.importorskip("equinox").nn}
    elif framework == "Haiku":
        own = {"hk": transformed(pytest.importorskip("haiku"))}
    return own, jnp.asarray


def transformed(haiku):
    """Haiku's modules, callable outside of a transform."""

    def outside(layer):
        def build(*arguments):
            run = haiku.transform(lambda x: layer(*arguments)(x))
            return lambda x: run.apply({}, None, x)

        return build

    layers = {name: outside(getattr(haiku, name)) for name in ("MaxPool", "AvgPool")}
    functions = {"max_pool": haiku.max_pool, "avg_pool": haiku.avg_pool}
    return SimpleNamespace(**layers, **functions)


def leaves(y):
    y = y if isinstance(y, tuple | list) else [y]
    detached = [leaf.detach() if hasattr(leaf, "detach") else leaf for leaf in y]
    return [np.asarray(leaf) for leaf in detached]


CELLS = [
    pytest.param(framework, row, n, theirs, ours, id=f"{framework}: {theirs}")
    for framework, (_, rows) in migration.TABLES.items()
    for row in rows
    for n, theirs, ours in row.pairs()
]


@pytest.mark.parametrize(("framework", "row", "n", "theirs", "ours"), CELLS)
def test_row(framework, row, n, theirs, ours):
    actual = eval(ours, names(framework, n, jnp.asarray))
    if "(" in ours:
        actual = leaves(actual)
        assert all(np.isfinite(leaf).all() for leaf in actual)
    own, array = other(framework)
    expected = eval(theirs, names(framework, n, array) | own)
    if "(" not in ours:  # what learns: its arrays would have to be copied
        assert callable(actual)
        assert callable(expected)
        return
    expected = leaves(expected)
    if framework == "torchvision":  # channels first, where jaxpool has them last
        expected = [np.moveaxis(e, 1, -1) for e in expected]
    assert [a.shape for a in actual] == [e.shape for e in expected]
    # Means and norms of up to 64 numbers of the order of 1, in float32.
    close = [
        np.allclose(a, e, rtol=1e-5, atol=1e-5)
        for a, e in zip(actual, expected, strict=True)
    ]
    assert all(close) == row.same


POOLS = {
    "PyTorch": [("torch.nn.modules.pooling", "Pool"), ("torch.nn.functional", "pool")],
    "Keras": [("keras.layers", "Pool"), ("keras.ops", "pool")],
    "Flax": [("flax.linen", "pool"), ("flax.nnx", "pool")],
    "Equinox": [("equinox.nn", "Pool")],
    "Haiku": [("haiku", "Pool"), ("haiku", "pool")],
    "timm": [("timm.layers", "ool"), ("timm.layers", "Lse"), ("timm.layers", "Blur")],
    "kornia": [("kornia.filters", "ool"), ("kornia.filters", "edian")],
    "torchvision": [("torchvision.ops", "Pool"), ("torchvision.ops", "Align")],
}


@pytest.mark.parametrize("framework", POOLS)
def test_every_pool_has_a_row(framework):
    _, rows = migration.TABLES[framework]
    said = " ".join(theirs for row in rows for _, theirs, _ in row.pairs())
    for module, part in POOLS[framework]:
        module = pytest.importorskip(module, exc_type=ImportError)
        for name, value in vars(module).items():
            ours = part in name and not name.startswith("_") and not name.isupper()
            if ours and callable(value) and not hasattr(value, "__path__"):
                assert f"{name}(" in said or f".{name}" in said, name


def test_the_page_is_made_of_the_rows():
    assert migration.PAGE.read_text() == migration.page()


def test_every_difference_says_both_sides():
    for rows in migration.all_differences().values():
        for row in rows:
            assert len(row) == 4
            assert all(row[:3])
