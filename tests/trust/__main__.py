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
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
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


def main():
    """Runs the parts and writes the page of what they found."""
    parser = argparse.ArgumentParser(prog="tests/trust", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all of it, in hours")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("trust-results"))
    parser.add_argument("--resume", action="store_true", help="keep finished parts")
    parser.add_argument("--pages", type=Path, help="where to write the pages")
    given = parser.parse_args()
    outcomes = {}
    for part in given.parts:
        folder = given.out.resolve() / part
        finished = folder / "outcome.json"
        if given.resume and finished.exists():
            outcomes[part] = json.loads(finished.read_text())
        else:
            outcomes[part] = run(part, folder, ["--full"] if given.full else [])
    for part, outcome in outcomes.items():
        print(f"{part}: " + ", ".join(f"{n} {name}" for name, n in outcome.items()))
    for page in (importlib.import_module(f"pages.{part}") for part in given.parts):
        print(page)
    bad = [p for p, o in outcomes.items() if o["failures"] + o["errors"]]
    raise SystemExit(f"trust: failures in {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
