"""Formulas as MathML, which browsers draw by themselves.

MathJax would come from a network, with a script. docutils, which Sphinx stands on, has
a converter; what it does not know is an error, and ends a strict build.
"""

import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_DELIMITER = re.compile(r"\\(big|Big|bigg|Bigg)\s*(?![a-zA-Z])(?=(\\?.\w*))")
_TEXT = re.compile(r"\\text\{[^}]*\}")
_OPENING = ("(", "[", r"\{", r"\lfloor", r"\lceil", r"\langle")
_CLOSING = (")", "]", r"\}", r"\rfloor", r"\rceil", r"\rangle")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer, for `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mathml(formula: str, display: bool) -> str:
    """Converts LaTeX."""
    # The converter knows sized delimiters by side alone, and dots by their place. It
    # keeps the backslash of \_ in text, and lets brackets grow that no \left asks to.
    formula = _DELIMITER.sub(_sized, formula).replace(r"\dots", r"\ldots")
    formula = _TEXT.sub(lambda text: text[0].replace(r"\_", "_"), formula)
    tree = latex2mathml.tex2mathml(formula, as_block=display)
    if r"\left" in formula:
        return tree
    return re.sub("<mo>([][{}⌊⌋⌈⌉])</mo>", r'<mo stretchy="false">\1</mo>', tree)


def _sized(command: re.Match[str]) -> str:
    if command[2].startswith(_OPENING):
        return rf"\{command[1]}l"
    return rf"\{command[1]}r" if command[2].startswith(_CLOSING) else ""


def _parts(formula: str) -> list[str]:
    parts = [""]
    for piece in re.split(r"(?<=,)(\s*\\q?quad\b)", formula):
        whole = re.sub(r"\\[{}]", "", parts[-1])
        closed = whole.count("{") == whole.count("}")
        if closed and whole.count(r"\left") == whole.count(r"\right"):
            parts.append("")
            piece = "" if piece.lstrip().startswith(r"\q") else piece
        parts[-1] += piece
    return [part for part in parts if part.strip()]


def _inline(writer, node: nodes.Element) -> None:
    _write(writer, node, display=False)


def _display(writer, node: nodes.Element) -> None:
    _write(writer, node, display=True)


def _write(writer, node: nodes.Element, display: bool) -> None:
    # As in LaTeX, a blank line ends a formula. Parts with a comma and a wide space
    # between them are elements of their own: lines break there on narrow pages.
    formulas = re.split(r"\n\s*\n", node.astext().strip())
    try:
        trees = [
            "\n".join(mathml(part, display) for part in _parts(formula))
            for formula in formulas
        ]
    except MathError as error:
        message = f"{error} in the formula {node.astext()!r}"
        logging.getLogger(__name__).warning(message, location=node, type="math")
        raise nodes.SkipNode from None
    lines = [f'<div class="formula">\n{tree}\n</div>\n' for tree in trees]
    writer.body += lines if display else trees
    raise nodes.SkipNode
