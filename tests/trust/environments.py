"""Interpreters and virtual environments, for tests that build and install jaxpool.

They are found and made outside the source tree, and what is known of this process
(the tests' settings of JAX, Python and pytest) is not passed on to them.
"""

import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
LOCK = ROOT / "tests" / "requirements.txt"
PROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["project"]


def requirements(*extras):
    """What the project and these extras of it require, themselves not followed."""
    optional = PROJECT["optional-dependencies"]
    lines, waiting = list(PROJECT["dependencies"]), list(extras)
    while waiting:
        for line in optional[waiting.pop()]:
            requirement = Requirement(line)
            own = requirement.name == PROJECT["name"]
            waiting.extend(requirement.extras if own else ())
            lines.extend(() if own else (line,))
    return [Requirement(line) for line in lines]


def locked():
    """The version that the lock gives to each package."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def run(*command, cwd, codes=(0,)):
    """What a command prints; it fails the test where it ends with another code."""
    inner = ("JAX", "PYTEST_", "PYTHON", "XLA_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(inner)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode not in codes:
        words = shlex.join(str(word) for word in command)
        report = f"{words}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
        pytest.fail(report[-8000:], pytrace=False)
    return done.stdout


def interpreter(version):
    """A Python of this version; a machine without one fails the test and says so."""
    variable = "JAXPOOL_PYTHON_" + version.replace(".", "_")
    uv = [shutil.which("uv"), "python", "find", "--no-python-downloads", version]
    places = (
        [os.environ[variable]]
        if variable in os.environ
        else [
            sys.executable,
            f"python{version}",
            *glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python")),
            *(_says(*uv) if uv[0] else ()),
        ]
    )
    code = "import sys; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"
    for place in places:
        # A name on the path may be a shim of a version that is not installed.
        found, *executable = _says(place, "-c", code) or [None]
        if found == version:
            return executable[0]
    pytest.fail(
        f"NOT PROVED: this machine has no Python {version} (tried "
        f"{', '.join(places)}). Install one, or name it in {variable}.",
        pytrace=False,
    )


def _says(*command):
    """The lines that a command prints; none where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def environment(folder, version, *installs):
    """The Python of a new virtual environment, after `pip install` of each list."""
    run(interpreter(version), "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    for install in installs:
        run(python, "-m", "pip", "install", "-q", *install, cwd=folder)
    return python


def installed(python):
    """The version of each package that this Python's environment has."""
    listing = run(python, "-m", "pip", "list", "--format=json", cwd="/")
    return {canonicalize_name(p["name"]): p["version"] for p in json.loads(listing)}


class Built(NamedTuple):
    """The files of a release, and the unpacked sdist without the package."""

    sdist: Path
    wheel: Path
    tests: Path


def build(folder):
    """Builds the sdist of this tree, and from it the wheel, into an empty folder."""
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    tests = folder / sdist.name.removesuffix(".tar.gz")
    shutil.rmtree(tests / "jaxpool")  # nothing but an installed package is imported
    return Built(sdist, wheel, tests)


def suite(python, built, chosen=""):
    """Runs the unpacked sdist's tests in an environment; returns what they did.

    `JAXPOOL_TRUST_TESTS` chooses among them, as arguments of pytest; otherwise it is
    `chosen`, or all but those of tests/trust.
    """
    chosen = os.environ.get("JAXPOOL_TRUST_TESTS") or chosen or "tests"
    code = "import jaxpool; print(jaxpool.__file__)"
    place = run(python, "-W", "error", "-c", code, cwd=built.tests).strip()
    assert Path(place).is_relative_to(python.parent.parent), place
    # As many processes as there are cores, shared with the tests beside this one.
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    processes = max(1, (os.cpu_count() or 1) // beside)
    report = python.parent.parent / "junit.xml"
    arguments = ["--ignore=tests/trust", f"-n{processes}", f"--junitxml={report}"]
    said = run(
        *(python, "-m", "pytest", *arguments, *shlex.split(chosen)),
        cwd=built.tests,
        codes=(0, 1),
    )
    tests = ElementTree.parse(report).getroot()[0]
    counts = {n: int(tests.get(n)) for n in ("tests", "failures", "errors", "skipped")}
    reasons = Counter(skip.get("message") for skip in tests.iter("skipped"))
    failed = [line for line in said.split("\n") if line.startswith(("FAILED", "ERROR"))]
    minutes = round(float(tests.get("time")) / 60, 1)
    return {
        "chosen": chosen,
        **counts,
        "minutes": minutes,
        "failed": failed,
        "reasons": reasons,
    }
