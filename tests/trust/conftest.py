"""What the tests of this folder found, kept for docs/reliability.md."""

import json
import os
from pathlib import Path

import environments
import pytest


@pytest.fixture
def record():
    """`record(**facts)` adds a row to what this run found.

    Rows go to the folder that `python tests/trust` names, a line each, so that an
    interrupted run keeps them; `pages/` makes tables of them.
    """
    folder = os.environ.get("JAXPOOL_TRUST_ROWS")

    def add(**facts):
        if folder:
            worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
            with Path(folder, f"{worker}.jsonl").open("a") as file:
                file.write(json.dumps(facts) + "\n")

    return add


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The files of a release of this tree."""
    return environments.build(tmp_path_factory.mktemp("dist"))
