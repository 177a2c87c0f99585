"""The conventions of the code base, asked of the code itself."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpool
from jaxpool._core.op import OPS

ROOT = Path(jaxpool.__file__).parent
# Imports run from a later layer to an earlier one, never back.
LAYERS = [
    ["_core/window", "_core/op", "_core/plain", "_core/files"],
    ["_core/geometry", "_core/sharding", "_core/user_code"],
    ["_core/primitives"],
    ["_core/numerics", "_core/stages"],
    ["_core/lowering"],
    ["_core/taps", "_core/planes"],
    ["_core/places", "_core/indices"],
    ["_core/linear"],
    ["_core/engine", "_core/arguments"],
    ["_core/weights"],
    ["_core/weighted", "_core/order", "_core/attention", "_core/regions"],
    ["_core/draws"],
    ["_ops/average", "_ops/extremum"],  # which other families build on
    ["_ops/"],
    ["_ops"],
    [""],
    ["testing"],
    ["_core/module"],
    ["nnx", "linen"],
    ["compat"],
    ["deploy"],
    ["compare"],
    ["bench"],
    ["explain"],
    ["__main__"],
]
OPERATIONS = [name for name in jaxpool.__all__ if name != "lowering"]
# Whose files import one another.
PACKAGES = ["compat", "compare", "bench", "testing", "deploy", "explain"]
POSITIONAL = ["x", "window_shape", "strides", "padding"]


def layer(path):
    """The index of the last layer whose name begins the file's path."""
    name = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")
    name = "" if name == "__init__" else name
    matches = [
        (len(prefix), index)
        for index, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or (prefix and name.startswith(f"{prefix.rstrip('/')}/"))
    ]
    return max(matches)[1] if matches else None


def imports(path):
    """The files of this package that a file imports, other than `jaxpool` itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            if name.startswith("jaxpool."):
                target = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
                if target.exists():
                    yield target


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=str)
def test_imports_run_one_way(path):
    if path == ROOT / "_core/__init__.py":
        return
    assert layer(path) is not None
    for target in imports(path):
        same_package = path.parent == target.parent and path.parent.name in PACKAGES
        assert layer(target) < layer(path) or same_package, f"{path} imports {target}"


def test_one_door_to_xla():
    users = [
        p.name for p in ROOT.rglob("*.py") if "lax.reduce_window(" in p.read_text()
    ]
    assert users == ["engine.py"]


def test_import_loads_jax_alone():
    code = (
        "import sys, jaxpool, jaxpool.__main__;"
        "print([m for m in ('flax', 'optax', 'chex', 'rich', 'matplotlib')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


@pytest.mark.parametrize("name", OPERATIONS)
def test_signature(name):
    parameters = inspect.signature(getattr(jaxpool, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    given = {
        "avg_pool": [*POSITIONAL, "count_include_pad"],
        "pool": ["x", "init", "reduce_fn", *POSITIONAL[1:]],
        "max_unpool": ["values", "indices", "output_shape"],
        "convert_indices": ["indices", "input_shape"],
        "output_shape": ["input_shape", *POSITIONAL[1:]],
        "fractional_boundaries": ["input_shape", "output_shape"],
        "mean_over_keys": ["f", "key", "passes"],
        "QuantParams": ["scale", "zero_point", "dtype"],
        "quantize": ["x", "params"],
        "sharded": ["pool", "mesh", "spec"],
        "dequantize": ["q", "params"],
        "feature_multiplier": ["pool_type"],
        "roi_levels": ["boxes", "min_level", "max_level"],
    }
    kind = OPS[name].kind if name in OPS else None
    usual = {
        "window": POSITIONAL,
        "global": ["x"],
        "adaptive": ["x", "output_shape"],
    }
    if kind == "other" and name not in given:  # its arrays first, then what it needs
        arrays = [n for n in positional if n in OPS[name].inputs]
        assert positional[0] == OPS[name].inputs[0]
        assert positional[: len(arrays)] == arrays
    else:
        assert positional == given.get(name, usual.get(kind))
    assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    samples = {op.name for op in OPS.values() if op.takes_key}
    assert ("key" in {p.name for p in parameters}) == (
        name in {*samples, "fractional_boundaries", "mean_over_keys"}
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_docstring(name):
    text = inspect.getdoc(getattr(jaxpool, name))
    assert ".. math::" in text
    assert "rror" in text  # what it raises, or whose errors it shares
    parameters = inspect.signature(getattr(jaxpool, name)).parameters
    if "Args:" in text:
        described = re.findall(r"^  ([a-z_, ]+): ", text, re.MULTILINE)
        assert set(parameters) <= set(", ".join(described).split(", "))
    else:
        assert ":func:`" in text


DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.with_name("README.md").read_text()


METHODS = DOCS.joinpath("methods.md").read_text()


def test_readme_names_every_op():
    assert [n for n in jaxpool.__all__ if f"`{n}`" not in README] == []


def test_package_lists_every_op():
    listed = set((jaxpool.__doc__ or "").split())
    assert [n for n in OPERATIONS if n not in listed] == []


def test_methods_name_every_op_with_a_paper():
    def cites(op):
        texts = (op.fn.__doc__, inspect.getmodule(op.fn).__doc__)
        return any("References:" in (text or "") for text in texts)

    from_papers = [op.name for op in OPS.values() if cites(op) and not op.integer]
    assert [n for n in from_papers if f"`{n}`" not in METHODS] == []


def test_methods_name_nothing_else():
    named = re.findall(r"`(\w*pool\w*)`", METHODS)
    assert len(named) > 50
    assert [n for n in named if n not in jaxpool.__all__] == []


def test_gallery_shows_every_method():
    from jaxpool.compare.methods import all_methods

    page = DOCS.joinpath("gallery.md").read_text()
    for name, method in all_methods().items():
        if method.op and not name.endswith("_learned"):
            assert f"- **{name}** (`{method.op.name}`)" in page
            assert DOCS.joinpath("gallery", f"{method.op.family}.png").exists()
