"""The section of docs/reliability.md on determinism."""

TITLE = "Determinism"


def section(rows: list[dict], outcome: dict) -> str:
    """What was run how often, and which programs for GPUs add in no fixed order."""
    of = {what: [r for r in rows if r["what"] == what] for what in _WHAT}
    lines = []
    if of["runs"]:
        gradients = sum(r["gradient"] for r in of["runs"])
        lines += [
            f"On a CPU, 20 runs of each of {len(of['runs'])} ops, {gradients} of them "
            "with their gradient, gave the same bits; so did "
            f"{len(of['threads'])} on 800,000 elements, which threads share.",
            "",
        ]
    for row in of["processes"]:
        lines += [
            f"Two new processes, which compiled all {row['ops']} ops anew, gave the "
            "same bits.",
            "",
        ]
    for row in of["one thread"]:
        names = ", ".join(f"`{name}`" for name in row["other"]) or "no op"
        lines += [
            f"With `--xla_cpu_multi_thread_eigen=false` {names} gave other bits; for "
            "another number of threads nothing is promised.",
            "",
        ]
    if of["scatter"]:
        lines += [_SCATTER.format(count=len(of["scatter"])), ""]
        lines += ["| op | result | gradient |", "| --- | --- | --- |"]
        for row in sorted(of["scatter"], key=lambda row: row["op"]):
            if row["result"] or row["gradient"]:
                cells = (
                    ", ".join(row[name]) or "none" for name in ("result", "gradient")
                )
                lines.append(f"| {row['op']} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


_WHAT = ("runs", "threads", "processes", "one thread", "scatter")
_SCATTER = """\
Programs of {count} ops and of their gradients were made for CUDA, ROCm and TPU, and
searched for scatters. Only these have any: in any order, where each place is written
once or a maximum is taken; in the order of arrival, where floats of several places are
added to one, so that bits may differ from run to run on a GPU. So do fractional pools
of overlapping regions or windows; those of disjoint ones do not. With XLA's
`--xla_gpu_deterministic_ops=true` scatters keep one order, so XLA says. Neither the
programs nor the flag were tried on a GPU."""
