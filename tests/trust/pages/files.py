"""The section on files, disks and sudden ends."""

TITLE = "Damaged files, failing disks, sudden ends"

_ENDS = {
    "refused": "refused",
    "read": "read",
    "unharmed": "damaged where nothing is kept: read, and equal",
    "harmless": "of the right kind: kept",
    "never_run": "never run",
    "kept": "all that was finished is kept",
    "whole": "whole",
}
"""What became of cases, by the key under which a row counts them."""


def section(rows: list[dict], outcome: dict) -> str:
    """Makes a table of what was asked, how often, and how it ended."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        total = counts.setdefault(row["question"], {})
        for key in ("cases", *_ENDS):
            if key in row:
                total[key] = total.get(key, 0) + row[key]
    lines = ["| what | cases | how they ended |", "| --- | ---: | --- |"]
    for question, total in sorted(counts.items()):
        ends = [f"{total[k]:,} {words}" for k, words in _ENDS.items() if total.get(k)]
        lines.append(f"| {question} | {total['cases']:,} | {'; '.join(ends)} |")
    cases = sum(total["cases"] for total in counts.values())
    unproved = (
        "Not proved: loss of power itself, of which only the order of calls is asked "
        "(contents reach the disk before they get their name), network file systems, "
        "and Windows."
    )
    if outcome["skipped"]:
        unproved += " No file system could be mounted here to fill it up."
    return "\n\n".join(
        [
            f"`jaxpool compare` and `bench` met {cases:,} bad files, bad folders, "
            "failing disks and sudden ends. Refused means: exit code 2, one line that "
            "names argument, rule and value (of results, the field), no warning, no "
            "traceback, nothing written; for data also the same error from the Python "
            "function. What was reported as finished was in a whole file every time, "
            "and the resumed end was that of a run which nothing disturbed (of bench, "
            "whose times differ, the same cases).",
            "\n".join(lines),
            unproved,
        ]
    )
