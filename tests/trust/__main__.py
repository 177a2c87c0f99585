"""Asks for proof of all that docs/reliability.md claims, and writes that page.

    python tests/trust          the quick subset that the other tests contain
    python tests/trust --full   all of it, in hours

Each part is a file of tests, `test_PART.py`, which records what it finds, and a module
of `pages/`, which makes a section of it. Results are kept in `--out`, test by test;
`--resume` asks those alone that are not there or failed. `--parts` makes the sections
of these anew and leaves the others as they are. Minutes add up over processes.
"""

import argparse
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PARTS = (
    "values",
    "derivatives",
    "sharding",
    "export",
    "modes",
    "numerics",
    "arguments",
    "files",
    "devices",
    "determinism",
    "versions",
    "supply",
)


def run(part, folder, arguments):
    """Runs those of one part's tests that are not over, into a file of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{len(list(folder.glob('*.jsonl')))}.jsonl"
    command = [sys.executable, "-m", "pytest", HERE / f"test_{part}.py", *arguments]
    environment = {**os.environ, "JAXPOOL_TRUST_RESULTS": str(folder / name)}
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if code not in (0, 1, 5):  # 1: some failed, 5: all are over, else no results at all
        raise SystemExit(f"trust: pytest ended with {code} on {part}")


def results(folder):
    """The last result of each test, counted, and the rows that they recorded."""
    files = sorted(folder.glob("*.jsonl"), key=lambda file: int(file.stem))
    lines = [json.loads(line) for f in files for line in f.read_text().splitlines()]
    last = {line["test"]: line for line in lines}.values()
    did = Counter(line["outcome"] for line in last)
    outcome = {n: did[n] for n in ("passed", "failed", "skipped")}
    outcome["minutes"] = round(sum(line["seconds"] for line in last) / 60, 1)
    return outcome, [row for line in last for row in line["rows"]]


def write(file, head, sections, last=None):
    """Writes these sections of a page, among those that it has of other parts.

    `last` ends the page, given the titles of those that it lacks.
    """
    old = file.read_text() if file.exists() else ""
    _, *pieces = re.split(r"^## (.+)\n", old, flags=re.MULTILINE)
    every = dict(zip(pieces[::2], pieces[1::2], strict=True)) | sections
    titles = [importlib.import_module(f"pages.{part}").TITLE for part in PARTS]
    texts = [f"## {t}\n\n{every[t].strip()}" for t in titles if t in every]
    if last:
        texts.append(last([title for title in titles if title not in every]))
    file.write_text("\n\n".join([head, *texts]) + "\n")


def write_pages(folder, found, full):
    """The sections of the parts in reliability.md, and in pages of their own."""
    sections, others = {}, {}
    for part, (outcome, facts) in found.items():
        module = importlib.import_module(f"pages.{part}")
        said = [f"{n:,} {name}" for name, n in outcome.items()]
        said = ", ".join(said if full else [*said, "the quick subset alone"])
        text = module.section(facts, outcome)
        sections[module.TITLE] = f"{text}\n\n*{said}. {stack()}.*"
        for name, (head, new) in getattr(module, "pages", lambda _: {})(facts).items():
            others.setdefault(name, (head, {}))[1].update(new)
    write(folder / "reliability.md", INTRODUCTION, sections, not_proved)
    for name, (head, new) in others.items():
        write(folder / name, head, new)


def stack():
    """When, and of what."""
    names = ("jaxpool", "jax", "jaxlib", "flax", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    python, cores = platform.python_version(), os.cpu_count()
    return f"{date.today()}, Python {python}, {versions}, {cores} CPU cores"


INTRODUCTION = """\
# Reliability

What was asked of jaxpool, and what came of it. `python tests/trust --full` asks it,
prints the counts and writes this page; a quick subset is part of the tests. The last
line of each section says how many tests gave it, when, and with which versions."""

NOT_PROVED = """\
## Not proved

Nothing here ran on a GPU or a TPU. Programs are lowered for CUDA, ROCm and TPU and
looked at, not run; devices are virtual ones of a CPU, and hosts are processes of one
machine."""


def not_proved(missing):
    """What the page ends with."""
    if not missing:
        return NOT_PROVED
    return f"{NOT_PROVED}\n\nNo whole run stands here yet of: {', '.join(missing)}."


def main():
    """Runs the parts and writes the pages of what they found."""
    parser = argparse.ArgumentParser(
        prog="tests/trust",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="all of it, in hours")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("trust-results"))
    parser.add_argument("--resume", action="store_true", help="keep what passed")
    parser.add_argument(
        "--pages", type=Path, help="folder for the pages, such as docs (default: --out)"
    )
    given = parser.parse_args()
    out, found = given.out.resolve() / ("full" if given.full else "quick"), {}
    for part in given.parts:
        if not given.resume:
            shutil.rmtree(out / part, ignore_errors=True)
        run(part, out / part, ["--full"] if given.full else [])
        found[part] = results(out / part)
    for part, (outcome, facts) in found.items():
        counts = ", ".join(f"{n} {name}" for name, n in outcome.items())
        print(f"{part}: {counts}, {len(facts)} rows")
    write_pages(given.pages or out, found, given.full)
    bad = [part for part, (outcome, _) in found.items() if outcome["failed"]]
    raise SystemExit(f"trust: failures in {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
