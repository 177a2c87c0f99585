"""The numbers and gradients of torchvision's operators on boxes, and where they differ.

A few hundred boxes for each operator: in and out of the map, over its edges, reversed,
empty, and with whole and half coordinates, which fall on the edges between cases.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool

torch = pytest.importorskip("torch")
ops = pytest.importorskip("torchvision.ops")
poolers = pytest.importorskip("torchvision.ops.poolers")

# Samples are off by the float32 rounding of coordinates up to 30, that is by 4e-6 of
# the difference of neighbours around 1; gradients add up some dozens of those.
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
equal = np.testing.assert_array_equal
N, H, W = 3, 11, 14


def features(channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, H, W, channels)).astype(np.float32)


def boxes_and_images(count=300, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    middle = rng.uniform(-3, 3 + max(H, W), (count, 2))
    side = rng.uniform(-3, 12, (count, 2)) * rng.choice([0.05, 1, 2], (count, 1))
    boxes = np.concatenate([middle - side / 2, middle + side / 2], 1)
    boxes[: count // 3] = np.round(boxes[: count // 3])
    boxes[count // 3 : count // 2] = np.round(2 * boxes[count // 3 : count // 2]) / 2
    return (boxes / scale).astype(np.float32), rng.integers(0, N, count)


def sound(boxes, out, ratio, scale, aligned):
    """Whether no sample of a box lies next to an edge, where rounding decides.

    Where all of the arithmetic is in powers of two, samples on edges are exact.
    """
    good = np.ones(len(boxes), bool)
    for axis, (bins, size) in enumerate(zip(out, (H, W), strict=True)):
        if {np.frexp(bins * ratio)[0], np.frexp(scale)[0]} == {0.5}:
            continue
        sides = boxes[:, [1 - axis, 3 - axis]].astype(np.float64) * scale
        start, end = (sides - aligned / 2).T
        extent = end - start if aligned else np.maximum(end - start, 1)
        steps = (np.arange(bins * ratio) + 0.5) / (bins * ratio)
        points = start[:, None] + steps * extent[:, None]
        for edge in (-1, size):
            good &= (np.abs(points - edge) > 1e-5).all(1)
    assert good.mean() > 0.8
    return good


def theirs(fn, x, boxes, images, out, **kwargs):
    """(values, gradient) in channels-last, for a cotangent of small whole numbers."""
    x = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_()
    rows = np.concatenate([images[:, None].astype(boxes.dtype), boxes], 1)
    y = fn(x, torch.from_numpy(rows), out, **kwargs)
    y.backward(torch.from_numpy(np.moveaxis(cotangent(y.shape), -1, 1).copy()))
    return np.moveaxis(y.detach().numpy(), 1, -1), np.moveaxis(x.grad.numpy(), 1, -1)


def cotangent(shape):
    """Of shape [K, h, w, C], for a result of [K, C, h, w]."""
    k, c, h, w = shape
    rng = np.random.default_rng(k * h + c)
    return rng.integers(-8, 9, (k, h, w, c)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("name", "out", "kwargs"))
def run(name, x, boxes, images, g, out, kwargs):
    def f(x):
        given = {"batch_indices": images, **dict(kwargs)}
        return getattr(jaxpool, name)(x, boxes, out, **given)

    y, pullback = jax.vjp(f, x)
    return y, pullback(g)[0]


def ours(name, x, boxes, images, out, **kwargs):
    c = x.shape[-1] // (out[0] * out[1] if name.startswith("ps_") else 1)
    g = cotangent((len(boxes), c, *out))
    return run(name, x, boxes, images, g, out, tuple(kwargs.items()))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("out", "ratio", "scale"),
    [((7, 7), 2, 1.0), ((2, 3), 1, 0.25), ((1, 1), 4, 1 / 16), ((5, 2), 3, 0.7)],
)
def test_roi_align(out, ratio, scale, aligned):
    x, (boxes, images) = features(2), boxes_and_images(scale=scale)
    kwargs = {"spatial_scale": scale, "sampling_ratio": ratio, "aligned": aligned}
    good = sound(boxes, out, ratio, scale, aligned)
    boxes, images = boxes[good], images[good]
    expected = theirs(ops.roi_align, x, boxes, images, out, **kwargs)
    actual = ours("roi_align", x, boxes, images, out, **kwargs)
    assert np.mean(expected[0] == 0) > 0.05  # some are outside
    for a, e in zip(actual, expected, strict=True):
        close(a, e)


@pytest.mark.parametrize(
    ("out", "ratio", "scale"), [((3, 3), 2, 1.0), ((2, 3), 1, 0.25), ((1, 2), 3, 0.7)]
)
def test_ps_roi_align(out, ratio, scale):
    x, (boxes, images) = features(2 * out[0] * out[1]), boxes_and_images(scale=scale)
    good = sound(boxes, out, ratio, scale, True)
    boxes, images = boxes[good], images[good]
    kwargs = {"spatial_scale": scale, "sampling_ratio": ratio}
    expected = theirs(ops.ps_roi_align, x, boxes, images, out, **kwargs)
    actual = ours("ps_roi_align", x, boxes, images, out, **kwargs)
    for a, e in zip(actual, expected, strict=True):
        close(a, e)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("out", "scale"), [((7, 7), 1.0), ((2, 3), 0.5), ((1, 1), 1 / 16), ((6, 5), 0.7)]
)
def test_roi_pool(out, scale, ties):
    x, (boxes, images) = features(2), boxes_and_images(scale=scale)
    x = np.round(x) if ties else x
    expected = theirs(ops.roi_pool, x, boxes, images, out, spatial_scale=scale)
    actual = ours("roi_pool", x, boxes, images, out, spatial_scale=scale)
    for a, e in zip(actual, expected, strict=True):
        equal(a, e)


def test_roi_pool_differs_for_infinity_and_nan():
    x = np.full((1, 2, 2, 1), -np.inf, np.float32)
    box, image = np.array([[0, 0, 1, 1]], np.float32), np.array([0])
    lowest, nothing = theirs(ops.roi_pool, x, box, image, (1, 1))
    assert lowest.item() == np.finfo(np.float32).min
    assert not nothing.any()
    y, gradient = ours("roi_pool", x, box, image, (1, 1))
    assert y.item() == -np.inf
    assert gradient[0, 0, 0, 0] == cotangent((1, 1, 1, 1)).item()
    x[0, 0, 1], x[0, 1, 0] = np.nan, 3
    assert theirs(ops.roi_pool, x, box, image, (1, 1))[0].item() == 3
    assert np.isnan(ours("roi_pool", x, box, image, (1, 1))[0].item())


@pytest.mark.parametrize(
    ("out", "scale"), [((3, 3), 1.0), ((2, 3), 0.5), ((1, 1), 1 / 16), ((4, 5), 0.7)]
)
def test_ps_roi_pool(out, scale):
    x, (boxes, images) = features(2 * out[0] * out[1]), boxes_and_images(scale=scale)
    kwargs = {"spatial_scale": scale}
    expected, _ = theirs(ops.ps_roi_pool, x, boxes, images, out, **kwargs)
    close(ours("ps_roi_pool", x, boxes, images, out, **kwargs)[0], expected)
    # Where no bin reaches the last row or column their gradient is that of their value.
    low = boxes[:, :2] * scale < [[W - 4, H - 4]]
    high = boxes[:, 2:] * scale < [[W - 3, H - 3]]
    away = (low & high).all(1)
    assert away.sum() > 30
    boxes, images = boxes[away], images[away]
    expected = theirs(ops.ps_roi_pool, x, boxes, images, out, **kwargs)
    actual = ours("ps_roi_pool", x, boxes, images, out, **kwargs)
    for a, e in zip(actual, expected, strict=True):
        close(a, e)


def test_ps_roi_pool_gradient_differs_at_the_last_row():
    x = features(1)[:1]
    box, image = np.array([[0, 0, W, H]], np.float32), np.array([0])
    y, gradient = theirs(ops.ps_roi_pool, x, box, image, (1, 1))
    close(y.item(), x[0, : H - 1, : W - 1].mean())
    equal(gradient != 0, np.ones((1, H, W, 1), bool))  # of elements with no influence
    y, gradient = ours("ps_roi_pool", x, box, image, (1, 1))
    close(y.item(), x[0, : H - 1, : W - 1].mean())
    equal(gradient[0, H - 1], 0)
    equal(gradient[0, :, W - 1], 0)
    g = cotangent((1, 1, 1, 1)).item()
    close(gradient[0, : H - 1, : W - 1], g / ((H - 1) * (W - 1)))


def pixels(count, seed=0):
    """Boxes of all sizes from 8 to 800 pixels, some with sides that end a level."""
    rng = np.random.default_rng(seed)
    side = np.exp(rng.uniform(np.log(8), np.log(800), (count, 2)))
    side[: count // 4] = rng.choice([28, 56, 112, 224, 448], (count // 4, 1))
    corner = rng.integers(0, 100, (count, 2))
    return np.concatenate([corner, corner + side], 1).astype(np.float32)


@pytest.mark.parametrize("canonical", [{}, {"canonical_scale": 100}])
def test_roi_levels(canonical):
    boxes = pixels(1000)
    mapper = poolers.LevelMapper(2, 5, **canonical)
    expected = mapper([torch.from_numpy(boxes)]).numpy() + 2
    equal(jaxpool.roi_levels(boxes, 2, 5, **canonical), expected)
    equal(np.unique(expected), [2, 3, 4, 5])


@pytest.mark.parametrize("levels", [1, 4])
def test_multiscale_roi_align(levels):
    height, width, rng = 512, 640, np.random.default_rng(0)
    shapes = [(2, height >> i, width >> i, 3) for i in range(2, 2 + levels)]
    maps = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    boxes = np.stack([pixels(100), pixels(100, 1)])
    names = [str(i) for i in range(levels)]
    pool = ops.MultiScaleRoIAlign(names, (3, 2), 2)
    tensors = [torch.from_numpy(np.moveaxis(m, -1, 1).copy()) for m in maps]
    for tensor in tensors:
        tensor.requires_grad_()
    given = dict(zip(names, tensors, strict=True))
    y = pool(given, list(torch.from_numpy(boxes)), [(500, width), (height, 600)])
    g = cotangent(y.shape)
    y.backward(torch.from_numpy(np.moveaxis(g, -1, 1).copy()))

    @jax.jit
    def both(maps, boxes, g):
        def f(maps):
            kwargs = {"image_shape": (height, width)}
            return jaxpool.multiscale_roi_align(maps, boxes, (3, 2), **kwargs)

        y, pullback = jax.vjp(f, maps)
        return y, pullback(g)[0]

    ours, gradients = both(maps, boxes, jnp.asarray(g.reshape(2, 100, 3, 2, 3)))
    close(ours.reshape(-1, 3, 2, 3), np.moveaxis(y.detach().numpy(), 1, -1), atol=2e-4)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        expected = np.moveaxis(tensor.grad.numpy(), 1, -1)
        assert expected.any()
        close(gradient, expected, atol=1e-3)
