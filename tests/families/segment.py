"""Segments: the rows of each one, collected in a loop."""

import numpy as np
import oracle


def pooled(e, mode):
    """One segment's elements of one place."""
    if not e.size:
        return {"max": -np.inf, "min": np.inf}.get(mode, 0.0)
    if mode in ("max", "min"):
        return e[oracle.first_extremum(e, mode == "max")]
    mean = e.sum() / e.size
    variance = ((e - mean) ** 2).sum() / e.size
    return {"sum": e.sum(), "mean": mean, "var": variance, "std": variance**0.5}[mode]


def segment_pool(x, where=None, *, segment_ids, num_segments, mode="mean"):
    modes = (mode,) if isinstance(mode, str) else mode
    if where is not None:
        where = np.asarray(where)
        where = where.reshape(-1, *(1,) * (x.ndim - 1)) if where.ndim == 1 else where
    here = np.broadcast_to(True if where is None else where, x.shape)
    parts = []
    for mode in modes:
        y = np.zeros((num_segments, *x.shape[1:]))
        for s in range(num_segments):
            for place in np.ndindex(x.shape[1:]):
                rows = [
                    x[(i, *place)]
                    for i, owner in enumerate(segment_ids)
                    if owner == s and here[(i, *place)]
                ]
                y[(s, *place)] = pooled(np.array(rows), mode)
        parts.append(y)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


def ids(*values):
    return np.array(values, np.int32)


ORACLES = {"segment_pool": segment_pool}
MODES = ("sum", "mean", "max", "min", "var", "std")
# The rows are the first axis: the batch.
FOUR = dict(segment_ids=ids(1, 0, 1, 2), num_segments=2)
CASES = {
    "segment_pool": [
        ((6, 7), dict(FOUR, mode=MODES), (4,)),
        # Unsorted, with rows that are nobody's and segments without rows.
        *[
            (
                (2,),
                dict(segment_ids=ids(3, 0, -1, 3, 0, 3, 9), num_segments=5, mode=mode),
                (7,),
            )
            for mode in ("sum", "mean", "std")
        ],
        ((), dict(segment_ids=ids(0, 1, 1), num_segments=2, mode="max"), (3,)),
    ]
}
STATIC = {"segment_pool": dict(num_segments=2)}
WIDE = {"segment_pool": "mean"}
_TWO = dict(segment_ids=ids(0, 1), num_segments=2)
COUNTED = {
    "segment_pool": (
        "segment_ids",
        300,
        lambda ids: (
            np.arange(len(ids), dtype=np.float32)[:, None],
            dict(segment_ids=ids, num_segments=300, mode="sum"),
        ),
    )
}
WRONG = {
    "segment_pool": [
        (dict(_TWO, mode="median"), ValueError, "`mode` must be one or several of sum"),
        (dict(_TWO, num_segments=0), ValueError, "`num_segments` must be at least 1"),
        (dict(_TWO, num_segments=2.0), TypeError, "`num_segments` must be made of"),
        (
            dict(_TWO, segment_ids=np.zeros(2, np.float32)),
            TypeError,
            "`segment_ids` must be integers",
        ),
        (
            dict(_TWO, segment_ids=ids(0, 1, 1)),
            ValueError,
            "`segment_ids` must have one entry for each row",
        ),
        (dict(_TWO, where=np.ones(2)), TypeError, "`where` must be boolean"),
        (dict(_TWO, where=np.ones(3, bool)), ValueError, "`where` must broadcast"),
    ]
}
_ROWS = "the leading axis is pooled; see test_segment.py"
EXCEPT = {
    ("segment_pool", "any_layout"): "rows come first",
    ("segment_pool", "any_number_of_batch_axes"): _ROWS,
    ("segment_pool", "mask"): "a mask has one entry a row; see test_segment.py",
}
