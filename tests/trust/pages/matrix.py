"""The matrix of ops, transforms and dtypes, small and whole."""

from collections import defaultdict

TITLE = "Transforms, dtypes, shardings, export"
HELD = "●"


def _seen(rows):
    """Whether each (op, transform) held for each (dtype, x64), or why it did not."""
    seen = defaultdict(dict)
    for row in rows:
        kind = row["dtype"], row["x64"]
        held = row["error"] <= row["bound"] if "error" in row else row["reason"]
        seen[row["op"], row["transform"]][kind] = held
    return seen


def _mark(cells, notes):
    """What stands in the table for one op and one transform."""
    reasons = {reason for reason in cells.values() if isinstance(reason, str)}
    if not cells:
        return ""
    if False in cells.values():
        return "✗"
    if not reasons:
        return HELD
    numbers = "".join(
        f"[{notes.setdefault(r, len(notes) + 1)}]" for r in sorted(reasons)
    )
    return f"{HELD} {numbers}" if True in cells.values() else numbers


def _table(head, lines):
    text = ["| " + " | ".join(head) + " |", "| --- |" + " :-: |" * (len(head) - 1)]
    return "\n".join(text + ["| " + " | ".join(line) + " |" for line in lines])


def section(rows, outcome):
    """How many cells held, and the largest error in each transform."""
    held, worst, cannot = defaultdict(int), defaultdict(float), defaultdict(int)
    for row in rows:
        name = row["transform"]
        if "reason" in row:
            cannot[name] += 1
        else:
            held[name] += row["error"] <= row["bound"]
            worst[name] = max(worst[name], row["error"])
    ops = {row["op"] for row in rows}
    kinds = {(row["dtype"], row["x64"]) for row in rows}
    names = list(dict.fromkeys(row["transform"] for row in rows))
    lines = [
        (name, str(held[name]), str(cannot[name]), f"{worst[name]:.1f}")
        for name in names
    ]
    asked = len(rows)
    return f"""\
{len(ops)} ops under {len(names)} transforms with {len(kinds)} kinds of numbers (each
dtype, with and without 64-bit types): {asked:,} cells, of which {sum(held.values()):,}
gave what they have to and {sum(cannot.values()):,} cannot work and say why. Values are
compared with the oracle in NumPy, derivatives with those in float64, which are compared
with central differences; sharded and exported programs with the plain one. The largest
error is in epsilons of the dtype, relative to the largest value, or, of derivatives, to
how far they move when the inputs move by their own size, where that is more.
[matrix.md](matrix.md) has every op.

{_table(("transform", "held", "cannot work", "largest error"), lines)}
"""


def pages(rows):
    """The whole matrix."""
    seen, notes = _seen(rows), {}
    ops = list(dict.fromkeys(op for op, _ in seen))
    names = list(dict.fromkeys(name for _, name in seen))
    marks = [
        (f"`{op}`", *(_mark(seen.get((op, name), {}), notes) for name in names))
        for op in ops
    ]
    kinds = sorted({kind for cells in seen.values() for kind in cells})
    by_kind = []
    for op in ops:
        line = [f"`{op}`"]
        for kind in kinds:
            cells = [cells.get(kind) for (o, _), cells in seen.items() if o == op]
            asked = [c for c in cells if c is not None]
            count = sum(c is True for c in asked)
            line.append(f"{count}/{len(asked)}" if False not in asked else "✗")
        by_kind.append(line)
    said = "\n".join(f"{n}. {reason}" for reason, n in notes.items())
    heads = [f"{dtype}{', x64' if wide else ''}" for dtype, wide in kinds]
    text = f"""\
# The matrix

Which transforms hold for which op: {HELD} with every dtype that the op takes, under all
states of 64-bit types; a number where that cannot be, with the reason below. Made by
`python tests/trust --full`; [reliability.md](reliability.md) says how cells are judged.

{_table(("op", *names), marks)}

{said}

## By dtype

Cells that held, of those asked; the others cannot work (integers have no derivative).

{_table(("op", *heads), by_kind)}
"""
    return {"matrix.md": text}
