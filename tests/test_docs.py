"""The documentation: it builds, names all that is public, and its figures hold."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxpool
from jaxpool._core.op import OPS

DOCS = Path(__file__).parent.parent / "docs"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drawings, pages = _load("drawings"), _load("pages")


def test_site(tmp_path):
    # One test, as the build is most of its time. Any warning is an error.
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q"]
    out = tmp_path / "html"
    run = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(out)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr

    public = {f"jaxpool.{name}" for name in jaxpool.__all__}
    for name, module in pages.public_modules().items():
        public |= {f"jaxpool.{name}.{member}" for member in module.__all__}
    assert len(public) > 300
    assert sorted(public - _documented(out / "objects.inv")) == []

    for page in out.rglob("*.html"):
        # Readable without a network: scripts and styles are files beside it.
        load = r'<(?:script|link)\b[^>]*(?:src|href)="https?://[^"]*'
        assert re.findall(load, page.read_text()) == [], page
    for family in pages.families():
        text = out.joinpath("families", f"{family}.html").read_text()
        assert "<math" in text, f"{family} has no formula"
        assert "<figure" in text, f"{family} has no picture"


def _documented(path):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads(path.read_bytes(), uri="")
    kinds = inventory.data.items()
    return {name for kind, found in kinds if kind.startswith("py:") for name in found}


@pytest.fixture
def _as_users_do():
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.usefixtures("_as_users_do")
def test_getting_started_runs():
    text, scope = DOCS.joinpath("start.md").read_text(), {}
    runner = doctest.DocTestRunner()
    for kind, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if kind == "python":
            exec(code, scope)
        elif kind == "pycon":
            test = doctest.DocTestParser().get_doctest(code, scope, "start", None, 0)
            runner.run(test, clear_globs=False)
            scope = test.globs
    assert runner.tries > 10
    assert runner.failures == 0


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_drawings_are_what_the_code_draws(name):
    # Run docs/drawings.py where this fails.
    path = DOCS / "drawings" / f"{name}.svg"
    assert path.read_text() == drawings.draw(name)


def test_every_drawing_is_shown():
    files = {path.stem for path in DOCS.joinpath("drawings").glob("*")}
    assert files == set(drawings.DRAWINGS)
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    shown = set(re.findall(r"drawings/([\w-]+)\.svg", text))
    assert files == shown.union(*pages.DRAWN.values())


def test_every_family_has_a_picture():
    # Those of which `jaxpool compare` makes methods have the photograph.
    from jaxpool.compare.methods import all_methods

    of_methods = {m.op.family for m in all_methods().values() if m.op}
    files = {path.stem for path in DOCS.joinpath("gallery").glob("*.png")}
    assert files == of_methods
    assert {op.family for op in OPS.values()} - of_methods <= set(pages.DRAWN)


def _rows(page, head):
    """The rows of a page's tables with this head, as lists of cells."""
    inside = False
    for line in DOCS.joinpath(page).read_text().splitlines():
        inside = line.startswith("|") and (inside or line.startswith(f"| {head} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if inside and not head.startswith(cells[0]) and cells[0] != "---":
            yield cells


def test_figures_of_the_choice_are_those_measured():
    accuracy = {row[0]: row[1] for row in _rows("comparison.md", "method | accuracy %")}
    costs = {tuple(row[:4]): row[5] for row in _rows("costs.md", "op")}
    links = {m: f for m, f, *_ in costs}
    chosen = list(_rows("choose.md", "what for"))
    assert len(chosen) > 30
    for _, link, percent, *ratios in chosen:
        method, family = re.fullmatch(r"\[(\w+)\]\(families/(\w+)\.md\)", link).groups()
        op = method.removesuffix("_learned")
        assert accuracy[method] == percent, method
        assert links[op] == family
        window = "2/2/0" if (op, family, "2/2/0", "forward") in costs else "all"
        for kind, ratio in zip(("forward", "gradient"), ratios, strict=True):
            assert costs[op, family, window, kind] == ratio, (method, kind)
