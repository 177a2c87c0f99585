"""results.json: what it holds, and how it survives an interruption."""

import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax
import jax
import optax

import jaxpool
from jaxpool.compare.data import Dataset
from jaxpool.compare.settings import Settings, UserError, check

__all__ = [
    "FILE",
    "Results",
    "accuracies",
    "begin",
    "ranked",
    "read",
    "replace",
    "write",
]

FILE = "results.json"

Results = dict[str, Any]
"""The contents of results.json.

`settings`, `data` and `environment` say what was compared where. `methods` maps each
method's name to its `runs` (see `jaxpool.compare.training.train`) and, once they are
measured, its `costs` (see `jaxpool.compare.timing.measure`).
"""


def begin(settings: Settings, dataset: Dataset, previous: Results | None) -> Results:
    """Returns results to add to: new ones, or `previous` if it was made alike.

    Raises:
      UserError: if `previous` was made in any other way; the message says in which.
    """
    device = jax.devices()[0]
    results: Results = {
        "settings": asdict(settings),
        "data": dataset.summary(),
        "environment": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": version("jaxlib"),
            "flax": flax.__version__,
            "optax": optax.__version__,
            "jaxpool": jaxpool.__version__,
            "platform": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
        },
        "methods": {},
    }
    if previous is None:
        return results
    different = [
        f"{key} was {previous[part].get(key)!r} and is {value!r}"
        for part in ("settings", "data", "environment")
        for key, value in results[part].items()
        if previous[part].get(key) != value
    ]
    check(not different, "resume", "must go on alike", "; ".join(different))
    return previous


def read(path: Path) -> Results:
    """Reads results.json; raises `UserError` if it is not whole."""
    try:
        results = json.loads(path.read_text())
        parts = {"settings", "data", "environment", "methods"}
        if not parts <= results.keys():
            raise ValueError(f"it lacks some of {', '.join(sorted(parts))}")
    except (ValueError, AttributeError) as error:
        raise UserError(f"`compare`: {path} is not readable: {error}") from error
    return results


def write(path: Path, results: Results) -> None:
    """Writes results.json."""
    text = json.dumps(results, indent=2) + "\n"
    replace(path, lambda temporary: temporary.write_text(text))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Makes a file under a temporary name, so that `path` is never half written."""
    temporary = path.with_stem(f".{path.stem}.unfinished")
    make(temporary)
    os.replace(temporary, path)


def accuracies(entry: dict[str, Any]) -> list[float]:
    """Returns a method's accuracies in percent, one for each finished seed."""
    return [100 * run["accuracy"] for run in entry["runs"]]


def ranked(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """Returns the methods with a finished seed, by mean accuracy, best first."""
    entries = [item for item in results["methods"].items() if item[1]["runs"]]
    return sorted(
        entries, key=lambda item: statistics.mean(accuracies(item[1])), reverse=True
    )
