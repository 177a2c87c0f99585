"""The section on what is built, installed and depended on."""

TITLE = "Supply chain"

INTRO = """\
CI installs the versions of `tests/requirements.txt`, each file by its hash, and builds
with the build backend among them. torch alone has a version and no hash, because its
CPU build is another file than the registry's."""


def section(rows, outcome):
    """A sentence for each question that was answered."""
    lines = [INTRO, ""]
    for what, sentence in SENTENCES.items():
        answers = [sentence(row) for row in rows if row["what"] == what]
        lines += [f"- {text}" for text in answers or [f"**Not proved**: {what}."]]
    return "\n".join(lines)


def _installed(row):
    failed = row["failures"] + row["errors"]
    return (
        f"The wheel, with {row['packages']} locked packages, without the source tree: "
        f"`pip check`, `jaxpool compare`, and of the sdist's tests `{row['chosen']}`: "
        f"{row['tests']} tests, {failed} failed, {row['skipped']} skipped, in "
        f"{row['minutes']} minutes."
    )


def _audit(row):
    if row["unknown"]:
        return (
            f"**Not proved**: known vulnerabilities. `pip-audit` had no answer for "
            f"{row['unknown']} of {row['asked']} packages: no service was in reach."
        )
    found = [f"{i} ({name}): {row['explained'].get(i)}" for i, name in row["found"]]
    return f"`pip-audit` on {row['asked']} packages: {'; '.join(found) or 'clean'}."


SENTENCES = {
    "files": lambda row: (
        f"`{row['name']}`: {row['files']} files, {row['bytes']:,} bytes."
    ),
    "same bits": lambda row: (
        "Built again, from the tree and from the sdist, both files are the same bits."
    ),
    "metadata": lambda row: "`twine check --strict` passes both.",
    "installed": _installed,
    "vulnerabilities": _audit,
}
