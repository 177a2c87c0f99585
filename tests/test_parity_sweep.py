"""A few hundred configurations of `parity_sweep.py`, others every day.

The day's seed is printed at the end of the run; `JAXPOOL_PARITY_SEED` gives it again.
"""

import datetime
import os

import pytest

pytest.importorskip("torch")

import parity_sweep

TODAY = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")
SEED = int(os.environ.get("JAXPOOL_PARITY_SEED", TODAY))
CONFIGS = int(os.environ.get("JAXPOOL_PARITY_CONFIGS", "200"))
PARTS = 4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("part", range(PARTS))
def test_parity_of_drawn_configurations(part, record_property):
    each = CONFIGS // PARTS
    complaints, counts = parity_sweep.chunk(SEED, part * each, (part + 1) * each)
    summary = parity_sweep.summary(SEED, counts, complaints)
    record_property("summary", summary)
    lines = [f"{line}: {complaint}" for line, complaint in complaints]
    assert not lines, "\n".join([summary, *lines])
    assert counts["compared"] > each / 2
