"""The section on hostile arguments."""

import collections

TITLE = "Hostile arguments"
KINDS = ("calls", "value", "compared", "ValueError", "TypeError", "finding")
HEADS = ("calls", "values", "compared", "ValueError", "TypeError", "findings")


def section(rows: list[dict], outcome: dict) -> str:
    """How many calls ended how, for functions and modules."""
    totals = {"functions": collections.Counter(), "NNX modules": collections.Counter()}
    totals["Linen modules"] = collections.Counter()
    names, least = collections.Counter(), []
    for row in rows:
        if row["kind"] == "counts":
            api = row["name"].rpartition(".")[0]
            which = {"nnx": "NNX modules", "linen": "Linen modules"}
            which = which.get(api, "functions")
            names[which] += 1
            least.append(row["calls"])
            totals[which].update({k: row.get(k, 0) for k in KINDS})
    lines = [
        "Up to three arguments of an honest call are replaced by wrong types, "
        "negative, zero and huge sizes (2**62), NaN, traced values, NumPy scalars, "
        "masks and indices that do not fit, iterators without end and arrays with a "
        "special value. Each call is made in a process that may die of it, and has to "
        "end in a value or in a ValueError or TypeError that names function and "
        "argument, within a second of the library's own time (XLA's compilation apart) "
        "and 256 MiB.",
        "",
        "| | names | " + " | ".join(HEADS) + " |",
        "| --- |" + " ---: |" * (len(HEADS) + 1),
    ]
    total = collections.Counter()
    for which, count in totals.items():
        total.update(count)
        cells = [f"{count[k]:,}" for k in KINDS]
        lines.append(f"| {which} | {names[which]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Each name was called at least {min(least, default=0)} times, "
        f"{total['calls']:,} times in all. `compared` are the values that the NumPy "
        "oracle has an answer for; all other values were asked for NaN and emptiness "
        "alone. Not asked: sizes that memory could hold and time could not, such as an "
        "output of 2**30 bins, and NaN from input beyond 1e15, which may overflow.",
    ]
    return "\n".join(lines)
