"""Timing several calls side by side."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["interleave", "spread"]

LEAST, BUDGET, LIMIT = 5, 8.0, 60.0
"""A pass ends early after `BUDGET` seconds if it made `LEAST` rounds, and after `LIMIT`
seconds however many it made."""


def interleave(
    calls: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Times calls in turns, so that what else the machine does falls on all alike.

    In each round each call runs once to warm up and twice timed; the order is reversed
    from round to round, so that none always follows the same one.

    Returns:
      For each call, its times in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(rounds):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            call = calls[name]
            call()
            for _ in range(2):
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
        spent = time.perf_counter() - start
        if spent > LIMIT or (spent > BUDGET and number + 1 >= LEAST):
            break
    return times


def spread(seconds: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles in milliseconds, and how many calls."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "median_ms": 1e3 * median,
        "q1_ms": 1e3 * low,
        "q3_ms": 1e3 * high,
        "calls": len(seconds),
    }
