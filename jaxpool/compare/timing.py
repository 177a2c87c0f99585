"""What a method costs: time, memory and parameters."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxpool.compare.data import Dataset
from jaxpool.compare.settings import Settings
from jaxpool.compare.training import Program, on_devices, shardings

__all__ = ["ROUNDS", "measure", "memory"]

ROUNDS = 20
"""Timed runs of each program; one more before them warms up."""


def measure(
    programs: Mapping[str, Program],
    dataset: Dataset,
    settings: Settings,
    on_round: Callable[[], object],
) -> dict[str, dict[str, Any]]:
    """Measures programs side by side.

    Each round runs every method once, so that what else the machine does in the
    meantime falls on all of them alike. With several processes each takes its own
    time, of steps that all of them take together.

    Returns:
      For each method `inference_ms` and `train_step_ms`, the median time of one
      batch in milliseconds; `inference_bytes` and `train_bytes`, the memory of one
      batch on each device, or None where the backend does not tell; `parameters`, and
      the pooling layers' share of them, `learned`.
    """
    _, split, labelled = shardings()
    images = on_devices(dataset.x_train[: settings.batch], split)
    labels = on_devices(dataset.y_train[: settings.batch], labelled)
    states = {name: program.init(0) for name, program in programs.items()}
    inference = {name: [] for name in programs}
    training = {name: [] for name in programs}
    for _ in range(ROUNDS + 1):
        for name, program in programs.items():
            state = states[name]
            _, seconds = _timed(program.infer, state.params, state.rest, images)
            inference[name].append(seconds)
            (states[name], _), seconds = _timed(program.step, state, images, labels)
            training[name].append(seconds)
        on_round()
    return {
        name: {
            "inference_ms": 1e3 * statistics.median(inference[name][1:]),
            "train_step_ms": 1e3 * statistics.median(training[name][1:]),
            "inference_bytes": memory(program.infer),
            "train_bytes": memory(program.step),
            "parameters": program.parameters,
            "learned": program.learned(states[name]).size,
        }
        for name, program in programs.items()
    }


def _timed(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Returns the result of a run and the seconds until it was ready."""
    start = time.perf_counter()
    result = jax.block_until_ready(run(*arguments))
    return result, time.perf_counter() - start


def memory(program: jax.stages.Compiled) -> int | None:
    """Returns the bytes that one device needs to run a program, as XLA plans it."""
    plan = program.memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return held + plan.temp_size_in_bytes - plan.alias_size_in_bytes
