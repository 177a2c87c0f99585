"""results.json: what it holds, and how it survives an interruption."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax
import jax
import optax

import jaxpool
from jaxpool.compare import files
from jaxpool.compare.data import Dataset
from jaxpool.compare.files import folder_name, replace
from jaxpool.compare.forms import (
    AMOUNT,
    ANYTHING,
    COUNT,
    NUMBER,
    SHARE,
    TEXT,
    Form,
    Leaf,
    optional,
)
from jaxpool.compare.methods import all_methods
from jaxpool.compare.settings import Settings, check

__all__ = [
    "FILE",
    "Finished",
    "Results",
    "accuracies",
    "begin",
    "differences",
    "finished",
    "is_index",
    "ranked",
    "read",
    "write",
    "write_index",
]

FILE = "results.json"

Results = dict[str, Any]
"""The contents of results.json.

`settings`, `data` and `environment` say what was compared where. `methods` maps each
method's name to its `runs` (see `jaxpool.compare.training.train`) and, once they are
measured, its `costs` (see `jaxpool.compare.timing.measure`). A run's `beside` is how
many seeds were trained side by side, where it was not alone. `report` says with what
the methods are compared.
"""

Finished = dict[str, list[Any]]
"""By the name of a data set: the folder of its own, "" for none, and its results, or
None where there are none yet. All of it is JSON.
"""

_RUN: Form = {
    "seed": COUNT,
    "accuracy": SHARE,
    "first_loss": NUMBER,
    "loss": NUMBER,
    "moved": optional(NUMBER),
    "beside?": COUNT,
}
_COSTS: Form = {
    "inference_ms": AMOUNT,
    "train_step_ms": AMOUNT,
    "inference_bytes": optional(COUNT),
    "train_bytes": optional(COUNT),
    "parameters": COUNT,
    "learned": COUNT,
}
_PLACE = Leaf("a folder's name", lambda v: isinstance(v, str) and v == folder_name(v))
_INDEX: Form = {"datasets": {"": _PLACE}}
_FORM: Form = {
    **{key: {"": ANYTHING} for key in ("settings", "data", "environment")},
    "methods": {"": {"runs": [_RUN], "costs?": _COSTS}},
    "report?": {"baseline": TEXT},
}


def begin(settings: Settings, dataset: Dataset, previous: Results | None) -> Results:
    """Returns results to add to: new ones, or `previous` if it was made alike.

    Raises:
      UserError: if `previous` was made in any other way; the message says in which.
    """
    device = jax.devices()[0]
    results: Results = {
        "settings": settings.summary(),
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
    different = differences(previous, results, ("settings", "data", "environment"))
    check(not different, "resume", "must go on alike", different)
    unknown = ", ".join(sorted(previous["methods"].keys() - all_methods().keys()))
    check(not unknown, "resume", "must go on with methods that exist", unknown)
    return previous


def differences(previous: Results, results: Results, parts: Sequence[str]) -> str:
    """Returns what was different in parts of earlier results, "" if nothing was."""
    return "; ".join(
        f"{key} was {was!r} and is {value!r}"
        for part in parts
        for key, value in results[part].items()
        for was in [previous[part].get(key, "missing")]
        if json.dumps(was) != json.dumps(value)  # in which 1 is not true
    )


def finished(folder: Path) -> Finished:
    """Returns the results in a folder, of one data set or of several.

    Raises:
      UserError: for files that are not whole.
    """
    path = folder / FILE
    if not is_index(path):
        results = read(path)
        return {str(results["settings"].get("data")): ["", results]}
    places = files.read("compare", path, _INDEX)["datasets"]
    own = {name: folder / place / FILE for name, place in places.items()}
    return {
        name: [places[name], read(path) if path.exists() else None]
        for name, path in own.items()
    }


def is_index(path: Path) -> bool:
    """Whether results.json says where those of several data sets are."""
    return "datasets" in files.read("compare", path, {"": ANYTHING})


def write_index(folder: Path, places: Mapping[str, str]) -> None:
    """Writes the results.json of several data sets: the folder of each."""
    text = json.dumps({"datasets": places}, indent=2) + "\n"
    replace(folder / FILE, lambda path: path.write_text(text))


def read(path: Path) -> Results:
    """Reads results.json; raises `UserError` if it is not whole."""
    return files.read("compare", path, _FORM, _check_seeds)


def _check_seeds(results: Results) -> None:
    for name, entry in results["methods"].items():
        seeds = [run["seed"] for run in entry["runs"]]
        if len({*seeds}) < len(seeds):
            raise ValueError(f"methods.{name}.runs must differ in seed; got {seeds}")


def write(path: Path, results: Results) -> None:
    """Writes results.json."""
    text = json.dumps(results, indent=2) + "\n"
    replace(path, lambda temporary: temporary.write_text(text))


def accuracies(entry: dict[str, Any]) -> list[float]:
    """Returns a method's accuracies in percent, one for each finished seed."""
    return [100 * run["accuracy"] for run in entry["runs"]]


def ranked(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """Returns the methods with a finished seed, by mean accuracy, best first."""
    entries = [item for item in results["methods"].items() if item[1]["runs"]]
    return sorted(
        entries, key=lambda item: statistics.mean(accuracies(item[1])), reverse=True
    )
