"""The results for people: in the terminal, as Markdown, picture and page."""

import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpool.compare import page
from jaxpool.compare.figures import joint_picture, picture
from jaxpool.compare.files import replace
from jaxpool.compare.results import Results, accuracies
from jaxpool.compare.verdict import conclusions, lessons
from jaxpool.compare.words import (
    Block,
    blocks,
    joint_block,
    joint_titles,
    narrow,
    subtitle,
    title,
)

__all__ = ["print_joint_table", "print_table", "summary", "write_joint", "write_report"]


def print_table(results: Results, notes: bool = True) -> None:
    """Prints the results of one data set on standard output."""
    sentences = [*conclusions(results), *lessons(results)]
    table = narrow(blocks(results)[0])
    _print(title(results), table if notes else table._replace(lines=()), sentences)


def print_joint_table(parts: Mapping[str, Results]) -> None:
    """Prints the table of several data sets on standard output."""
    _print(joint_titles(parts)[0], joint_block(parts), [])


def _print(heading: str, block: Block, sentences: Sequence[str]) -> None:
    style: dict[str, Any] = {"padding": 0, "pad_edge": False, "show_edge": False}
    # Text: in the name of a file, brackets and dollars mean themselves.
    table = Table(box=SIMPLE_HEAD, title=Text(heading), **style)
    for i, name in enumerate(block.header):
        table.add_column(
            Text(name.replace(" ", "\n")),  # narrow enough for 80 columns
            justify="right" if i else "left",
            overflow="fold",
        )
    for row in block.rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    if sentences:
        console.print(*sentences, sep="\n", markup=False)
    if block.lines:
        console.print(*block.lines, sep="\n", style="dim", markup=False)


def summary(name: str, entry: dict[str, Any]) -> str:
    """Returns one line on a method whose seeds are finished."""
    scores = accuracies(entry)
    spread = f"{min(scores):.1f}–{max(scores):.1f}"
    mean = statistics.mean(scores)
    return f"{name}: {mean:.1f} % accuracy ({spread} over {len(scores)} seeds)"


def write_report(folder: Path, results: Results) -> None:
    """Writes results.md, results.html and results.png of one data set."""
    parts = [f"# {_plain(title(results))}", f"{subtitle(results)}."]
    parts += _markdown(blocks(results), "##")
    _write(folder, parts, page.page(results), picture(results))


def write_joint(folder: Path, parts: Mapping[str, Results]) -> None:
    """Writes the report of several data sets, each of which has one of its own too."""
    heading = joint_titles(parts)
    text = [f"# {_plain(heading[0])}", f"{heading[1]}."]
    text += _markdown([joint_block(parts)._replace(title="")], "##")
    for results in parts.values():
        text += [f"## {_plain(title(results))}", f"{subtitle(results)}."]
        text += _markdown(blocks(results), "###")
    figure = joint_picture(parts, heading)
    _write(folder, text, page.joint_page(parts), figure)


def _write(folder: Path, parts: Sequence[str], html: str, figure: Figure) -> None:
    text = "\n\n".join(parts) + "\n"
    replace(folder / "results.md", lambda path: path.write_text(text, "utf-8"))
    replace(folder / "results.html", lambda path: path.write_text(html, "utf-8"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a file's name
        replace(folder / "results.png", lambda path: figure.savefig(path, dpi=160))


def _markdown(found: Sequence[Block], level: str) -> list[str]:
    parts = []
    for block in found:
        if block.title:
            parts.append(f"{level} {block.title}")
        if block.rows:
            parts.append(_table([*map(_plain, block.header)], block.rows))
        if block.lines:
            parts.append("\n".join(f"- {line}" for line in block.lines))
    return parts


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Returns Markdown for text that means itself."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", text)
