"""JAX's strict modes."""

TITLE = "Strict modes"


def section(rows, outcome):
    """Which modes hold for how many ops."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    lines = []
    for mode in modes:
        found = [row for row in rows if row["mode"] == mode]
        lines.append(
            f"| `{mode}` | {max(row.get('ops', len(found)) for row in found)} |"
        )
    table = "\n".join(lines)
    return f"""\
Each op, and its gradient where it has one, under `jit` with all of these at once, and
without `jit`; ops that sample as in training. Without assertions, every op gives its
oracle's values and every wrong call of the contract's tables its error.

| mode | ops |
| --- | ---: |
{table}
"""
