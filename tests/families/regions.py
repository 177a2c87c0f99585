"""Regions of interest, one box, bin and sample at a time."""

import math

import numpy as np


def over_boxes(pool, x, boxes, batch_indices=None):
    """Calls `pool(image, box)` for each box; `image` is `[H, W, C]`."""
    boxes = np.asarray(boxes, np.float64)
    if batch_indices is not None:
        pairs = zip(batch_indices, boxes, strict=True)
        images = {n: x[n] for n in range(len(x))}
        return np.stack([pool(images.get(n, 0 * x[0]), box) for n, box in pairs])
    boxes = np.broadcast_to(boxes, (*x.shape[:-3], *boxes.shape[-2:]))
    y = [[pool(x[at], b) for b in boxes[at]] for at in np.ndindex(x.shape[:-3])]
    y = np.array(y)
    return y.reshape(*x.shape[:-3], boxes.shape[-2], *y.shape[2:])


def between(image, v, u):
    """The image at (v, u), between its elements."""
    height, width, channels = image.shape
    if not (-1 <= v <= height and -1 <= u <= width):
        return np.zeros(channels)
    v, u = min(max(v, 0), height - 1), min(max(u, 0), width - 1)
    top, left = math.floor(v), math.floor(u)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[top, left] * (left + 1 - u) + image[top, right] * (u - left)
    lower = image[bottom, left] * (left + 1 - u) + image[bottom, right] * (u - left)
    return upper * (top + 1 - v) + lower * (v - top)


def own_channels(image, h, w, o, p):
    """The channels that bin (o, p) of (h, w) reads."""
    return image[..., o * w + p :: h * w]


def every_channel(image, h, w, o, p):
    return image


def over_bins(image, out, channels, value):
    """`value(image, o, p)` for every bin, of the channels that it reads."""
    (h, w) = out
    rows = range(h)
    return np.array(
        [[value(channels(image, h, w, o, p), o, p) for p in range(w)] for o in rows]
    )


def align(
    x,
    boxes,
    output_shape,
    where=None,
    batch_indices=None,
    spatial_scale=1.0,
    sampling_ratio=2,
    aligned=False,
    channels=every_channel,
):
    def pool(image, box):
        u0, v0, u1, v1 = box * spatial_scale - (0.5 if aligned else 0)
        tall, wide = v1 - v0, u1 - u0
        if not aligned:
            tall, wide = max(tall, 1), max(wide, 1)
        (h, w), s = output_shape, sampling_ratio

        def value(image, o, p):
            points = [
                (
                    v0 + (o + (i + 0.5) / s) * tall / h,
                    u0 + (p + (j + 0.5) / s) * wide / w,
                )
                for i in range(s)
                for j in range(s)
            ]
            return np.mean([between(image, v, u) for v, u in points], 0)

        return over_bins(image, output_shape, channels, value)

    return over_boxes(pool, x, boxes, batch_indices)


def ps_align(x, boxes, output_shape, where=None, **more):
    return align(x, boxes, output_shape, aligned=True, channels=own_channels, **more)


def multiscale(x, boxes, output_shape, where=None, spatial_scales=(1.0,), **more):
    """Of a pyramid with one level, whatever the size that belongs to it."""
    more.pop("canonical_scale", None)
    return align(x, boxes, output_shape, spatial_scale=spatial_scales[0], **more)


def edges(low, high, plus, out, limit):
    """The elements of each bin along one axis."""
    if not np.isfinite([low, high]).all():
        return [range(0)] * out
    low, high = (int(math.copysign(math.floor(abs(c) + 0.5), c)) for c in (low, high))
    size = max(high - low + plus, 1) / out
    cut = [(math.floor(o * size), math.ceil((o + 1) * size)) for o in range(out)]
    return [range(max(a + low, 0), min(b + low, limit)) for a, b in cut]


def rounded(
    x,
    boxes,
    output_shape,
    where=None,
    batch_indices=None,
    spatial_scale=1.0,
    plus=1,
    channels=every_channel,
    reduce=np.max,
):
    def pool(image, box):
        u0, v0, u1, v1 = box * spatial_scale
        height, width = (size - 1 + plus for size in image.shape[:2])
        rows = edges(v0, v1, plus, output_shape[0], height)
        columns = edges(u0, u1, plus, output_shape[1], width)

        def value(image, o, p):
            elements = image[rows[o]][:, columns[p]]
            some = elements.shape[0] and elements.shape[1]
            return reduce(elements, (0, 1)) if some else np.zeros(image.shape[-1])

        return over_bins(image, output_shape, channels, value)

    return over_boxes(pool, x, boxes, batch_indices)


def ps_mean(x, boxes, output_shape, where=None, **more):
    fixed = {"plus": 0, "channels": own_channels, "reduce": np.mean}
    return rounded(x, boxes, output_shape, **fixed, **more)


ORACLES = {
    "roi_align": align,
    "roi_pool": rounded,
    "ps_roi_align": ps_align,
    "ps_roi_pool": ps_mean,
    "multiscale_roi_align": multiscale,
}
# Inside; over each edge; outside; reversed; empty; a whole map and more. Numbers that
# float32 holds: JAX keeps what it made of an array, also where 64-bit types come later.
BOXES = np.array(
    [
        [0.7, 1.2, 4.1, 4.8],
        [-1.6, -2.3, 3.1, 2.2],
        [4.3, 3.4, 9.2, 8.1],
        [8.5, 1.1, 12.0, 3.2],
        [5.2, 4.6, 2.1, 1.3],
        [3.3, 2.2, 3.3, 2.2],
        [-0.4, -0.6, 7.3, 6.4],
    ],
    np.float32,
).astype(np.float64)
NO_BOX = np.full((1, 4), np.nan)
_SHARED = (dict(boxes=BOXES, output_shape=(2, 3)), None)
_ITS_OWN = dict(boxes=np.stack([BOXES[:3], 2 - BOXES[2:5]]), output_shape=(3, 2))
_NAMED = dict(
    boxes=np.concatenate([BOXES[:3], NO_BOX]),
    output_shape=(2, 1),
    batch_indices=np.array([1, 0, 1, 0]),
)
_SIZES, _TWO = (6, 7), (2,)


def _cases(groups, **more):
    """Shared boxes; boxes of each image; and boxes that name their image."""
    grouped = (lambda n: (n,)) if groups else (lambda n: ())
    return [
        (_SIZES, *_SHARED, *grouped(6)),
        (_SIZES, dict(_ITS_OWN, spatial_scale=0.5, **more), _TWO, *grouped(6)),
        (_SIZES, _NAMED, _TWO, *grouped(2)),
    ]


CASES = {
    "roi_align": _cases(False, sampling_ratio=3, aligned=True),
    "ps_roi_align": _cases(True, sampling_ratio=1),
    "roi_pool": _cases(False),
    "ps_roi_pool": _cases(True),
    "multiscale_roi_align": [(_SIZES, dict(_SHARED[0], spatial_scales=(1.0,)))],
}


def _counted(channels=1, **more):
    images = np.arange(1, 301, dtype=np.float32)[:, None, None, None]
    images = images + np.zeros((2, 2, channels), np.float32)

    def given(indices):
        boxes = np.tile(np.array([[0, 0, 1, 1]], np.float32), (len(indices), 1))
        return images, dict(
            boxes=boxes, batch_indices=indices, output_shape=(1, channels), **more
        )

    return "batch_indices", 300, given


COUNTED = {
    "roi_align": _counted(),
    "roi_pool": _counted(),
    "ps_roi_align": _counted(2),
    "ps_roi_pool": _counted(2),
    "multiscale_roi_align": _counted(spatial_scales=(1.0,)),
}
WIDE = dict.fromkeys(set(ORACLES) - {"roi_pool"}, "mean")

_B = dict(boxes=BOXES, output_shape=(1, 1))
_EVERY = [
    (dict(boxes="text", output_shape=1), TypeError, "`boxes` must be an array of"),
    (dict(boxes=BOXES > 0, output_shape=1), TypeError, "`boxes` must be numbers"),
    (
        dict(boxes=BOXES[:, :3], output_shape=1),
        ValueError,
        "must have a last axis of 4",
    ),
    (dict(boxes=BOXES[0], output_shape=1), ValueError, "`boxes` must be [..., K, 4]"),
    (dict(boxes=np.zeros((3, 1, 4)), output_shape=1), ValueError, "that broadcast to"),
    (dict(_B, output_shape=(2, 2, 2)), ValueError, "`output_shape` must have 2"),
    (dict(_B, output_shape=(0, 2)), ValueError, "`output_shape` must be at least 1"),
    (
        dict(_B, batch_indices=np.zeros(7)),
        TypeError,
        "`batch_indices` must be integers",
    ),
    (dict(_B, batch_indices=np.arange(3)), ValueError, "must have the shape (7,)"),
    (dict(_B, batch_indices=np.arange(7)), ValueError, "must be at least 0 and less"),
    (
        dict(_B, batch_indices=-np.eye(7, dtype=int)[0]),
        ValueError,
        "must be at least 0",
    ),
    (
        dict(_ITS_OWN, output_shape=1, batch_indices=np.zeros(3, int)),
        ValueError,
        "`boxes` must be [K, 4] where `batch_indices`",
    ),
]
_SCALE = [
    (dict(_B, spatial_scale=0), ValueError, "`spatial_scale` must be finite and"),
    (dict(_B, spatial_scale=math.nan), ValueError, "`spatial_scale` must be finite"),
    (dict(_B, spatial_scale="a"), TypeError, "`spatial_scale` must be finite and"),
]
_SAMPLES = [
    (dict(_B, sampling_ratio=0), ValueError, "`sampling_ratio` must be at least 1 (a"),
    (dict(_B, sampling_ratio=-1), ValueError, "`sampling_ratio` must be at least 1"),
    (dict(_B, sampling_ratio=2.0), TypeError, "`sampling_ratio` must be made of ints"),
]
_ALIGNED = [(dict(_B, aligned=1), TypeError, "`aligned` must be True or False")]
_GROUPS = [
    (dict(_B, output_shape=(2, 2)), ValueError, "must have channels in multiples of 4")
]
_LEVELS = [
    (dict(_B, spatial_scales=(0.3,)), ValueError, "must give 1 scales, powers of two"),
    (dict(_B, spatial_scales=(1, 0.5)), ValueError, "must give 1 scales, powers of"),
    (dict(_B, image_shape=None, spatial_scales=None), ValueError, "must be given, unl"),
    (dict(_B, image_shape=(9, 9)), ValueError, "must be given, unless"),
    (dict(_B, canonical_scale=0.0), ValueError, "`canonical_scale` must be finite and"),
    (
        dict(_B, canonical_level=4.0),
        TypeError,
        "`canonical_level` must be made of ints",
    ),
]
WRONG = {
    "roi_align": _EVERY + _SCALE + _SAMPLES + _ALIGNED,
    "ps_roi_align": _EVERY + _SCALE + _SAMPLES + _GROUPS,
    "roi_pool": _EVERY + _SCALE,
    "ps_roi_pool": _EVERY + _SCALE + _GROUPS,
    "multiscale_roi_align": [
        ({"spatial_scales": (1.0,), **kwargs}, *rest)
        for kwargs, *rest in _EVERY + _SAMPLES + _ALIGNED + _LEVELS
    ],
}
EXCEPT = {
    (op, "any_layout"): "a box speaks of H and W: `x` is [..., H, W, C] alone"
    for op in ORACLES
}
