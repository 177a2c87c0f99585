"""What contributors use: the start of a new op, and the hooks before a commit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import new_op
import pytest

ROOT = Path(__file__).parent.parent
ASKED = {
    "test_contract.py::test_every_op_has_an_oracle_and_a_case",
    "test_api.py::test_readme_names_every_op",
    "test_api.py::test_package_lists_every_op",
    "test_api.py::test_methods_name_every_op_with_a_paper",
    "test_api.py::test_gallery_shows_every_method",
}


def test_a_new_op_fails_until_all_is_there(tmp_path):
    parts = ("jaxpool", "tests", "docs")
    for part in parts:
        shutil.copytree(ROOT / part, tmp_path / part)
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    path = new_op.start("cubic_mean_pool", tmp_path)
    assert path == tmp_path / "jaxpool/_ops/cubic_mean.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-rf"]
        + [f"tests/{test}" for test in sorted(ASKED)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    failed = re.findall(r"^FAILED tests/(\S+)", run.stdout, re.MULTILINE)
    assert set(failed) == ASKED, run.stdout


def test_a_started_op_adds_its_family_and_no_more(tmp_path):
    shutil.copytree(ROOT / "jaxpool" / "_ops", tmp_path / "jaxpool" / "_ops")
    new_op.start("cubic_mean_pool", tmp_path)
    init = tmp_path / "jaxpool" / "_ops" / "__init__.py"
    added = {
        "    cubic_mean,",
        "from jaxpool._ops.cubic_mean import *",
        "__all__ += cubic_mean.__all__",
    }
    before = (ROOT / "jaxpool" / "_ops" / "__init__.py").read_text().splitlines()
    assert [n for n in init.read_text().splitlines() if n not in added] == before


@pytest.mark.parametrize("name", ["max_pool_", "Cubic_pool", "cubic", "power_pool"])
def test_a_new_op_has_a_new_name(name, tmp_path):
    shutil.copytree(ROOT / "jaxpool" / "_ops", tmp_path / "jaxpool" / "_ops")
    with pytest.raises(ValueError, match="`name` must be"):
        new_op.start(name, tmp_path)


def test_hooks_have_the_locked_versions():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    lock = (ROOT / "tests" / "requirements.txt").read_text()
    asked = re.findall(r"[\w-]+==[\w.]+", hooks)
    assert len(asked) >= hooks.count("additional_dependencies") > 0
    assert [pin for pin in asked if f"\n{pin} \\\n" not in lock] == []
