"""Writes what the commands of docs/shape.md print into it: run it to renew the page."""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxpool.__main__ import main

PAGE = Path(__file__).parents[1] / "docs" / "shape.md"


@contextlib.contextmanager
def model_of(page: str) -> Iterator[None]:
    """The context in which the page's model lies in the working folder."""
    source = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    before = [*sys.path]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("model.py").write_text(source[1])
        try:
            yield
        finally:
            sys.path[:] = before


def printed(command: str) -> str:
    """What a command prints, without blanks at the ends of lines."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(command.split()[1:])
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def renewed(page: str, kinds: str) -> str:
    """The page with new outputs in its blocks of these kinds."""

    def block(match: re.Match[str]) -> str:
        return f"```{match[1]}\n$ {match[2]}\n{printed(match[2])}```"

    pattern = rf"```({kinds})\n\$ (.*?)\n.*?```"
    with model_of(page):
        return re.sub(pattern, block, page, flags=re.DOTALL)


if __name__ == "__main__":
    os.environ["COLUMNS"] = "80"
    PAGE.write_text(renewed(PAGE.read_text(), "console|text"))
