"""The oldest and the newest stack pass the tests, and Colab's is left as it is.

A leg is a stack to install jaxpool into, from its wheel and outside the source tree;
there the tests of its sdist run. One alone, by its name:

    python -m pytest --full tests/trust/test_versions.py -k oldest

and `JAXPOOL_TRUST_TESTS`, arguments of pytest, chooses fewer tests than all.
"""

import json
from dataclasses import dataclass

import environments
import pytest
from environments import environment, installed, locked, requirements, run, suite
from packaging.utils import canonicalize_name
from packaging.version import Version


@dataclass(frozen=True)
class Leg:
    """A Python version and what to install beside jaxpool: pins, or the newest."""

    python: str
    pins: tuple[str, ...] = ()


LEGS = {
    # Nothing older is claimed to work: these are the lower bounds of pyproject.toml.
    "oldest": Leg(
        "3.11",
        (
            "jax==0.7.2",
            "jaxlib==0.7.2",
            "flax==0.11.2",
            "optax==0.2.5",
            "chex==0.1.90",
        ),
    ),
    "newest": Leg("3.13"),
}
# Python 3.11's newest is the stack of the lock, with which CI runs every test.
LOCKED = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}
# What Colab's runtimes have, on Python 3.13; those for CPU and GPU have no chex.
COLAB = {
    "jax": "0.7.2",
    "jaxlib": "0.7.2",
    "flax": "0.11.2",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.4",
    "numpy": "2.1.3",
}


def test_the_oldest_leg_is_the_lower_bounds():
    bounds = {str(r).replace(">=", "==") for r in requirements()}
    assert bounds == set(LEGS["oldest"].pins)


def test_the_lock_is_the_newest_of_python_311():
    assert locked().items() >= LOCKED.items()


def test_nothing_of_colab_is_replaced_by_the_bounds():
    for requirement in requirements():
        assert [s.operator for s in requirement.specifier] == [">="]
        if requirement.name in COLAB:
            assert COLAB[requirement.name] in requirement.specifier


def test_a_missing_python_fails_and_says_so(monkeypatch):
    with pytest.raises(pytest.fail.Exception, match=r"NOT PROVED: .* no Python 3\.99"):
        environments.interpreter("3.99")
    monkeypatch.setenv("JAXPOOL_PYTHON_3_99", "python3.11")  # of another version
    with pytest.raises(pytest.fail.Exception, match=r"tried python3\.11"):
        environments.interpreter("3.99")


@pytest.mark.full
@pytest.mark.parametrize("name", LEGS)
def test_leg(name, built, tmp_path, record):
    leg = LEGS[name]
    install = ["--upgrade", f"{built.wheel}[test]", *leg.pins]
    python = environment(tmp_path, leg.python, install)
    versions = installed(python)
    assert [
        p for p in leg.pins if p not in {f"{n}=={v}" for n, v in versions.items()}
    ] == []
    if not leg.pins:
        assert Version(versions["jax"]) > Version(LOCKED["jax"])
        assert Version(versions["flax"]) > Version(LOCKED["flax"])
    did = suite(python, built)
    shown = {
        n: versions[n] for n in ("jax", "jaxlib", "flax", "optax", "chex", "numpy")
    }
    record(leg=name, python=leg.python, versions=shown, **did)
    assert did["tests"] > did["skipped"]
    assert did["failed"] == []


@pytest.mark.full
def test_colab_keeps_what_it_has(built, tmp_path, record):
    pins = [f"{name}=={version}" for name, version in COLAB.items()]
    python = environment(tmp_path, "3.13", pins)
    before = installed(python)
    plan = run(
        *(python, "-m", "pip", "install", "-q", "--dry-run", "--report", "-"),
        built.wheel,
        cwd=tmp_path,
    )
    names = (p["metadata"]["name"] for p in json.loads(plan)["install"])
    coming = {canonicalize_name(name) for name in names}
    replaced = sorted(coming & before.keys())
    facts = {"installs": sorted(coming), "replaces": replaced}
    record(leg="colab", python="3.13", versions=COLAB, **facts)
    assert "jaxpool" in coming
    assert replaced == []
