"""Settings of the documentation site: `python -m sphinx -n -W --keep-going docs OUT`.

Links that lead elsewhere are followed by `python -m sphinx -b linkcheck docs OUT`.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

import pages  # noqa: E402

import jaxpool  # noqa: E402
from jaxpool._core.window import Ints, Padding  # noqa: E402

project = "jaxpool"
author = "the jaxpool authors"
version = release = jaxpool.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "mathml",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
# Notebooks are run by their own tests; the site shows what is saved in them.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"

html_theme = "sphinx_book_theme"
html_title = f"jaxpool {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "navbar_persistent": [],  # the sidebar has the search
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_show_sourcelink = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# In docstrings `x` is code, as in Markdown.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_param = False  # several arguments in one entry, as they are written
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 70
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

# Names of types that have no page here; the build reads no network.
nitpick_ignore_regex = [
    ("py:.*", name)
    for name in (
        r"(jax|flax|numpy)\..*",
        r"(collections|fractions|os|pathlib)\..*",
        r"(Array|ArrayLike|Ints|Padding)",  # said in words where they are used
        r"jaxpool\.(.*\.)?_.*",  # not public
    )
]

# What signatures call these types; as written out, they take lines.
_ALIASES = {
    stringify_annotation(alias, mode): name
    for mode in ("smart", "fully-qualified-except-typing")
    for name, alias in (("ArrayLike", ArrayLike), ("Padding", Padding), ("Ints", Ints))
}


def setup(app: Sphinx) -> None:
    """Writes the pages that are read off the library, and mends docstrings for reST."""
    app.connect("builder-inited", lambda app: pages.write(FOLDER))
    app.connect("source-read", _relink)
    # Before napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", _mend, priority=400)
    app.connect("autodoc-process-signature", _shorten)


def _relink(app, docname: str, content: list[str]) -> None:
    """Links that lead out of this folder, as on a code host, lead to pages instead."""
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md" and page.parent == FOLDER:
        content[0] = pages.relink(content[0], page, page)
    if docname == "index":  # pages without a place in its lists
        placed = set(re.findall(r"^[\w/]+$", content[0], re.MULTILINE)) | {"index"}
        found = {d for d in app.env.found_docs if "/" not in d or d.endswith("/index")}
        others = "\n".join(sorted(found - placed))
        content[0] = content[0].replace("@others", others)


def _mend(app, what, name, obj, options, lines: list[str]) -> None:
    """Makes lists of what line breaks alone list, and links of functions' names."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # else napoleon takes what is before a colon for a type
    _list(lines, "References:", lambda before, line: _REFERENCE_ENDS.search(before))
    if sum(bool(_RESULT.match(line)) for line in _section(lines, "Returns:")) > 1:
        _list(lines, "Returns:", lambda before, line: _RESULT.match(line))
        # Without it, napoleon takes the first entry's name for a type.
        start = lines.index("Returns:") + 1
        lines[start:start] = ["  A tuple of", ""]
    lines[:] = [_ROLE.sub(_target, line) for line in _with_tables(lines)]


_REFERENCE_ENDS = re.compile(r"(\d{4}|\))\.$")
_RESULT = re.compile(r"  \w[\w, ]*: ")  # one of several results
_COLUMNS = re.compile(r"  +[\w`].*\S {2,}\S|    {12,}\S")  # the next may go on
_ROLE = re.compile(r":(func|class|mod):`([\w.]+)`")


def _section(lines: list[str], head: str) -> list[str]:
    start = lines.index(head) + 1 if head in lines else len(lines)
    ends = (i for i in range(start, len(lines)) if not lines[i].strip())
    return lines[start : next(ends, len(lines))]


def _with_tables(lines: list[str]) -> Iterator[str]:
    """Marks as literal what is set in columns, and indented: to reST it is prose."""
    for i, line in enumerate(lines):
        begins = i > 1 and not lines[i - 1] and not lines[i - 2].endswith("::")
        if begins and all(map(_COLUMNS.match, lines[i : i + 2])):
            yield from ("::", "")
        yield line


def _list(lines: list[str], head: str, begins) -> None:
    """Puts a bullet where an entry begins."""
    section = _section(lines, head)
    start = lines.index(head) + 1 if section else 0
    for i, line in enumerate(section):
        new = i == 0 or begins(section[i - 1], line)
        lines[start + i] = f"  {'- ' if new else '  '}{line.strip()}"


def _target(role: re.Match[str]) -> str:
    """Functions are named without their package, families as modules."""
    kind, name = role.groups()
    if kind == "mod" and name.startswith("jaxpool._ops."):
        family = name.rpartition(".")[2]
        return f":doc:`{family} </families/{family}>`"
    if kind == "func" and name in jaxpool.__all__:
        return f":func:`~jaxpool.{name}`"
    return role[0]


def _shorten(app, what, name, obj, options, signature, returns):
    """Names types in signatures as the source does."""

    def short(text: str | None) -> str | None:
        for long, alias in _ALIASES.items():
            text = text and text.replace(long, alias)
        return text and text.replace(stringify_annotation(jax.Array, "smart"), "Array")

    if signature and what == "class" and name.startswith("jaxpool.linen."):
        # Flax adds a parent to all, and types that say nothing.
        signature = re.sub(r"parent: .*?(?=name: )|: ~?(typing\.)?Any", "", signature)
    return short(signature), short(returns)
