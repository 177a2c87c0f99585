"""Writes the pages that are read off the library: families, API reference, notebooks.

`conf.py` calls `write` at the start of every build. What is written is not kept in git.
"""

import functools
import importlib
import inspect
import json
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jaxpool
from jaxpool import _ops
from jaxpool._core.op import OPS, PoolOp

__all__ = ["families", "public_modules", "relink", "write"]

# Families in the order of the README's table: windows first, then what needs more.
ORDER = """
extremum average monoid power exponential importance rank blend stochastic morphology
fractional adaptive blur polyphase frequency pyramid aggregation masked sequence segment
regions attention probe quantized shapes conventions shards
""".split()
# Drawings of `drawings.py`, for families without a photograph, and beside one.
DRAWN = {
    "extremum": ["unpool"],
    "average": ["pads"],
    "adaptive": ["bins"],
    "fractional": ["fractional"],
    "masked": ["masked"],
    "sequence": ["sequence"],
    "segment": ["segment"],
    "regions": ["regions"],
    "monoid": ["monoid"],
    "quantized": ["quantized"],
    "shapes": ["ceil"],
    "conventions": ["indices"],
    "shards": ["shards"],
}
# Pages that are elsewhere in the repository, by what they are on the site.
ROOT = Path(__file__).parent.parent
COPIES = {f"project/{p.stem.lower()}.md": p for p in ROOT.glob("*.md")} | {
    f"notebooks/{p.name}": p for p in ROOT.glob("notebooks/*.ipynb")
}
COPIES.pop("project/readme.md")  # stands for the site where there is none
NOTEBOOKS = ROOT / "notebooks" / "README.md"
PASSES = {"window": "windows", "global": "the whole extent", "adaptive": "bins"}


def write(folder: Path) -> None:
    """Writes all of them below `folder`, each only where it changes."""
    pages = {f"families/{name}.md": _family(folder, name) for name in families()}
    pages["families/index.md"] = _families()
    modules = public_modules()
    pages |= {f"api/{name}.md": _module(modules[name]) for name in modules}
    pages["api/jaxpool.md"] = _package()
    pages["api/nnx.md"] = _flax("nnx")
    pages["api/linen.md"] = _flax("linen")
    pages["api/index.md"] = _modules(modules)
    pages |= {page: _copied(source, folder / page) for page, source in COPIES.items()}
    if NOTEBOOKS.exists():
        pages["notebooks/index.md"] = _notebooks(folder / "notebooks" / "index.md")
    left = {
        str(path.relative_to(folder))
        for part in ("families", "api", "project", "notebooks")
        for path in folder.joinpath(part).glob("*.*")
    }
    for page in pages.keys() | left:
        _update(folder / page, pages.get(page))


def families() -> dict[str, ModuleType]:
    """The modules with the formulas, one for each page, in order."""
    present = [m.name for m in pkgutil.iter_modules(_ops.__path__)]
    assert sorted(present) == sorted(ORDER), "docs/pages.py: ORDER names each family"
    return {name: getattr(_ops, name) for name in ORDER}


@functools.cache
def public_modules() -> dict[str, ModuleType]:
    """The public modules below `jaxpool`, by name: those with `__all__`."""
    found = {}
    for info in pkgutil.iter_modules(jaxpool.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"jaxpool.{info.name}")
        if hasattr(module, "__all__"):
            found[info.name] = module
            continue
        for child in pkgutil.iter_modules(module.__path__):  # jaxpool.compat
            if not child.name.startswith("_"):
                name = f"{info.name}.{child.name}"
                found[name] = importlib.import_module(f"jaxpool.{name}")
    for name in ("deploy.onnx", "deploy.qwix"):  # of which users call functions too
        found[name] = importlib.import_module(f"jaxpool.{name}")
    return dict(sorted(found.items()))


def _update(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    elif not path.exists() or path.read_text() != text:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def _join(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _rest(*lines: str) -> str:
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _summary(of: object) -> str:
    """The first line of a docstring, as Markdown."""
    line = (inspect.getdoc(of) or "").partition("\n")[0]
    line = re.sub(r":math:(`[^`]+`)", r"{math}\1", line)
    return re.sub(r":func:`(\w+)`", r"{py:func}`~jaxpool.\1`", line)


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|" + "---|" * columns, *rows])


# Families.


def _families() -> str:
    rows = []
    for name, module in families().items():
        functions = " ".join(f"{{py:func}}`~jaxpool.{f}`" for f in module.__all__)
        rows.append(f"| [{name}]({name}.md) | {_summary(module)} | {functions} |")
    return _join(
        "# Families of pools",
        "A family is one formula with what varies in it, in one file of "
        "`jaxpool/_ops`. Each page has the formulas, pictures, gradients, papers, and "
        "what they cost.",
        _table("| family | | functions |", rows),
        _rest(".. toctree::", "   :hidden:", "", *(f"   {n}" for n in families())),
    )


def _family(folder: Path, name: str) -> str:
    module = families()[name]
    ops = [op for op in OPS.values() if op.family == name]
    parts = [f"# {name.capitalize()}"]
    parts.append(
        _rest(f".. automodule:: {module.__name__}", "   :no-members:", "   :no-index:")
    )
    if ops:
        parts.append(_facts(ops))
    pictures = list(_pictures(folder, name))
    parts += ["## In pictures", *pictures] if pictures else []
    names = dict.fromkeys([*(op.name for op in ops), *module.__all__])
    parts += ["## Functions", *(_entry("jaxpool", _ops, n) for n in names)]
    costs = _rows(folder / "costs.md", "| op | family |", 1, {name})
    if costs:
        parts += [
            "## Cost",
            "Time in units of `avg_pool`'s on the same windows, and temporary memory "
            "in units of the input: from [What each op costs](../costs.md), which says "
            "how it was measured.",
            costs,
        ]
    methods = {f"{op.method}{tail}" for op in ops for tail in ("", "_learned")}
    accuracy = _rows(folder / "comparison.md", "| method | accuracy", 0, methods)
    if accuracy:
        parts += [
            "## In one network",
            "Rows of [Every method in one network](../comparison.md), which says what "
            "can be concluded from them, and what cannot.",
            accuracy,
        ]
    return _join(*parts)


def _facts(ops: list[PoolOp]) -> str:
    """A table of ops, without columns in which there is nothing."""

    def modules(op: PoolOp) -> str:
        names = (
            (flax, f"jaxpool.{flax}.{op.module_name}") for flax in ("nnx", "linen")
        )
        return ", ".join(f"{{py:class}}`{flax} <{name}>`" for flax, name in names)

    columns = {
        "function": [f"{{py:func}}`~jaxpool.{op.name}`" for op in ops],
        "NNX, Linen": [modules(op) for op in ops],
        "pools": [PASSES.get(op.kind, "") for op in ops],
        "learns": [", ".join(f"`{n}`" for n in op.learned + op.slots) for op in ops],
        "draws": ["`key=`" if op.takes_key else "" for op in ops],
    }
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    rows = [f"| {' | '.join(row)} |" for row in zip(*columns.values(), strict=True)]
    return _table(f"| {' | '.join(columns)} |", rows)


def _pictures(folder: Path, name: str) -> Iterator[str]:
    for drawing in DRAWN.get(name, []):
        caption = _caption(folder, drawing)
        file = f"../drawings/{drawing}.svg"
        yield f"```{{figure}} {file}\n:alt: {caption}\n\n{caption}\n```"
    if (folder / "gallery" / f"{name}.png").exists():
        yield (
            f"```{{figure}} ../gallery/{name}.png\n:alt: what the family does\n\n"
            "What each method does to a photograph; [the gallery](../gallery.md) says "
            "what the columns are.\n```"
        )


def _caption(folder: Path, drawing: str) -> str:
    """What `drawings.py` says below a drawing, read from its title."""
    text = (folder / "drawings" / f"{drawing}.svg").read_text()
    match = re.search("<title>(.*?)</title>", text)
    assert match, drawing
    return match[1]


def _rows(page: Path, head: str, column: int, wanted: set[str]) -> str:
    """The rows of a page's table whose entry in a column is wanted, or nothing."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        if line.split("|")[column + 1].strip() in wanted:
            rows.append(line)
    return "\n".join([*lines[start : start + 2], *rows]) if rows else ""


# The API reference.


def _entry(module: str, where: object, name: str) -> str:
    """The directive that documents a public name."""
    value = getattr(where, name)
    if inspect.isclass(value) and (home := _home(value)) not in (None, module):
        head = [f".. py:class:: {name}", f"   :module: {module}", ""]
        return _rest(*head, f"   The same as :class:`{home}.{name}`.")
    if inspect.isclass(value):
        return _rest(f".. autoclass:: {module}.{name}", "   :members:")
    if callable(value):
        return _rest(f".. autofunction:: {module}.{name}")
    return _rest(f".. autodata:: {module}.{name}", "   :no-value:")


def _home(value: type) -> str | None:
    """Of the public modules that have a class in common, the one that defines it."""
    names = [m.__name__ for m in public_modules().values()]
    return next((n for n in names if value.__module__.startswith(n)), None)


def _modules(modules: dict[str, ModuleType]) -> str:
    rows = [
        f"| [`jaxpool.{name}`]({name}.md) | {_summary(module)} |"
        for name, module in modules.items()
    ]
    rows.insert(0, f"| [`jaxpool`](jaxpool.md) | {_summary(jaxpool)} |")
    toctree = ["   jaxpool", *(f"   {name}" for name in modules)]
    return _join(
        "# API reference",
        "Every public name, from its docstring. All else may change without notice.",
        _table("| module | |", rows),
        _rest(".. toctree::", "   :hidden:", "", *toctree),
    )


def _package() -> str:
    parts = [
        "# jaxpool",
        f"{_summary(jaxpool)} Each function's entry is on the page of its family.",
        _rest(".. module:: jaxpool"),
    ]
    for name, module in families().items():
        rows = [
            f"| {{py:obj}}`~jaxpool.{f}` | {_summary(getattr(jaxpool, f))} |"
            for f in module.__all__
        ]
        parts.append(f"## {name.capitalize()}")
        parts.append(_table("| name | |", rows))
    of_families = {f for module in families().values() for f in module.__all__}
    rest = [name for name in jaxpool.__all__ if name not in of_families]
    parts += ["## Lowerings", *(_entry("jaxpool", jaxpool, name) for name in rest)]
    return _join(*parts)


def _flax(name: str) -> str:
    """A page of one API of Flax: its bases, then the modules by family."""
    module = importlib.import_module(f"jaxpool.{name}")
    parts = [
        f"# jaxpool.{name}",
        _rest(f".. automodule:: jaxpool.{name}", "   :no-members:"),
        "## How modules are called",
    ]
    parts += [
        _rest(f".. autoclass:: {base}()", "   :special-members: __call__")
        for base in (f"jaxpool.{name}.PoolModule", f"jaxpool.{name}.RandomPoolModule")
    ]
    for family in families():
        ops = [op for op in OPS.values() if op.family == family]
        parts += [f"## {family.capitalize()}"] if ops else []
        parts += [
            _rest(f".. autoclass:: jaxpool.{name}.{op.module_name}") for op in ops
        ]
    assert {op.module_name for op in OPS.values()} == set(module.__all__)
    return _join(*parts)


def _module(module: ModuleType) -> str:
    name = module.__name__
    return _join(
        f"# {name}",
        _rest(f".. automodule:: {name}", "   :no-members:"),
        *(_entry(name, module, member) for member in module.__all__),
    )


# What is elsewhere in the repository.


def _copied(source: Path, page: Path) -> str:
    text = source.read_text()
    if source.suffix != ".ipynb":
        return relink(text, source, page)
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = relink("".join(cell["source"]), source, page)
    return json.dumps(notebook)


def _notebooks(page: Path) -> str:
    names = sorted(p.stem for p in NOTEBOOKS.parent.glob("*.ipynb"))
    toctree = [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in names)]
    return _join(relink(NOTEBOOKS.read_text(), NOTEBOOKS, page), _rest(*toctree))


def relink(text: str, source: Path, page: Path) -> str:
    """Turns links to files of the repository into links to their pages.

    What has no page, as a source file, is named without a link.
    """

    def link(match: re.Match[str]) -> str:
        words, target, part = match.groups()
        path = (source.parent / target).resolve()
        if not path.exists():
            return match[0]  # an error of the strict build
        for copy, original in COPIES.items():
            if path == original:
                path = Path(__file__).parent / copy
        if not path.is_relative_to(Path(__file__).parent):
            return words
        return f"[{words}]({os.path.relpath(path, page.parent)}{part or ''})"

    return re.sub(r"\[([^]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)", link, text)
