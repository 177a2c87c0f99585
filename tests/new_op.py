"""Starts a new op: `python tests/new_op.py cubic_mean_pool`.

Writes `jaxpool/_ops/cubic_mean.py`, a family of its own whose formula is missing, and
makes it known. Tests fail from then on until there is all that an op has; what that is,
and which test asks for it, is printed. `docs/adding.md` says how each is done.
"""

import argparse
import keyword
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

TEMPLATE = '''"""TODO: what these pools are, and what sets them apart from each other.

References:
  TODO: authors: title, year.
"""

import jax
from jax.typing import ArrayLike

from jaxpool._core.arguments import laid
from jaxpool._core.op import pool_op
from jaxpool._core.window import Ints, Padding

__all__ = ["NAME"]


@pool_op("FAMILY", "window")
def NAME(
    x: ArrayLike,
    window_shape: Ints | None,
    strides: Ints | None = None,
    padding: Padding = "VALID",
    *,
    window_dilation: Ints = 1,
    ceil_mode: bool = False,
    axis: Ints | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""TODO: what it gives, in a line; strides default to 1.

    .. math:: y_o = TODO

    TODO: the gradient, at ties and at 0 too.

    Args:
      x: `[B..., S..., C]` as in :func:`max_pool`.
      window_shape, strides, padding, window_dilation, ceil_mode, axis, where: the
        window, as in :func:`max_pool`.

    Returns:
      `[B..., O..., C]`; TODO: dtypes. TODO: of a window without elements.

    Raises:
      ValueError, TypeError: as in :func:`max_pool`.

    Example:
      >>> TODO
    """
    spec = (window_shape, strides, padding, window_dilation, ceil_mode, axis)
    x, geometry, where = laid("NAME", x, where, spec, ordered=True)
    raise NotImplementedError("TODO: of window_sum, window_extremum, ... of the engine")
'''

WANTED = (
    ("the formula, its gradient and its source", "jaxpool/_ops/FAMILY.py", "contract"),
    ("an oracle, one window at a time", "tests/families/FAMILY.py", "contract"),
    ("a line in the table of functions", "README.md", "api"),
    ("a line in the package's docstring", "jaxpool/__init__.py", "api"),
    ("a row, if it is from a paper", "docs/methods.md", "api"),
    ("a picture: python docs/gallery.py", "docs/gallery.md", "api"),
    ("an example that runs", "jaxpool/_ops/FAMILY.py", "examples"),
    ("its place among the families: ORDER", "docs/pages.py", "docs"),
    ("what each target gives: python tests/deploy_table.py", "docs/", "deploy"),
)


def start(name: str, root: Path) -> Path:
    """Writes the op's file, adds it to the families, and returns where it is."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*_pool", name) or keyword.iskeyword(name):
        raise ValueError(f"`name` must be in lower case and end in _pool; got {name!r}")
    family = name.removesuffix("_pool")
    path = root / "jaxpool" / "_ops" / f"{family}.py"
    if path.exists():
        raise ValueError(f"`name` must be new; {path} is there")
    init = path.with_name("__init__.py")
    text = init.read_text()
    families = sorted({*re.findall(r"^    (\w+),$", text, re.MULTILINE), family})
    init.write_text(
        '"""The formulas: one family a file."""\n\n'
        + "from jaxpool._ops import (\n"
        + "".join(f"    {f},\n" for f in families)
        + ")\n"
        + "".join(f"from jaxpool._ops.{f} import *\n" for f in families)
        + "\n__all__: list[str] = []\n"
        + "".join(f"__all__ += {f}.__all__\n" for f in families)
    )
    path.write_text(TEMPLATE.replace("NAME", name).replace("FAMILY", family))
    return path


def main() -> int:
    """Starts the op that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the function, such as cubic_mean_pool")
    name = parser.parse_args().name
    try:
        path = start(name, ROOT)
    except ValueError as error:
        parser.error(str(error))
    print(f"{path.relative_to(ROOT)} is there. What it needs, and who asks for it:\n")
    for what, where, test in WANTED:
        where = where.replace("FAMILY", path.stem)
        print(f"  {what:52} {where:30} tests/test_{test}*.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
