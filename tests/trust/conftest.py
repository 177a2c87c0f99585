"""What the tests of this folder found, kept for docs/reliability.md.

`python tests/trust` names a file in `JAXPOOL_TRUST_RESULTS`. Each test that is over
adds a line to it, so an interrupted run keeps what it has; tests that did not fail in
the other files of that folder are not run again.
"""

import json
import os
from collections import defaultdict
from pathlib import Path

import environments
import jax
import pytest

RESULTS = os.environ.get("JAXPOOL_TRUST_RESULTS")


@pytest.fixture
def record(request):
    """`record(**facts)` adds a row to what this test found; `pages/` make tables."""
    kept = request.node.user_properties
    return lambda **facts: kept.append(("row", json.dumps(facts)))


def pytest_collection_modifyitems(config, items):
    if RESULTS is None:
        return
    over = set()
    for file in Path(RESULTS).parent.glob("*.jsonl"):
        if file != Path(RESULTS):
            lines = map(json.loads, file.read_text().splitlines())
            over |= {line["test"] for line in lines if line["outcome"] != "failed"}
    config.hook.pytest_deselected(items=[i for i in items if i.nodeid in over])
    items[:] = [item for item in items if item.nodeid not in over]


_reports = defaultdict(list)


def pytest_runtest_logreport(report):
    if RESULTS is None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    reports = _reports[report.nodeid]
    reports.append(report)
    if report.when in ("setup", "call"):  # else it was the last, or the process died
        return
    outcomes = {r.outcome for r in reports}
    line = {
        "test": report.nodeid,
        "outcome": min(outcomes, key=("failed", "skipped", "passed").index),
        "seconds": round(sum(r.duration for r in reports), 3),
        "rows": [json.loads(v) for n, v in report.user_properties if n == "row"],
    }
    with Path(RESULTS).open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The files of a release of this tree."""
    return environments.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def width(request, quick_compilation):
    """64-bit types as a cell of the matrix wants them."""
    jax.config.update("jax_enable_x64", request.node.callspec.params["wide"])
    yield
    jax.config.update("jax_enable_x64", False)
