"""Asks for proof of all that docs/reliability.md claims, and writes that page.

    python tests/trust          the quick subset that the other tests contain
    python tests/trust --full   all of it, in hours

Each part is a file of tests, `test_PART.py`, which records what it finds, and a module
of `pages/`, which makes a section of it. Finished parts are kept in `--out`; `--resume`
asks the others alone.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PARTS = (
    "matrix",
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
    """Runs one part's tests; returns how many did what, and how long it took."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", HERE / f"test_{part}.py"]
    command += [f"--junitxml={folder / 'junit.xml'}", *arguments]
    environment = {**os.environ, "JAXPOOL_TRUST_ROWS": str(folder)}
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if code not in (0, 1):  # 1: some failed; the rest are no results at all
        raise SystemExit(f"trust: pytest ended with {code} on {part}")
    suite = ElementTree.parse(folder / "junit.xml").getroot()[0]
    counts = {n: int(suite.get(n)) for n in ("tests", "failures", "errors", "skipped")}
    outcome = {**counts, "minutes": round((time.perf_counter() - start) / 60, 1)}
    folder.joinpath("outcome.json").write_text(json.dumps(outcome))
    return outcome


def rows(folder):
    """What the tests of a part recorded, in no particular order."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for f in files for line in f.read_text().splitlines()]


def page(found, full):
    """The text of reliability.md, and of the pages that parts have of their own."""
    names = ("jax", "jaxlib", "flax", "numpy", "jaxpool")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    texts, others = [], {}
    for part, (outcome, facts) in found.items():
        module = importlib.import_module(f"pages.{part}")
        counts = ", ".join(f"{n} {name}" for name, n in outcome.items())
        texts.append(
            f"## {module.TITLE}\n\n{module.section(facts, outcome)}\n*{counts}*"
        )
        others |= getattr(module, "pages", lambda facts: {})(facts)
    command = "python tests/trust --full" if full else "python tests/trust"
    head = INTRODUCTION.format(
        command=command,
        versions=versions,
        python=platform.python_version(),
        cores=os.cpu_count(),
    )
    return {"reliability.md": "\n\n".join([head, *texts, NOT_PROVED]), **others}


INTRODUCTION = """\
# Reliability

What was asked of jaxpool, and what came of it. `{command}` asks it, prints the counts
and writes this page; a quick subset is part of the tests. These figures are of Python
{python}, {versions}, on {cores} CPU cores."""

NOT_PROVED = """\
## Not proved

Nothing here ran on a GPU or a TPU. Programs are lowered for CUDA, ROCm and TPU and
looked at, not run; devices are virtual ones of a CPU, and hosts are processes of one
machine.
"""


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
    parser.add_argument("--resume", action="store_true", help="keep finished parts")
    parser.add_argument(
        "--pages", type=Path, help="folder for the pages, such as docs (default: --out)"
    )
    given = parser.parse_args()
    out, found = given.out.resolve(), {}
    for part in given.parts:
        finished = out / part / "outcome.json"
        if given.resume and finished.exists():
            outcome = json.loads(finished.read_text())
        else:
            outcome = run(part, out / part, ["--full"] if given.full else [])
        found[part] = outcome, rows(out / part)
    for part, (outcome, facts) in found.items():
        counts = ", ".join(f"{n} {name}" for name, n in outcome.items())
        print(f"{part}: {counts}, {len(facts)} rows")
    for name, text in page(found, given.full).items():
        (given.pages or out).joinpath(name).write_text(text)
    bad = [p for p, (o, _) in found.items() if o["failures"] + o["errors"]]
    raise SystemExit(f"trust: failures in {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
