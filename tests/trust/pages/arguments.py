"""The section on hostile arguments."""

import collections

TITLE = "Hostile arguments"
KINDS = ("calls", "value", "compared", "ValueError", "TypeError", "finding")
APIS = {"": "functions", "nnx": "NNX modules", "linen": "Linen modules"}
HEADS = ("calls", "values", "compared", "ValueError", "TypeError", "findings")


def section(rows: list[dict], outcome: dict) -> str:
    """How many calls ended how, for functions and modules."""
    of_name = collections.defaultdict(collections.Counter)
    for row in rows:
        if row["kind"] == "counts":
            of_name[row["name"]].update({k: row.get(k, 0) for k in KINDS})
    totals = {api: collections.Counter() for api in APIS.values()}
    names = collections.Counter()
    for name, count in of_name.items():
        api = APIS[name.rpartition(".")[0]]
        names[api] += 1
        totals[api].update(count)
    least = min((count["calls"] for count in of_name.values()), default=0)
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
        f"Each name was called at least {least} times, "
        f"{total['calls']:,} times in all. `compared` are the values that the NumPy "
        "oracle has an answer for; all other values were asked for NaN and emptiness "
        "alone. Not asked: sizes that memory could hold and time could not, such as an "
        "output of 2**30 bins, and NaN from input beyond 1e15, which may overflow.",
    ]
    return "\n".join(lines)
