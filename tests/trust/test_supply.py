"""The lock, the files of a release, and what is known against the packages in them."""

import json
import re
import sys
import tarfile
import zipfile
from email import message_from_bytes

import pytest
from environments import (
    LOCK,
    PROJECT,
    ROOT,
    environment,
    installed,
    locked,
    requirements,
    run,
    suite,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Not locked: the CPU build of torch is another file than the registry's.
FREE = {"torch"}
# Known vulnerabilities that do not matter here: {"PYSEC-...": "why not"}.
EXPLAINED = {}
# A release with known vulnerabilities, of a package that nothing here requires: an
# audit that finds none in it is no audit.
CONTROL = "flask==0.12"
# What the installed package is asked: its names and examples, what every op promises,
# the modules, and the command.
CHOSEN = " ".join(
    f"tests/test_{n}.py" for n in ("api", "contract", "modules", "compare")
)
COMPARE = "compare --data digits --methods max,avg --epochs 1 --seeds 1 --out results"


def unmet(pins):
    """The requirements of what CI installs that these versions do not meet."""
    wanted = requirements("test", "parity", "release")
    versions = {r: pins.get(canonicalize_name(r.name), "0") for r in wanted}
    return [
        str(r)
        for r, v in versions.items()
        if r.name not in FREE and v not in r.specifier
    ]


def test_the_lock_meets_what_the_project_requires():
    pins = locked()
    assert unmet(pins) == []
    assert unmet({**pins, "jax": "0.7.1"}) == ["jax>=0.7.2"]
    assert pins.keys() & FREE == set()


def test_the_lock_has_a_hash_for_each_file_and_no_address():
    _, *entries = re.split(r"^(?=[\w.-]+==)", LOCK.read_text(), flags=re.MULTILINE)
    assert len(entries) == len(locked())
    assert [e for e in entries if "--hash=sha256:" not in e] == []
    assert re.search(r"://|^-|@", LOCK.read_text(), re.MULTILINE) is None


def contents(path):
    """The files of an archive by name, less the folder that holds all of an sdist."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as file:
            return {name: file.read(name) for name in file.namelist()}
    with tarfile.open(path) as file:
        files = [m for m in file.getmembers() if m.isfile()]
        return {m.name.split("/", 1)[1]: file.extractfile(m).read() for m in files}


@pytest.mark.full
def test_the_files_hold_what_they_should(built, record):
    listing = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT)
    tree = {n for n in listing.split("\n") if ROOT.joinpath(n).is_file()}
    sdist, wheel = contents(built.sdist), contents(built.wheel)
    package = {name for name in tree if name.startswith("jaxpool/")}
    info = "-".join(built.wheel.name.split("-")[:2]) + ".dist-info"
    about = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert wheel.keys() == package | {f"{info}/{name}" for name in about}
    assert "jaxpool/py.typed" in wheel
    elsewhere = {name for name in tree if name.startswith((".ci/", ".github/"))}
    assert sdist.keys() == tree - elsewhere | {"PKG-INFO"}
    said = message_from_bytes(wheel[f"{info}/METADATA"])
    assert said["Name"] == PROJECT["name"]
    assert said["Requires-Python"] == PROJECT["requires-python"]
    assert said["License-Expression"] == PROJECT["license"]
    needs = [Requirement(line) for line in said.get_all("Requires-Dist")]
    assert {r for r in needs if r.marker is None} == set(requirements())
    assert [r for r in needs if r.url] == []
    for path, files in ((built.sdist, sdist), (built.wheel, wheel)):
        size = path.stat().st_size
        record(what="files", name=path.name, files=len(files), bytes=size)


@pytest.mark.full
def test_builds_are_the_same_to_the_last_bit(built, tmp_path, record):
    """The tree and the sdist give one wheel, and a second sdist is the first."""
    build = (sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel")
    run(*build, "-o", tmp_path, ROOT, cwd=tmp_path)
    for path in (built.sdist, built.wheel):
        assert tmp_path.joinpath(path.name).read_bytes() == path.read_bytes()
    record(what="same bits")


@pytest.mark.full
def test_the_index_would_take_the_files(built, record):
    check = (sys.executable, "-m", "twine", "check", "--strict")
    run(*check, built.sdist, built.wheel, cwd=built.tests)
    record(what="metadata")


@pytest.mark.full
def test_the_wheel_works_outside_the_source_tree(built, tmp_path, record):
    lock = ["--require-hashes", "-r", LOCK]
    python = environment(tmp_path, "3.11", lock, ["--no-deps", built.wheel])
    run(python, "-m", "pip", "check", cwd=tmp_path)
    command = python.with_name("jaxpool")
    version = installed(python)["jaxpool"]
    assert run(command, "--version", cwd=tmp_path).strip() == version
    assert "compare" in run(command, "--help", cwd=tmp_path)
    run(command, *COMPARE.split(), cwd=tmp_path)
    assert tmp_path.joinpath("results", "results.json").exists()
    did = suite(python, built, CHOSEN)
    record(what="installed", packages=len(locked()), **did)
    assert did["tests"] > did["skipped"]
    assert did["failures"] + did["errors"] == 0, did["failed"]


def judge(packages):
    """What an audit says: who has no answer, and each package's vulnerabilities."""
    unknown = {p["name"]: p["skip_reason"] for p in packages if "skip_reason" in p}
    found = {v["id"]: p["name"] for p in packages for v in p.get("vulns", ())}
    return unknown, found


def test_an_audit_without_an_answer_is_none():
    answer = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1"}]}
    silence = {"name": "b", "skip_reason": "not found"}
    assert judge([answer, silence]) == ({"b": "not found"}, {"PYSEC-1": "a"})


@pytest.mark.full
def test_no_vulnerability_is_known_or_each_is_explained(tmp_path, record):
    torch = [str(r) for r in requirements("parity") if r.name in FREE]
    pins = [f"{name}=={version}" for name, version in locked().items()] + torch
    asked = tmp_path / "requirements.txt"
    asked.write_text("\n".join([*pins, CONTROL]))
    audit = [sys.executable, "-m", "pip_audit", "--format=json", "-r", asked]
    audit += ["--no-deps", "--disable-pip", "--progress-spinner=off"]
    said = run(*audit, cwd=tmp_path, codes=(0, 1))
    assert said, "NOT PROVED: no service of known vulnerabilities is in reach"
    unknown, found = judge(json.loads(said)["dependencies"])
    control = {i for i, name in found.items() if name == "flask"}
    open_ = {i: name for i, name in found.items() if i not in control}
    facts = {"found": sorted(open_.items()), "explained": EXPLAINED}
    silent = len(unknown.keys() - {"flask"})
    record(what="vulnerabilities", asked=len(pins), unknown=silent, **facts)
    assert unknown == {}, f"NOT PROVED: no answer for {len(unknown)} packages"
    assert control, f"NOT PROVED: the audit knows nothing against {CONTROL}"
    assert open_.keys() == EXPLAINED.keys()
