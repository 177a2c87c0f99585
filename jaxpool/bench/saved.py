"""bench.json of an earlier run, read back to go on from it."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxpool.bench.contestants import OURS, PEERS, YARDSTICK
from jaxpool.bench.models import STRIDE
from jaxpool.bench.ops import MEAN
from jaxpool.bench.results import Results, Row, summarize
from jaxpool.bench.settings import check
from jaxpool.compare import files
from jaxpool.compare.forms import (
    AMOUNT,
    ANYTHING,
    COUNT,
    POSITIVE,
    TEXT,
    Form,
    one_of,
    optional,
)
from jaxpool.compare.results import differences

__all__ = ["go_on"]

_TIME: Form = {
    **dict.fromkeys(("median_ms", "q1_ms", "q3_ms"), POSITIVE),
    "calls": COUNT,
}
_COSTS: Form = {
    "compile_s?": AMOUNT,
    "temp_bytes?": optional(COUNT),
    "residual_bytes?": optional(COUNT),
}
_TEXTS = ("suite", "case", "op", "window", "direction", "dtype", "layout")
_ROW: Form = {
    "job": COUNT,
    **dict.fromkeys(_TEXTS, TEXT),
    "shape": [POSITIVE],
    "input_bytes": POSITIVE,
    "outputs": POSITIVE,
    "base": one_of(OURS, STRIDE, MEAN),
    "times": {"": _TIME},
    "notes": {"": TEXT},
    "costs": {"": _COSTS},
    "ratios": {"": POSITIVE},
}
_FORM: Form = {
    "settings": {"": ANYTHING},
    "environment": {"": ANYTHING},
    "not_installed": [TEXT],
    "interrupted": ANYTHING,
    "rows": [_ROW],
    "summary": [ANYTHING],
}


def go_on(path: Path, fresh: Results) -> Results:
    """Returns the results in `path`, if they were made as `fresh` is to be.

    Raises:
      UserError: if they are not whole, or were made in another way; it says in which.
    """
    previous = files.read("bench", path, _FORM, _check_rows)
    fresh = json.loads(json.dumps(fresh))  # tuples as lists
    different = differences(previous, fresh, ("settings", "environment"))
    missing = (previous["not_installed"], fresh["not_installed"])
    if missing[0] != missing[1]:
        different += "; not_installed was {!r} and is {!r}".format(*missing)
    check(not different, "resume", "must go on alike", different)
    return {**previous, "interrupted": False}


def _check_rows(results: Results) -> None:
    """Raises where rows do not fit together."""
    rows = results["rows"]
    jobs = list(dict.fromkeys(row["job"] for row in rows))
    if jobs != list(range(len(jobs))):
        raise ValueError(f"rows must be of the jobs from 0 on, in order; got {jobs}")
    for i, row in enumerate(rows):
        _check_row(f"rows[{i}]", row)
    summarize(rows)


def _check_row(where: str, row: Mapping[str, Any]) -> None:
    known = {*PEERS, OURS, YARDSTICK, row["base"]}
    named = {*row["times"], *row["notes"], *row["costs"]}
    if not named <= known:
        raise ValueError(f"{where} must name contestants; got {sorted(named - known)}")
    if row["base"] == MEAN and "temp_bytes" not in row["costs"].get(OURS, {}):
        raise ValueError(f"{where}.costs.{OURS} lacks temp_bytes")
    facts = {field.name: row[field.name] for field in fields(Row)}
    if row["base"] not in row["times"] or Row(**facts).ratios != row["ratios"]:
        raise ValueError(f"{where}.ratios must follow from its times")
