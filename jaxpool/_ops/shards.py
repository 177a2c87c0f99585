"""Pooling of arrays whose pooled axes lie on several devices.

XLA splits any op over devices by itself, and where windows overlap it may fetch whole
arrays for what needs a row. `sharded` says what has to move: the rows that windows
reach into, from the device beside.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxpool._core.arguments import as_array
from jaxpool._core.geometry import Axis, Geometry, static_size
from jaxpool._core.op import OPS
from jaxpool._core.window import Window, fail

__all__ = ["sharded"]

_WINDOW = ("window_shape", "strides", "padding", "window_dilation", "ceil_mode", "axis")


def sharded(
    pool: Callable[..., jax.Array], mesh: Mesh, spec: PartitionSpec
) -> Callable[..., jax.Array]:
    r"""A windowed pool of arrays whose pooled axes are split over devices.

    .. math:: y_o = \operatorname{pool}(x_{o s - p}, \dots, x_{o s - p + d (K - 1)}),
        \qquad D n - p \le i < (D + 1) n + q, \qquad q = d (K - 1) + 1 - s - p

    Device :math:`D` has :math:`n` elements of an axis and pools :math:`n / s` windows,
    which reach into :math:`p` elements of the device before it (the low padding) and
    :math:`q` of the one behind: these it is sent, and nothing else. Gradients go back
    the same way. Values and derivatives are those of `pool` on the whole array.

    Args:
      pool: a function of one array and a window, such as :func:`max_pool`; none that
        returns positions or several arrays.
      mesh: the devices.
      spec: how the array is split over them, and the result too: an entry for each
        axis, also of batch and channels.

    Returns:
      A function that takes the arguments of `pool`. It takes no `where`, and no `key`:
      draws would not be those of the whole array.

    Raises:
      ValueError, TypeError: for arguments that break these rules, those of `pool`, or
        these: along a split axis the windows must be as many as elements over strides
        (`"SAME"` makes them so, and where windows do not overlap `"VALID"`), each
        device must have a multiple of the stride, and halos must come from the device
        next to it.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxpool as jp
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("rows",))
      >>> pool = jp.sharded(jp.max_pool, mesh, jax.P(None, "rows"))
      >>> pool(jnp.ones((2, 8, 8, 1)), (3, 3), strides=(2, 2), padding="SAME").shape
      (2, 4, 4, 1)
    """
    op = OPS.get(getattr(pool, "__name__", ""))
    if op is None or op.fn is not pool or (op.kind, op.outputs) != ("window", 1):
        rule = "must be a function of jaxpool with a window, that returns one array"
        raise fail("sharded", "pool", rule, pool, TypeError)
    if op.inputs != ("x",):
        raise fail("sharded", "pool", "must take one array", op.name)
    split = _split(mesh, spec)
    signature = inspect.signature(pool)

    @functools.wraps(pool)
    def over_shards(*args: Any, **kwargs: Any) -> jax.Array:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        options = bound.arguments
        x = as_array(op.name, options.pop("x"))
        for name in ("where", "key"):
            if options.get(name) is not None:
                rule = "must be None where the array is split over devices"
                raise fail("sharded", name, rule, type(options[name]))
        if len(split) > x.ndim:
            rule = f"must have at most {x.ndim} entries, to fit the array"
            raise fail("sharded", "spec", rule, spec)
        for i, (_, count) in enumerate(split):
            if x.shape[i] % count:
                rule = f"must give each of {count} devices as many elements of axis {i}"
                raise fail("sharded", "x", rule, x.shape)
        window = Window.of(op.name, *(options[name] for name in _WINDOW))
        geometry = Geometry.of(window, x.shape)
        axes = {a.axis: a for a in geometry.axes}
        pads = {i: (a.low, a.counted_high) for i, a in axes.items()}
        placed = dict(zip(range(-x.ndim, 0), split, strict=False))
        halos = [h for i, a in axes.items() if (h := _halo(a, *placed.get(i, ((), 1))))]

        def piece(ends, x):
            own = dict(pads)
            for halo, (first, last) in zip(halos, ends, strict=True):
                x, own[halo.axis] = halo.at_the_end(x, first, last)
            padding = [own[a] for a in window.resolve(x.ndim)]
            return pool(x, **{**options, "padding": padding})

        def local(x):
            place = 0
            for halo in halos:
                x = halo.fetched(x)
                place = 3 * place + halo.place()
            ends = [(True, False), (False, False), (False, True)]
            pieces = itertools.product(ends, repeat=len(halos))
            branches = [functools.partial(piece, each) for each in pieces]
            return lax.switch(place, branches, x)

        return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(x)

    return over_shards


@dataclass(frozen=True)
class _Halo:
    """The elements that the windows of one device reach into, along one axis.

    Attributes:
      axis: the axis, negative.
      names: the axes of the mesh that it is split over.
      count: the number of devices along them.
      low: the number of elements from the device before.
      high: the number of elements from the device behind.
      counted_high: how many of those are padding that counts, behind the last device.
    """

    axis: int
    names: tuple[str, ...]
    count: int
    low: int
    high: int
    counted_high: int

    def fetched(self, x: jax.Array) -> jax.Array:
        """The device's elements between its neighbours'; 0 where it has none."""
        axis, size = x.ndim + self.axis, x.shape[self.axis]
        up = [(i, i + 1) for i in range(self.count - 1)]
        down = [(i + 1, i) for i in range(self.count - 1)]
        parts = [x]
        if self.low:
            rows = lax.slice_in_dim(x, size - self.low, size, axis=axis)
            parts.insert(0, lax.ppermute(rows, self.names, up))
        if self.high:
            rows = lax.slice_in_dim(x, 0, self.high, axis=axis)
            parts.append(lax.ppermute(rows, self.names, down))
        return lax.concatenate(parts, axis)

    def place(self) -> jax.Array:
        """0 on the first device, 2 on the last one, 1 between them."""
        index = lax.axis_index(self.names)
        return (index > 0).astype(int) + (index == self.count - 1).astype(int)

    def at_the_end(
        self, x: jax.Array, first: bool, last: bool
    ) -> tuple[jax.Array, tuple[int, int]]:
        """The array with padding in place of what no device has sent."""
        begin, end = self.low * first, x.shape[self.axis] - self.high * last
        x = lax.slice_in_dim(x, begin, end, axis=x.ndim + self.axis)
        return x, (self.low * first, self.counted_high * last)


def _split(mesh: Mesh, spec: PartitionSpec) -> list[tuple[tuple[str, ...], int]]:
    """For each axis of an array, axes of the mesh and the number of its devices."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise fail("sharded", "mesh", "must be a jax.sharding.Mesh", mesh, TypeError)
    if not isinstance(spec, PartitionSpec):
        rule = "must be a jax.sharding.PartitionSpec"
        raise fail("sharded", "spec", rule, spec, TypeError)
    parts = [p if isinstance(p, tuple) else () if p is None else (p,) for p in spec]
    names = [name for part in parts for name in part]
    if any(n not in mesh.axis_names or names.count(n) > 1 for n in names):
        rule = f"must name axes of `mesh`, {mesh.axis_names}, and none twice"
        raise fail("sharded", "spec", rule, spec)
    return [(part, math.prod(mesh.shape[n] for n in part)) for part in parts]


def _halo(axis: Axis, names: tuple[str, ...], count: int) -> _Halo | None:
    """What moves along an axis that is split over so many devices, if anything."""
    if count == 1:
        return None
    size = static_size("sharded", axis.size)
    own = size // count
    if own % axis.stride:
        rule = f"must give each of {count} devices a multiple of the stride"
        raise fail("sharded", "x", rule, f"{size} elements by strides of {axis.stride}")
    if axis.out * axis.stride != size:
        rule = f"must give {size // axis.stride} windows along an axis of {size}"
        raise fail("sharded", "padding", rule, f"{axis.out} windows")
    reach = (axis.window - 1) * axis.dilation + 1
    low, high = axis.low, max(reach - axis.stride - axis.low, 0)
    if max(low, high) > own:
        rule = f"must reach no further than the {own} elements of the next device"
        raise fail("sharded", "window_shape", rule, f"a reach of {max(low, high)}")
    if not low and not high:
        return None
    counted = min(high, axis.counted_high)
    return _Halo(axis.axis, names, count, low, high, counted)
