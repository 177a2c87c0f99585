"""Pooling at random, as its expectation: what is drawn is tested by `test_keys.py`."""

import numpy as np
import oracle


def mean_of_maxima(x, where=None, *, window_shape, strides, padding="SAME", **options):
    """S3Pool's evaluation, which neither its grid nor what is shared changes."""
    del where, options
    n = len(window_shape)
    axes = tuple(range(-1 - n, -1))
    pairs = [padding] * n if isinstance(padding, str) else padding
    lines = [
        oracle.line(x.shape[a], k, 1, p)
        for a, k, p in zip(axes, window_shape, pairs, strict=True)
    ]
    x = oracle.over_windows(oracle.maximum, x, lines, axes)
    lines = [oracle.line(x.shape[a], s, s) for a, s in zip(axes, strides, strict=True)]
    return oracle.over_windows(oracle.mean, x, lines, axes)


ORACLES = {"random_mixed_pool": oracle.mixed, "s3_pool": mean_of_maxima}
CASES = {
    "s3_pool": [
        ((6, 7), dict(window_shape=(3, 2), strides=(2, 3), grid_shape=(4, 3))),
        ((6, 7), dict(window_shape=(2, 3), strides=(2, 2), padding="VALID")),
        ((9,), dict(window_shape=(2,), strides=(3,), padding=((0, 1),), shared=False)),
    ]
}
STATIC = {
    "random_mixed_pool": dict(deterministic=True),
    "s3_pool": dict(window_shape=(2, 2), deterministic=True),
}
_W = dict(window_shape=(2, 2))
_KEY = (dict(_W, deterministic=False), ValueError, "pass `key=jax.random.key")
WRONG = {
    "random_mixed_pool": [
        _KEY,
        (
            dict(_W, per="sample"),
            ValueError,
            "`per` must be one of layer",
        ),
    ],
    "s3_pool": [
        _KEY,
        (dict(window_shape=2), ValueError, "`window_shape` must be a sequence"),
        (dict(_W, strides=(0, 1)), ValueError, "`strides` must be at least 1"),
        (dict(_W, strides=7), ValueError, "leaves nothing to pool"),
        (dict(_W, padding=2), ValueError, "`padding` must be less than"),
        (dict(_W, strides=2, grid_shape=3), ValueError, "a multiple of the strides"),
        (dict(_W, strides=2, grid_shape=0), ValueError, "must be at least 1; got 0"),
        (dict(_W, shared="batch"), ValueError, "`shared` must be True, False or"),
    ],
}


def s3(a, strides=None, **options):
    """S3Pool of a plane by windows of 2 x 2."""
    import jaxpool

    y = jaxpool.s3_pool(a[..., None], (2, 2), strides, **options)
    return np.asarray(y[..., 0])


def s3_draw(a, rows, columns):
    """What comes of these rows and columns, as soon as they are drawn."""
    import jax

    wanted = s3(a, deterministic=True)[np.ix_(rows, columns)]
    keys = jax.random.split(jax.random.key(0), 100)
    draws = [s3(a, (2, 2), key=key) for key in keys]
    return next(y for y in draws if np.array_equal(y, wanted))


GOLDEN = {
    "S3_step1_maxpool_s1_edgepad_A": lambda a, b: s3(a, deterministic=True),
    "S3_rows[0,3]_cols[1,2]_A": lambda a, b: s3_draw(a, [0, 3], [1, 2]),
    "S3_eval_avg2_A": lambda a, b: s3(a, (2, 2), deterministic=True),
}
# Ops whose evaluation is the expectation of what they draw, and with which arguments.
EXPECTATION = {
    "stochastic_pool": dict(window_shape=(3, 3), strides=(2, 2), padding="SAME"),
    "random_mixed_pool": dict(window_shape=(3, 3), strides=(2, 2), padding="SAME"),
    "s3_pool": dict(
        window_shape=(3, 2), strides=(2, 3), padding=((1, 1), (0, 0)), grid_shape=None
    ),
}
