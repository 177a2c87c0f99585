"""The matrix of ops, transforms and dtypes: what its four parts have in common."""

from collections import defaultdict

INTRO = """\
# The matrix

Every op under every transform: for how many kinds of numbers it gave what it has to.
A kind is a dtype with or without 64-bit types: float32, bfloat16, float16, the float8
types e4m3fn and e5m2, int8, int16, int32, uint8 and bool with both, float64 and int64
with them alone. A number in brackets says where that cannot be, and why; what an op
does not take under `jit` is not asked of it split or exported. ✗ is a failure. Made by
`python tests/trust --full`; [reliability.md](reliability.md) says how results are
judged."""


def held(row):
    """Whether the result of a cell was near enough, None where there can be none."""
    return row["error"] <= row["bound"] if "error" in row else None


def table(head, lines):
    """A table in Markdown whose first column is text."""
    text = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(text + ["| " + " | ".join(line) + " |" for line in lines])


def summary(rows):
    """How many cells held, and the largest error in each transform."""
    of = defaultdict(list)
    for row in rows:
        of[row["transform"]].append(row)
    lines = []
    for name, cells in of.items():
        count = sum(held(row) is True for row in cells)
        cannot = sum(held(row) is None for row in cells)
        worst = max((row["error"] for row in cells if "error" in row), default=0.0)
        lines.append((name, f"{count:,}", f"{cannot:,}", f"{worst:.1f}"))
    ops = {row["op"] for row in rows}
    kinds = {(row["dtype"], row["x64"]) for row in rows}
    total = sum(held(row) is True for row in rows)
    refused = sum(held(row) is None for row in rows)
    return f"""\
{len(ops)} ops, {len(of)} transforms, {len(kinds)} kinds of numbers: {len(rows):,} cells
of [the matrix](matrix.md), of which {total:,} gave what they have to and {refused:,}
cannot work and say why.

{table(("transform", "held", "cannot work", "largest error"), lines)}"""


def whole(rows):
    """Each op with each transform, and the reasons of what cannot be."""
    cells, notes = defaultdict(list), {}
    for row in rows:
        cells[row["op"], row["transform"]].append(row)

    def mark(cells):
        if False in map(held, cells):
            return "✗"
        reasons = defaultdict(set)
        for row in cells:
            if held(row) is None:
                reasons[row["reason"]].add(row["dtype"])
        count = sum(held(row) is True for row in cells)
        marks = [str(count)] if count else []
        for reason, dtypes in reasons.items():
            everywhere = all(held(row) is None for row in cells)
            text = reason if everywhere else f"{', '.join(sorted(dtypes))}: {reason}"
            marks.append(f"[{notes.setdefault(text, len(notes) + 1)}]")
        return " ".join(marks)

    ops = sorted({op for op, _ in cells})  # tests end in any order
    names = list(dict.fromkeys(name for _, name in cells))
    lines = [
        (f"`{op}`", *(mark(cells.get((op, name), ())) for name in names)) for op in ops
    ]
    said = "\n".join(f"{n}. {text}" for text, n in notes.items())
    return f"{table(('op', *names), lines)}\n\n{said}".rstrip()


def part(title, says):
    """What a part's module of this folder has: its section, and that of the matrix."""

    def section(rows, outcome):
        return f"{says}\n\n{summary(rows)}"

    def pages(rows):
        return {"matrix.md": (INTRO, {title: whole(rows)})}

    return section, pages
