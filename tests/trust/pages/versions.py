"""The section on the stacks that jaxpool was installed into."""

TITLE = "Versions"

INTRO = """\
Each leg is a new virtual environment into which the wheel is installed with the
versions named; there, without the source tree, the tests of the sdist run. Python
3.11's newest versions are those of the lock, with which CI runs every test; of the
oldest it asks every op's values and gradients."""
NOT_PROVED = """\
Not proved: builds of jaxlib for accelerators are not installed, and Colab's stack is
rebuilt from its version numbers, not asked in a notebook."""
LEGS = {"oldest", "newest", "colab"}
COLUMNS = ("leg", "Python", "versions", "tests", "failed", "skipped", "minutes")


def section(rows, outcome):
    """A row for each leg that ran, why tests were skipped, and what Colab would get."""
    legs = sorted((r for r in rows if "tests" in r), key=lambda row: row["leg"])
    lines = [INTRO, ""]
    lines += [_line(COLUMNS), "|---|---|---|---:|---:|---:|---:|"] if legs else []
    lines += [_line(_cells(row)) for row in legs]
    for row in legs:
        skips = ", ".join(f"{n} {why}" for why, n in sorted(row["reasons"].items()))
        lines += [
            "",
            f"Of {row['leg']} (`{row['chosen']}`) skipped: {skips or 'none'}.",
        ]
    for row in (row for row in rows if row["leg"] == "colab"):
        stack, installs = _versions(row), ", ".join(row["installs"])
        lines += [
            "",
            f"Into Colab's stack ({stack}, Python {row['python']}) pip would install "
            f"{installs}, and replace {', '.join(row['replaces']) or 'nothing'}.",
        ]
    for leg in sorted(LEGS - {row["leg"] for row in rows}):
        lines += ["", f"**Not proved**: {leg}. See what its test said."]
    return "\n".join([*lines, "", NOT_PROVED])


def _versions(row):
    return ", ".join(f"{name} {version}" for name, version in row["versions"].items())


def _cells(row):
    failed = row["failures"] + row["errors"]
    counts = (row["tests"], failed, row["skipped"], row["minutes"])
    return (row["leg"], row["python"], _versions(row), *counts)


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"
