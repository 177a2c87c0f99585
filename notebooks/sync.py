"""Writes notebooks from their scripts: `python notebooks/sync.py [--run] [NAME ...]`.

The .py files are the source. Of what a notebook shows its pictures alone are kept, as
long as the cell stays as it was; `--run` executes the notebooks, and takes new ones.
With JAXPOOL_FAST=1 in the environment they train less, and pictures are not taken.

Needs the packages of the extra `jaxpool[notebooks]`.
"""

import argparse
import base64
import io
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
COLAB = "https://colab.research.google.com"
PNG = "image/png"
FAST = "JAXPOOL_FAST" in os.environ


def badge(script: Path) -> str:
    """Returns the link that opens a notebook in Colab.

    It follows `project.urls.Repository` in pyproject.toml, if that is on GitHub.
    Without it, the link is Colab's page to upload a notebook to.
    """
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository", "")
    place = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)
    path = f"notebooks/{script.stem}.ipynb"
    link = f"/github/{place[1]}/blob/main/{path}" if place else "/#upload=true"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}{link})"


def with_badge(script: Path) -> str:
    """Returns the text of a script with its badge as it should be."""
    return re.sub(
        r"\[!\[Open in Colab\].*", lambda _: badge(script), script.read_text()
    )


def from_script(script: Path) -> Any:
    """Returns the notebook that a script says, without outputs."""
    notebook = jupytext.reads(with_badge(script), fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", {}
    return notebook


def execute(notebook: Any) -> None:
    """Executes a notebook as a new user would; a warning is an error as well."""
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=None, resources=resources).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text", "") if output.get("name") == "stderr" else ""
            if "Warning" in text:
                raise RuntimeError(f"A cell warns:\n\n{cell.source}\n\n{text}")


def keep_pictures(notebook: Any) -> None:
    """Drops all that cells show but pictures, and makes these small."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                nbformat.v4.new_output("display_data", {PNG: _small(o.data[PNG])})
                for o in cell.outputs
                if PNG in o.get("data", {})
            ]


def _small(picture: str) -> str:
    """Returns a PNG with a palette of 255 colours; one that has a palette as it is."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    if image.mode == "P":
        return picture
    buffer = io.BytesIO()
    image.convert("RGB").quantize(255).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode() + "\n"


def main() -> None:
    """Writes the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", action="store_true", help="execute them as well")
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01")
    options = parser.parse_args()
    names = tuple(options.names or [""])
    for script in [s for s in SCRIPTS if s.name.startswith(names)]:
        path, notebook = script.with_suffix(".ipynb"), from_script(script)
        shown = nbformat.read(path, 4) if path.exists() else notebook
        if options.run:
            print(f"{script.name}: executing", flush=True)
            executed = from_script(script)
            execute(executed)
            shown = shown if FAST else executed
        outputs = {c.source: c.outputs for c in shown.cells if c.cell_type == "code"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = outputs.get(cell.source, [])
        keep_pictures(notebook)
        script.write_text(with_badge(script))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
