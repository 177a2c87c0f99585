"""bench.json: what it holds, and what follows from it."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import jaxpool
from jaxpool.bench.contestants import OURS, PEERS, YARDSTICK
from jaxpool.bench.shapes import OPS
from jaxpool.compare.results import write

__all__ = ["FILE", "Results", "Row", "begin", "save", "summarize"]

FILE = "bench.json"

Results = dict[str, Any]
"""The contents of bench.json.

`settings` and `environment` say what was timed where, `not_installed` which peers were
missing, `interrupted` whether the run was. `rows` holds a row for each case and pass
(the attributes of `Row`, `job`: the number of the case among all that were asked for,
and `ratios`: times in units of the base's), `summary` what `summarize` makes of them.
"""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "equinox", "keras", "torch")


@dataclass(frozen=True)
class Row:
    """One pass of one case.

    Attributes:
      suite: where the case belongs.
      case: its name.
      op: what was computed.
      window: window, strides and padding as text.
      direction: the pass: forward, gradient (both ways), or train step.
      dtype: short name of the dtype.
      layout: where the channels are.
      shape: shape of the input, channels last.
      input_bytes: size of the input.
      outputs: number of elements of the result.
      base: whose time the ratios are in units of.
      times: for each contestant the median and the quartiles, see `timing.spread`.
      notes: for each contestant that was not timed, why.
      costs: for each JAX contestant `compile_s`, `temp_bytes` and `residual_bytes`.
    """

    suite: str
    case: str
    op: str
    window: str
    direction: str
    dtype: str
    layout: str
    shape: Sequence[int]
    input_bytes: int
    outputs: int
    base: str
    times: Mapping[str, Mapping[str, float]]
    notes: Mapping[str, str]
    costs: Mapping[str, Mapping[str, float | None]]

    @property
    def ratios(self) -> dict[str, float]:
        """Each contestant's median time in units of the base's."""
        unit = self.times[self.base]["median_ms"]
        others = self.times.items()
        return {n: t["median_ms"] / unit for n, t in others if n != self.base}


def begin(settings: Mapping[str, Any], missing: Sequence[str]) -> Results:
    """Returns results without rows."""
    device = jax.devices()[0]
    return {
        "settings": dict(settings),
        "environment": {
            "python": platform.python_version(),
            "jaxpool": jaxpool.__version__,
            **_versions(),
            "system": f"{platform.system()} {platform.machine()}",
            "platform": device.platform,
            "device": device.device_kind,
            "cpus": os.cpu_count(),
        },
        "not_installed": list(missing),
        "interrupted": False,
        "rows": [],
        "summary": [],
    }


def save(path: Path, results: Results, rows: Sequence[Row] = (), job: int = 0) -> None:
    """Adds the rows of a job to the results and writes them."""
    results["rows"] += [
        {"job": job, **asdict(row), "ratios": row.ratios} for row in rows
    ]
    results["summary"] = summarize(results["rows"])
    write(path, results)


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what all cases together say about each peer.

    Returns:
      For each op, dtype, pass and peer: `geometric_mean` of the ratios, `worst` (the
      smallest) with the `worst_case` that had it, and the number of `cases`.
    """
    groups: dict[tuple[str, ...], list[tuple[float, str]]] = {}
    for row in rows:
        if row["base"] != OURS:
            continue
        for peer, ratio in row["ratios"].items():
            key = (row["op"], row["dtype"], row["direction"], peer)
            case = f"{row['case']} {row['window']}"
            groups.setdefault(key, []).append((ratio, case))
    return [
        {
            **dict(zip(("op", "dtype", "direction", "peer"), key, strict=True)),
            "geometric_mean": statistics.geometric_mean(r for r, _ in ratios),
            "worst": min(ratios)[0],
            "worst_case": min(ratios)[1],
            "cases": len(ratios),
        }
        for key, ratios in sorted(groups.items(), key=lambda item: _order(*item[0]))
    ]


def _order(op: str, dtype: str, direction: str, peer: str):
    return OPS.index(op), dtype, direction, [*PEERS, YARDSTICK].index(peer)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
