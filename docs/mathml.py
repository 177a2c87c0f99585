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
_OPENING = ("(", "[", r"\{", r"\lfloor", r"\lceil", r"\langle")
_CLOSING = (")", "]", r"\}", r"\rfloor", r"\rceil", r"\rangle")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer, for `html_math_renderer = "mathml"`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def mathml(formula: str, display: bool) -> str:
    """Converts LaTeX."""
    # The converter knows sized delimiters by side alone, and dots by their place.
    formula = _DELIMITER.sub(_sized, formula).replace(r"\dots", r"\ldots")
    return latex2mathml.tex2mathml(formula, as_block=display)


def _sized(command: re.Match[str]) -> str:
    if command[2].startswith(_OPENING):
        return rf"\{command[1]}l"
    return rf"\{command[1]}r" if command[2].startswith(_CLOSING) else ""


def _inline(writer, node: nodes.Element) -> None:
    _write(writer, node, display=False)


def _display(writer, node: nodes.Element) -> None:
    writer.body.append('<div class="formula">\n')
    _write(writer, node, display=True)


def _write(writer, node: nodes.Element, display: bool) -> None:
    formula = node.astext()
    try:
        writer.body.append(mathml(formula, display))
    except MathError as error:
        message = f"{error} in the formula {formula!r}"
        logging.getLogger(__name__).warning(message, location=node, type="math")
    if display:
        writer.body.append("</div>\n")
    raise nodes.SkipNode
