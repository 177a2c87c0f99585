"""The section of docs/reliability.md on numbers: errors, and the edges of formats."""

TITLE = "Numbers"

DTYPES = ("bfloat16", "float16", "float32", "float64")


def _cell(rows, op, dtype, direction):
    """The largest error of the op, ours and PyTorch's, and where ours was."""
    found = {
        row["library"]: row
        for row in rows
        if (row["op"], row["dtype"], row["direction"]) == (op, dtype, direction)
    }
    if "jaxpool" not in found:
        return "–"
    return " / ".join(
        f"{row['units']:.2g}" + ("*" if row["lost"] else "")
        for row in (found[name] for name in ("jaxpool", "PyTorch") if name in found)
    )


def section(rows: list[dict], outcome: dict) -> str:
    """Tables of the largest errors and of what was asked at special values."""
    of = {what: [r for r in rows if r["what"] == what] for what in _WHAT}
    lines = []
    if of["error"]:
        lines += [_ERRORS, "", *_table(of["error"]), ""]
        smaller = {r["op"]: r["largest"] for r in of["error"] if r["largest"] < 64}
        some = [f"over {most} of `{op}`" for op, most in smaller.items()]
        if some:
            lines += [
                f"Not asked, for XLA takes minutes: windows {', '.join(some)}.",
                "",
            ]
    if of["each size"]:
        ours = [r for r in of["each size"] if r["library"] == "jaxpool"]
        ops = sorted({r["op"] for r in ours})
        most = {
            dtype: max(r["units"] for r in ours if r["dtype"] == dtype)
            for dtype in sorted({r["dtype"] for r in ours})
        }
        found = ", ".join(f"{units:.2g} in {dtype}" for dtype, units in most.items())
        lines += [
            f"Windows of each size from 1 to 64 of {_names(ops)}: at most {found}.",
            "",
        ]
    if of["special"]:
        lines += [
            _SPECIAL,
            "",
            "| form | ops | inputs |",
            "| --- | ---: | ---: |",
        ]
        for form in dict.fromkeys(r["form"] for r in of["special"]):
            here = [r for r in of["special"] if r["form"] == form]
            inputs = sum(r["inputs"] for r in here)
            lines.append(f"| {form} | {len(here)} | {inputs:,} |")
        lines.append("")
    if of["edges"]:
        lines += [f"{_EDGES} {len(of['edges'])} ops.", ""]
    if of["empty"]:
        empty = sum(r["inputs"] for r in of["empty"])
        one = sum(r["one"] for r in of["empty"])
        lines += [
            f"{empty} gradients of arrays without batch or without channels have their "
            f"shape; {one} ops give the oracle's values, and finite gradients, where "
            "every pooled axis has one element.",
            "",
        ]
    return "\n".join(lines).rstrip()


def _names(ops):
    return ", ".join(f"`{op}`" for op in ops)


def _table(rows):
    titles = [f"{dtype} {way}" for dtype in DTYPES for way in ("forward", "gradient")]
    titles.pop()  # float64's gradient is the reference
    yield "| op | " + " | ".join(titles) + " |"
    yield "| --- |" + " --- |" * len(titles)
    for op in dict.fromkeys(row["op"] for row in rows):
        cells = [
            _cell(rows, op, dtype, direction)
            for dtype in DTYPES
            for direction in ("forward", "backward")
        ]
        cells.pop()
        yield f"| {op} | " + " | ".join(cells) + " |"


_WHAT = ("error", "each size", "special", "edges", "empty")
_ERRORS = """\
The largest error of each op, over windows of 1, 2, 3, 5, 8, 16 and 64 elements
(squares of up to 64x64 for linear ops) and five kinds of numbers: normal ones, 1000
plus such, some near the largest and some near the smallest of the dtype, and such as
cancel. Where a second number follows, it is PyTorch's for the same arrays, forward
and gradient. The reference is a NumPy oracle in float64; for gradients the op's own
in float64. 0.5 is a correctly rounded result: a unit is `eps` of the dtype times what
the exact result moves when each input moves by its own size, or times the exact
result where that is more; of a logarithm of exponentials it is `eps` at least, as those
of small numbers are no finer, here and in NumPy. A * marks a result that fits into the
dtype and was not finite."""
_SPECIAL = """\
NaN, inf and -inf at each place of an input, in arrays that are small to XLA and in
arrays of 4,096 elements and more, in each form that windows are computed in. Values
are the oracle's. Elements that share no window with the special one have the gradient
that they have without it; where every result is finite, so is the gradient; and where
a result is an element, the first that equals it, or the first NaN, has all of the
gradient."""
_EDGES = """\
Ties, zeros of both signs, -inf alone and inf alone: the oracle's values, both modes
of differentiation choose the same of equals, results and gradients do not depend on
the sign of a zero (that of a zero result is not promised), and where results are
finite so are gradients:"""
