"""The results as one page of HTML that asks for nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from jaxpool.compare.figures import joint_vectors, vectors
from jaxpool.compare.results import Results
from jaxpool.compare.words import (
    blocks,
    joint_block,
    joint_titles,
    readable,
    subtitle,
    title,
)

__all__ = ["joint_page", "page"]


def page(results: Results) -> str:
    """Returns the page on one data set."""
    section = _section(results) | {"title": ""}
    return _render(title(results), subtitle(results), [section], results)


def joint_page(parts: Mapping[str, Results]) -> str:
    """Returns the page on several data sets."""
    joint = {"title": "", "blocks": [joint_block(parts)]}
    joint["figures"] = joint_vectors(parts)
    sections = [joint, *map(_section, parts.values())]
    return _render(*joint_titles(parts), sections, next(iter(parts.values())))


def _section(results: Results) -> dict[str, Any]:
    return {
        "title": readable(results["settings"]["data"]),
        "subtitle": subtitle(results),
        "blocks": blocks(results),
        "figures": vectors(results),
    }


def _render(
    heading: str, line: str, sections: Sequence[Mapping[str, Any]], results: Results
) -> str:
    """Sets a page; whatever is not a drawing is text, and escaped."""
    loader = jinja2.PackageLoader("jaxpool.compare", "")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    facts = {k: v for k, v in results["settings"].items() if k != "data"}
    facts |= results.get("report", {}) | results["environment"]
    return environment.get_template("page.html").render(
        title=heading, subtitle=line, sections=sections, facts=facts
    )
