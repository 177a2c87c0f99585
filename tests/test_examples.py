"""Every public name has an example, and every example runs as it is pasted."""

import contextlib
import dataclasses
import doctest
import importlib.util
import inspect
import pkgutil
import re
import textwrap
import warnings
from pathlib import Path

import jax
import pytest
from flax import linen as nn

import jaxpool
import jaxpool.compat
import jaxpool.deploy.qwix

pytestmark = pytest.mark.usefixtures("quick_compilation")

README = Path(__file__).parent.parent.joinpath("README.md").read_text()
# What examples may be about, and do without where it is not installed.
RUNTIMES = all(map(importlib.util.find_spec, ("onnx", "litert_converter")))
OTHERS = ("keras", "qwix", "torch")
# What mixes dtypes or ranks, which is not ours to forbid: Flax's layers, Optax, Keras.
LENIENT = ("jaxpool.compare", "jaxpool.bench", "jaxpool.compat")


def public_modules():
    """The modules that users import: those of the package and of `compat`, and two."""
    yield from (jaxpool, jaxpool.deploy.qwix)
    if RUNTIMES:
        yield importlib.import_module("jaxpool.deploy.onnx")
    for package in (jaxpool, jaxpool.compat):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not found.name.rpartition(".")[2].startswith("_"):
                yield importlib.import_module(found.name)


def documented():
    """The docstrings of what users call, by full name, and those that modules show."""
    for module in public_modules():
        if ">>>" in (module.__doc__ or ""):
            yield module.__name__, module.__doc__
        for name in getattr(module, "__all__", []):
            found = getattr(module, name)
            text = inspect.getdoc(found) or ""
            if callable(found) and (">>>" in text or not is_given(found)):
                yield f"{module.__name__}.{name}", text


def is_given(found):
    """Whether users get such objects from what they call: errors, and records."""
    if not inspect.isclass(found) or issubclass(found, nn.Module):
        return False
    return issubclass(found, Exception | tuple) or dataclasses.is_dataclass(found)


DOCSTRINGS = dict(documented())
# What compiles or exports by itself, and cannot be traced.
COMMANDS = ("jaxpool.compare.", "jaxpool.deploy.")
# What is printed by an example that shows shapes alone.
SHAPES = re.compile(r"[\[(][\d, ()\[\]]+\n")


@contextlib.contextmanager
def surroundings(name, text, folder):
    """Where a text is run: what it imports is there, and what it writes is not kept."""
    with contextlib.ExitStack() as held:
        patch = held.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("KERAS_BACKEND", "jax")
        patch.chdir(folder)
        for other in re.findall(
            rf"^\W*import ({'|'.join(OTHERS)})$", text, re.MULTILINE
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pytest.importorskip(other)
        if name.startswith(LENIENT):
            held.enter_context(jax.numpy_dtype_promotion("standard"))
            held.enter_context(jax.numpy_rank_promotion("allow"))
            held.enter_context(jax.legacy_prng_key("allow"))
        yield


@pytest.fixture
def trace(request):
    """Calls a function for what it does while JAX traces it; with `--full`, runs it."""
    return (lambda f: f()) if request.config.getoption("full") else jax.eval_shape


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_example(name, tmp_path, trace):
    text = DOCSTRINGS[name]
    if name.startswith("jaxpool.deploy.to_") and not RUNTIMES:
        pytest.skip("needs the extra deploy")
    assert ">>>" in text, f"the docstring of {name} has no example"
    # No names are given: it has to import what it uses.
    example = doctest.DocTestParser().get_doctest(f"{text}\n", {}, name, None, 0)
    printed = []

    def run():
        doctest.DocTestRunner(verbose=False).run(example, out=printed.append)

    wanted = [step.want for step in example.examples if step.want]
    with surroundings(name, text, tmp_path):
        # Shapes are known without the numbers, whose computation takes a while.
        shapes = all(map(SHAPES.fullmatch, wanted))
        trace(run) if shapes and not name.startswith(COMMANDS) else run()
    assert not printed, f"the example of {name}:\n{''.join(printed)}"


def test_an_example_that_is_wrong_is_seen():
    wrong = {
        "value": ">>> 1 + 1\n3",
        "shape": ">>> (2, 3)\n(2, 4)",
        "nothing": "No example.",
        "name": ">>> y = jp.max_pool",
    }
    for name, text in wrong.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(DOCSTRINGS, name, text)
            with pytest.raises(AssertionError, match=f"of {name}"):
                test_example(name, ".", jax.eval_shape)


# What the README's blocks of code leave to the reader, by their order, and a check.
BLOCKS = [
    ("", "assert logits.shape == (8, 10)"),
    (
        """
        import flax.linen as nn
        import jax.numpy as jnp
        import torch

        class Model(nn.Module):
            @nn.compact
            def __call__(self, images):
                return nn.max_pool(images, (2, 2))

        model, variables, images = Model(), {}, jnp.ones((1, 8, 8, 3))
        x = jnp.ones((2, 3, 8, 8))
        """,
        "assert y.shape[2:] == (5, 5) and layer(x).shape[2:] == (4, 4)",
    ),
]


@pytest.mark.parametrize("number", range(README.count("```python\n")))
def test_readme(number, tmp_path, trace):
    code = README.split("```python\n")[number + 1].split("```")[0]
    before, check = BLOCKS[number]
    with surroundings("jaxpool.compat", before + code, tmp_path):
        trace(lambda: exec(f"{textwrap.dedent(before)}{code}{check}", {}))
