"""Receptive fields by a walk over a jaxpr: which inputs each element can depend on.

Along each axis of the input that is asked about, a `Field` holds the first and the last
position that every element of an array sees. A program is followed operation by
operation, branches included; nothing is computed but the index tables of gathers and
the matrices of resizing. An operation without a rule here, such as a loop or a
callback, counts as one that reads everything; one with effects reads what earlier ones
with effects were given as well. What is said is then an upper bound, and said to be
one.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

import numpy as np
from jax.extend.core import Literal

from jaxpool._core.geometry import Axis, Bins, Geometry

__all__ = ["ELEMENTWISE", "RULES", "TAG", "Dep", "Event", "Field", "walk"]

TAG = "jaxpool:"
"""What the names begin with that mark where calls take and give their arrays."""

_FAR = 2**40  # the first position of what sees nothing
_MOST_KNOWN = 2**20  # elements of a constant that is worth computing


@dataclass(frozen=True)
class Field:
    """What the elements of an array see along one axis of the input.

    Attributes:
      axis: the array's axis along which it differs, or None where all see the same.
      spans: int64 [4, n], n the size of that axis, or 1. Two rows are the first
        position and minus the last one; two more the same where every padding is
        thought of as more input, which is what a receptive field's size means.
      jump: the distance between what neighbours see, the product of the strides; None
        where there is no such number.
    """

    axis: int | None
    spans: np.ndarray
    jump: Fraction | None

    @classmethod
    def of_input(cls, axis: int, size: int) -> "Field":
        """The field of the input itself."""
        at = np.arange(size)
        return cls(axis, np.stack([at, -at, at, -at]), Fraction(1))

    @property
    def size(self) -> int:
        """The receptive field's size: of the element that sees most."""
        return max(int((-self.spans[3] - self.spans[2]).max()) + 1, 0)

    @property
    def start(self) -> int:
        """The first position that the first element sees; padding is negative."""
        return int(self.spans[2, 0])

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last input that each element sees; last < first is none."""
        return self.spans[0], -self.spans[1]

    @property
    def everywhere(self) -> "Field":
        """Of an array of which each element reads all of this one."""
        return Field(None, self.spans.min(1, keepdims=True), None)

    def joined(self, other: "Field | None") -> "Field":
        """Of an array whose elements read one element each of two arrays."""
        if other is None:
            return self
        if None not in (self.axis, other.axis) and self.axis != other.axis:
            return self.everywhere.joined(other.everywhere)
        axis = other.axis if self.axis is None else self.axis
        jumps = {f.jump for f in (self, other) if f.axis is not None}
        jump = jumps.pop() if len(jumps) == 1 else None
        return Field(axis, np.minimum(self.spans, other.spans), jump)

    def read(
        self,
        axis: int,
        positions: np.ndarray,
        step: Fraction | int | None,
        holes: np.ndarray | None = None,
    ) -> "Field":
        """Of an array whose element o along `axis` reads `positions[o]`, [n, taps].

        Positions outside are padding, `holes` are nothing, and `step` is the distance
        between the positions of neighbours.
        """
        inside = np.clip(positions, 0, self.spans.shape[1] - 1)
        outside = positions - inside
        spans = self.spans[:, inside]
        spans[:2, outside != 0] = _FAR
        if self.jump is not None:
            over, under = self.jump.as_integer_ratio()
            spans[2] += outside * over // under
            spans[3] += -outside * over // under
        if holes is not None:
            spans[:, holes] = _FAR
        jump = None if self.jump is None or step is None else self.jump * step
        return Field(axis, spans.min(-1), jump)

    def window(self, a: Axis | Bins, axis: int, base: int = 1) -> "Field":
        """Of an array of windows over this one, with `base - 1` zeros between."""
        if isinstance(a, Bins):
            positions = np.asarray(a.start)[:, None] + np.arange(a.window)
            holes = positions >= np.asarray(a.end)[:, None]
            return self.read(axis, positions, Fraction(a.size, a.out), holes)
        starts = np.arange(a.out)[:, None] * a.stride - a.low
        positions = starts + np.arange(a.window) * a.dilation
        holes = positions % base != 0 if base > 1 else None
        return self.read(axis, positions // base, Fraction(a.stride, base), holes)

    def like(self, geometry: "Field") -> "Field":
        """The same with a receptive field's size and jump as `geometry` has them."""
        if self.axis != geometry.axis or self.spans.shape != geometry.spans.shape:
            return self  # those are not its windows
        virtual = np.minimum(self.spans[2:], geometry.spans[2:])
        return Field(
            self.axis, np.concatenate([self.spans[:2], virtual]), geometry.jump
        )


@dataclass(frozen=True)
class Dep:
    """What an array sees of the input.

    Attributes:
      fields: one for each axis of the input that is asked about.
      rough: operations on the way that have no rule: fields are upper bounds.
    """

    fields: tuple[Field, ...]
    rough: frozenset[str] = frozenset()

    def joined(self, other: "Dep | None") -> "Dep":
        """What an array sees that is computed from two, element by element."""
        if other is None:
            return self
        pairs = zip(self.fields, other.fields, strict=True)
        fields = tuple(a.joined(b) for a, b in pairs)
        return Dep(fields, self.rough | other.rough)


@dataclass
class Event:
    """Something to tell about: a window, or axes that are mixed.

    Attributes:
      call: the innermost call that it lies in, by number, or None.
      what: the operation's name, or "" for a call as a whole.
      before, after: shapes of the array that it reads and of its result.
      seen_before, seen_after: what those see of the input.
      axes: the windows, of convolutions and `lax.reduce_window`.
      base: one more than the zeros between elements, as in a transposed convolution.
      follows: the call whose result this alone takes, as it is, or None.
    """

    call: int | None
    what: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    seen_before: Dep | None
    seen_after: Dep | None
    axes: tuple[Axis | Bins, ...] = ()
    base: tuple[int, ...] = ()
    follows: int | None = None


def walk(
    jaxpr: Any,
    argument: int,
    axes: Sequence[int],
    geometries: Sequence[Geometry | None],
) -> tuple[list[Event], list[Dep | None]]:
    """Returns what happens in a program, in order, and what its results see.

    Args:
      jaxpr: the closed jaxpr; names of `TAG` are marks of calls.
      argument: which flat argument is the input.
      axes: the axes of the input to follow.
      geometries: the windows of the calls, as far as they are known.
    """
    shape = jaxpr.in_avals[argument].shape
    of_input = Dep(tuple(Field.of_input(a, shape[a]) for a in axes))
    deps = [of_input if i == argument else None for i in range(len(jaxpr.in_avals))]
    walker = _Walker(geometries)
    results, _ = walker.program(jaxpr.jaxpr, jaxpr.consts, deps, [None] * len(deps))
    return walker.events, results


@dataclass
class _Walker:
    geometries: Sequence[Geometry | None]
    events: list[Event] = field(default_factory=list)
    open: list[int] = field(default_factory=list)  # calls, the innermost last
    starts: dict[int, Event] = field(default_factory=dict)
    made: dict[Any, int] = field(default_factory=dict)  # what calls gave, by variable
    uses: Counter[Any] = field(default_factory=Counter)  # of variables
    kept: Dep | None = None  # what effects may keep for later ones: refs, callbacks

    def program(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        deps: Sequence[Dep | None],
        values: "Sequence[_Value | None]",
    ) -> "tuple[list[Dep | None], list[_Value | None]]":
        seen: dict[Any, Dep | None] = dict(zip(jaxpr.invars, deps, strict=True))
        known: dict[Any, _Value | None] = dict(zip(jaxpr.invars, values, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            known[var] = _Value(const)

        def dep(v):
            return None if isinstance(v, Literal) else seen.get(v)

        def value(v):
            return _Value(v.val) if isinstance(v, Literal) else known.get(v)

        used = [*(v for eqn in jaxpr.eqns for v in eqn.invars), *jaxpr.outvars]
        self.uses.update(v for v in used if not isinstance(v, Literal))
        for eqn in jaxpr.eqns:
            ins, given = [*map(dep, eqn.invars)], [*map(value, eqn.invars)]
            outs, made = self._equation(eqn, ins, given)
            seen.update(zip(eqn.outvars, outs, strict=True))
            known.update(zip(eqn.outvars, made, strict=True))
        return [*map(dep, jaxpr.outvars)], [*map(value, jaxpr.outvars)]

    def _equation(self, eqn, ins, given):
        name = eqn.primitive.name
        if name == "name" and eqn.params["name"].startswith(TAG):
            return [self._mark(eqn, ins[0])], given
        inner = _inner(eqn)
        if inner is not None:
            return self.program(*inner, ins, given)
        if name == "cond":
            return self._branches(eqn, ins, given)
        if eqn.effects:
            outs = self._with_effects(eqn, ins)
            return outs, [None] * len(outs)
        if not any(ins):
            return [None] * len(eqn.outvars), _values(eqn, given)
        outs = [self._result(_At(eqn, j, ins, given)) for j in range(len(eqn.outvars))]
        self._tell(eqn, ins, outs)
        return outs, [None] * len(outs)

    def _branches(self, eqn, ins, given):
        results = [
            self.program(b.jaxpr, b.consts, ins[1:], given[1:])[0]
            for b in eqn.params["branches"]
        ]
        if ins[0]:  # which one it is, is seen as well
            which = Dep(tuple(f.everywhere for f in ins[0].fields), ins[0].rough)
            results.append([which] * len(eqn.outvars))
        outs = [functools.reduce(_join, each) for each in zip(*results, strict=True)]
        return outs, [None] * len(outs)

    def _with_effects(self, eqn, ins):
        """Each result sees all that this and earlier operations with effects read."""
        name = frozenset({eqn.primitive.name})
        for dep in filter(None, ins):
            fields = tuple(f.everywhere for f in dep.fields)
            self.kept = Dep(fields, dep.rough | name).joined(self.kept)
        kept = self.kept and Dep(self.kept.fields, self.kept.rough | name)
        outs = [kept] * len(eqn.outvars)
        if any(ins) and outs:
            self._tell(eqn, ins, outs)
        return outs

    def _result(self, at: "_At") -> Dep | None:
        result = None
        if 0 in at.out:
            return None
        for i, dep in enumerate(at.ins):
            if dep is None:
                continue
            rule = RULES.get(at.eqn.primitive.name, _unknown)
            fields, rough = [], dep.rough
            for f in dep.fields:
                new = f if f.axis is None else rule(f, at, i)
                if new is None:
                    rough |= {at.eqn.primitive.name}
                fields.append(f.everywhere if new is None else new)
            if any(f is not _UNSEEN for f in fields):
                result = Dep(tuple(fields), rough).joined(result)
        return result

    def _mark(self, eqn, dep):
        call, way, which = eqn.params["name"].removeprefix(TAG).split(":")
        call, which = int(call), int(which)
        (x,), (y,) = eqn.invars, eqn.outvars
        if isinstance(x, Literal):
            return dep
        shape, geometry = tuple(x.aval.shape), self.geometries[call]
        origin = self.made.get(x) if self.uses[x] == 1 else None
        if way == "in":
            if which == 0:
                self.starts[call] = Event(
                    call, "", shape, (), dep, None, follows=origin
                )
                self.open.append(call)
        elif call in self.open:
            del self.open[self.open.index(call) :]
            start = self.starts[call]
            if geometry and dep and start.seen_before:
                dep = _as_laid(dep, start.seen_before, geometry, len(shape))
            start.after, start.seen_after = shape, dep
            self.events.append(start)
            origin = call if origin is None else origin
        if origin is not None:
            self.made[y] = origin
        return dep

    def _tell(self, eqn, ins, outs):
        name, reads = eqn.primitive.name, [i for i, d in enumerate(ins) if d]
        x, before, after = eqn.invars[reads[0]].aval, ins[reads[0]], outs[0]
        axes, base = (), ()
        if reads[0] == 0 and name == "conv_general_dilated":
            axes, base, _ = _conv_axes(eqn)
        elif name.startswith("reduce_window"):
            axes, base = _window_axes(eqn)
        lost = after and len(_axes(after)) < len(_axes(before))
        if axes or lost:
            shapes = tuple(x.shape), tuple(eqn.outvars[0].aval.shape)
            call = self.open[-1] if self.open else None
            event = Event(call, name, *shapes, before, after, tuple(axes), tuple(base))
            self.events.append(event)


def _axes(dep: Dep) -> set[int]:
    """The axes of an array along which it sees different things."""
    return {f.axis for f in dep.fields if f.axis is not None}


def _as_laid(dep: Dep, before: Dep, geometry: Geometry, ndim: int) -> Dep:
    """`dep`, of windows over `before`, with the sizes and jumps of the windows."""
    by_axis = {ndim + a.axis: a for a in geometry.axes}
    fields = []
    for new, old in zip(dep.fields, before.fields, strict=True):
        axis = old.axis
        if axis is not None and axis in by_axis:
            new = new.like(old.window(by_axis[axis], axis))
        fields.append(new)
    return Dep(tuple(fields), dep.rough)


def _join(a: Dep | None, b: Dep | None) -> Dep | None:
    return b if a is None else a.joined(b)


_CALLS = frozenset(
    "call closed_call composite core_call core_closed_call custom_jvp_call "
    "custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call jit linear_call pjit "
    "remat remat2".split()
)
"""Operations that run a program once, on their operands."""


def _inner(eqn) -> tuple[Any, Sequence[Any]] | None:
    """The program that an operation runs once on its operands, and its constants."""
    if eqn.primitive.name not in _CALLS:
        return None
    for p in eqn.params.values():
        jaxpr, consts = getattr(p, "jaxpr", p), getattr(p, "consts", ())
        if not hasattr(jaxpr, "eqns"):
            continue
        shapes = [[v.aval.shape for v in vs] for vs in (jaxpr.invars, jaxpr.outvars)]
        if shapes == [[v.aval.shape for v in vs] for vs in (eqn.invars, eqn.outvars)]:
            return jaxpr, consts
    return None


def _values(eqn, given: Sequence["_Value | None"]) -> "list[_Value | None]":
    """The values of an operation on constants, if they are small enough to compute."""
    sizes = [math.prod(v.aval.shape) for v in eqn.outvars]
    name = eqn.primitive.name
    known = (name in RULES or name in _CONSTANTS) and None not in given
    if not known or max(sizes, default=0) > _MOST_KNOWN:
        return [None] * len(sizes)
    operation = _Operation(eqn, cast(Any, given))
    return [_Value(operation, j) for j in range(len(sizes))]


@dataclass(eq=False)
class _Operation:
    """An operation on constants, which is computed when it is asked for."""

    eqn: Any
    operands: "Sequence[_Value]"
    results: list[Any] | None = None

    def compute(self) -> list[Any]:
        waiting = [self]  # no recursion: chains may be long
        while waiting:
            last = waiting[-1]
            behind = [
                v.source for v in last.operands if isinstance(v.source, _Operation)
            ]
            behind = [o for o in behind if o.results is None]
            waiting += behind
            if not behind:
                last._bind()
                waiting.pop()
        return cast(list[Any], self.results)

    def _bind(self) -> None:
        if self.results is None:
            primitive = self.eqn.primitive
            operands = [v.get() for v in self.operands]
            results = primitive.bind(*operands, **self.eqn.params)
            self.results = results if primitive.multiple_results else [results]


@dataclass(eq=False)
class _Value:
    """A constant: a result of an operation, or `source` itself."""

    source: Any
    j: int | None = None

    def get(self) -> Any:
        return self.source if self.j is None else self.source.compute()[self.j]


@dataclass
class _At:
    """An operation, and which of its results is asked about."""

    eqn: Any
    j: int
    ins: Sequence[Dep | None]
    given: "Sequence[_Value | None]"

    @property
    def params(self) -> dict[str, Any]:
        return self.eqn.params

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(self.eqn.outvars[self.j].aval.shape)

    def shape(self, i: int) -> tuple[int, ...]:
        return tuple(self.eqn.invars[i].aval.shape)

    def constant(self, i: int) -> np.ndarray | None:
        """The value of an operand that does not depend on the input, if known."""
        value = self.given[i]
        size = math.prod(self.shape(i))
        return None if value is None or size > _MOST_KNOWN else np.asarray(value.get())


Rule = Callable[[Field, _At, int], Field | None]
"""What the result sees by operand `i`; None where that cannot be told."""

_UNSEEN = Field(None, np.full((4, 1), _FAR), None)
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def record(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return record


_CONSTANTS = frozenset(
    "iota random_bits random_clone random_fold_in random_seed random_split "
    "random_unwrap random_wrap threefry2x32".split()
)
"""Operations without a rule that give the same wherever they run."""

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e "
    "bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy "
    "copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p "
    "logistic lt lt_to max mesh_cast min mul mulhi name ne neg nextafter not or "
    "polygamma population_count pow real reduce_precision "
    "regularized_incomplete_beta rem reshard round rsqrt select_n sharding_constraint "
    "shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square "
    "stop_gradient sub tan tanh xor zeta".split()
)
"""Operations whose results see one element of each operand."""


def _unknown(f, at, i):
    return None


@_rule(*ELEMENTWISE, "pool_divide")
def _same(f, at, i):
    """Element by element; sizes of 1 are repeated."""
    shape, out = at.shape(i), at.out
    if len(shape) != len(out):
        return None
    if any(n not in (1, m) for n, m in zip(shape, out, strict=True)):
        return None
    return f if shape[f.axis] == out[f.axis] else f.everywhere


def _moved(f: Field, axis: int) -> Field:
    return Field(axis, f.spans, f.jump)


@_rule("device_put", "optimization_barrier")
def _barrier(f, at, i):
    return f if i == at.j else _UNSEEN


@_rule("transpose")
def _transpose(f, at, i):
    return _moved(f, at.params["permutation"].index(f.axis))


@_rule("broadcast_in_dim")
def _broadcast(f, at, i):
    axis = at.params["broadcast_dimensions"][f.axis]
    return _moved(f, axis) if at.shape(i)[f.axis] == at.out[axis] else f.everywhere


@_rule("squeeze")
def _squeeze(f, at, i):
    return _without(f, at.params["dimensions"])


@_rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")
@_rule("reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
def _reduce(f, at, i):
    return _without(f, at.params["axes"])


def _without(f, axes):
    if f.axis in axes:
        return f.everywhere
    return _moved(f, f.axis - sum(a < f.axis for a in axes))


@_rule("reshape")
def _reshape(f, at, i):
    old, new = at.shape(i), at.out
    (first, last), (start, end) = next(
        group for group in _groups(old, new) if group[0][0] <= f.axis < group[0][1]
    )
    others = {g.axis for g in at.ins[i].fields} - {f.axis}
    axes = [1] * (last - first)
    axes[f.axis - first] = -1
    grid = np.broadcast_to(f.spans.reshape(4, *axes), (4, *old[first:last]))
    axis, spans = _tightest(grid.reshape(4, *new[start:end]))
    if axis is None:
        return f.everywhere
    axis += start
    # A factor that belongs to no other axis of the input is an enlargement.
    alone = not others & set(range(first, last))
    jump = f.jump and alone and f.jump * Fraction(old[f.axis], new[axis])
    return Field(axis, spans, jump or None)


def _groups(old, new) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The runs of axes of two shapes that have as many elements as each other."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, start, a, b = i, j, 1, 1
        while True:
            if a <= b and i < len(old):
                a, i = a * old[i], i + 1
            elif j < len(new):
                b, j = b * new[j], j + 1
            if a == b and (j > start or j == len(new)):
                break
        yield (first, i), (start, j)


def _tightest(grid: np.ndarray) -> tuple[int | None, np.ndarray]:
    """The axis of [4, ...] along which least is lost by a minimum over the others."""
    best = None, grid.reshape(4, -1).min(1, keepdims=True)
    for axis in range(grid.ndim - 1):
        others = tuple(1 + a for a in range(grid.ndim - 1) if a != axis)
        spans = grid.min(others)
        if spans.shape[1] > 1 or grid[0].size == 1:
            if best[0] is None or spans.mean(1).sum() > best[1].mean(1).sum():
                best = axis, spans
    if best[0] is not None and grid[0].size > 1 and not np.ptp(best[1], 1).any():
        return None, best[1][:, :1]  # all see the same
    return best


@_rule("slice")
def _slice(f, at, i):
    step = (at.params["strides"] or (1,) * len(at.out))[f.axis]
    positions = at.params["start_indices"][f.axis] + np.arange(at.out[f.axis]) * step
    return f.read(f.axis, positions[:, None], step)


@_rule("dynamic_slice")
def _dynamic_slice(f, at, i):
    if i > 0 or at.out[f.axis] == at.shape(0)[f.axis]:
        return f.everywhere if i else f
    start = at.constant(1 + f.axis)
    if start is None:
        return None
    start = min(max(int(start), 0), at.shape(0)[f.axis] - at.out[f.axis])
    return f.read(f.axis, start + np.arange(at.out[f.axis])[:, None], 1)


@_rule("dynamic_update_slice")
def _dynamic_update_slice(f, at, i):
    if i != 1:  # what is overwritten is seen all the same, for all that is said here
        return f if i == 0 else f.everywhere
    start = at.constant(2 + f.axis)
    if start is None:
        return None
    start = min(max(int(start), 0), at.out[f.axis] - at.shape(1)[f.axis])
    return _among(f, f.axis, start, at)


@_rule("scatter", "scatter-add", "scatter-mul", "scatter-max", "scatter-min")
@_rule("scatter_add", "scatter_mul", "scatter_max", "scatter_min", "scatter_sub")
def _scatter(f, at, i):
    return f if i == 0 else None


@_rule("pad")
def _pad(f, at, i):
    if i:
        return f.everywhere
    low, _, inner = at.params["padding_config"][f.axis]
    positions, base = np.arange(at.out[f.axis])[:, None] - low, inner + 1
    holes = positions % base != 0
    return f.read(f.axis, positions // base, Fraction(1, base), holes)


@_rule("concatenate")
def _concatenate(f, at, i):
    axis = at.params["dimension"]
    if f.axis != axis:
        return f
    return _among(f, axis, sum(at.shape(k)[axis] for k in range(i)), at)


def _among(f, axis, offset, at):
    """Put into a larger array, from `offset` on."""
    positions = np.arange(at.out[axis])[:, None] - offset
    holes = (positions < 0) | (positions >= f.spans.shape[1])
    return f.read(axis, positions, 1, holes)


@_rule("stack")
def _stack(f, at, i):
    return _moved(f, f.axis + (f.axis >= at.params["axis"] % len(at.out)))


@_rule("unstack")
def _unstack(f, at, i):
    axis = at.params["axis"] % len(at.shape(0))
    if f.axis == axis:
        return f.read(axis, np.array([[at.j]]), 1).everywhere
    return _without(f, (axis,))


@_rule("tile")
def _tile(f, at, i):
    size = at.shape(0)[f.axis]
    if at.out[f.axis] == size:
        return f
    positions = np.arange(at.out[f.axis])[:, None] % size
    return f.read(f.axis, positions, None)


@_rule("split")
def _split(f, at, i):
    if f.axis != at.params["axis"]:
        return f
    offset = sum(at.params["sizes"][: at.j])
    return f.read(f.axis, offset + np.arange(at.out[f.axis])[:, None], 1)


@_rule("rev")
def _rev(f, at, i):
    if f.axis not in at.params["dimensions"]:
        return f
    return f.read(f.axis, np.arange(at.out[f.axis])[::-1, None], -1)


@_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(f, at, i):
    if f.axis != at.params["axis"]:
        return f
    way = slice(None, None, -1 if at.params["reverse"] else 1)
    spans = np.minimum.accumulate(f.spans[:, way], 1)[:, way]
    return Field(f.axis, spans, f.jump)


@_rule("sort")
def _sort(f, at, i):
    return f.everywhere if f.axis == at.params["dimension"] else f


@_rule("top_k")
def _top_k(f, at, i):
    axis = at.params.get("axis", -1) % len(at.out)
    return f.everywhere if f.axis == axis else f


@_rule("fft")
def _fft(f, at, i):
    plain = len(at.out) - len(at.params["fft_lengths"])
    return f if f.axis < plain else f.everywhere


@_rule("dot_general")
def _dot_general(f, at, i):
    contracting, batch = at.params["dimension_numbers"]
    free = [
        [a for a in range(len(at.shape(k))) if a not in (*contracting[k], *batch[k])]
        for k in (0, 1)
    ]
    offset = len(batch[0]) + (len(free[0]) if i else 0)
    if f.axis in batch[i]:
        return _moved(f, tuple(batch[i]).index(f.axis))
    if f.axis in free[i]:
        return _moved(f, offset + free[i].index(f.axis))
    other = 1 - i
    matrix = at.constant(other) if len(at.shape(other)) == 2 else None
    if matrix is None or tuple(contracting[i]) != (f.axis,) or batch[0]:
        return f.everywhere
    # A known matrix, as for resizing: a window wherever it is not 0.
    used = matrix if contracting[other][0] else matrix.T
    positions = np.broadcast_to(np.arange(used.shape[1]), used.shape)
    axis = len(free[0]) if other else 0
    return f.read(axis, positions, Fraction(*used.shape[::-1]), used == 0)


@_rule("gather")
def _gather(f, at, i):
    if i:
        return None
    numbers, sizes = at.params["dimension_numbers"], at.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [a for a in range(len(sizes)) if a not in gone]
    batch = [a for a in range(len(at.out)) if a not in numbers.offset_dims]
    if f.axis in numbers.operand_batching_dims:
        which = numbers.operand_batching_dims.index(f.axis)
        return _moved(f, batch[numbers.start_indices_batching_dims[which]])
    if sizes[f.axis] == at.shape(0)[f.axis]:
        if f.axis in gone:
            return f.everywhere
        return _moved(f, numbers.offset_dims[kept.index(f.axis)])
    index = at.constant(1)
    if index is None:
        return None
    start = np.zeros(index.shape[:-1], np.int64)  # of an axis that no index is for
    if f.axis in numbers.start_index_map:
        start = start + index[..., numbers.start_index_map.index(f.axis)]
    start = np.clip(start, 0, at.shape(0)[f.axis] - sizes[f.axis])
    if f.axis not in gone:
        if np.ptp(start):
            return None
        positions = start.flat[0] + np.arange(sizes[f.axis])[:, None]
        return f.read(numbers.offset_dims[kept.index(f.axis)], positions, 1)
    axis, _ = _tightest(f.spans[:, start])
    if axis is None:
        return (
            f.everywhere
            if start.size > 1
            else f.read(0, start.reshape(1, 1), 1).everywhere
        )
    positions = np.moveaxis(start, axis, 0).reshape(start.shape[axis], -1)
    steps = set(np.diff(positions[:, 0]).tolist())
    even = steps.pop() if len(steps) == 1 else None
    step = Fraction(at.shape(0)[f.axis], len(positions)) if even is None else even
    return f.read(batch[axis], positions, step)


@_rule("conv_general_dilated")
def _conv(f, at, i):
    if i:
        return f.everywhere
    axes, base, place = _conv_axes(at.eqn)
    numbers = at.params["dimension_numbers"]
    if f.axis == numbers.lhs_spec[0] and at.params["batch_group_count"] == 1:
        return _moved(f, numbers.out_spec[0])
    if f.axis in numbers.lhs_spec[:2]:
        return f.everywhere
    k = numbers.lhs_spec[2:].index(f.axis)
    return f.window(axes[k], place[k], base[k])


def _conv_axes(eqn) -> tuple[list[Axis], list[int], list[int]]:
    """The windows of a convolution, zeros between elements, and axes of the result."""
    p, (x, kernel), out = eqn.params, eqn.invars[:2], eqn.outvars[0]
    numbers = p["dimension_numbers"]
    place = [*numbers.out_spec[2:]]
    base = [*p["lhs_dilation"]]
    axes = []
    for k, axis in enumerate(numbers.lhs_spec[2:]):
        low, high = p["padding"][k]
        size = (x.aval.shape[axis] - 1) * base[k] + 1
        window = kernel.aval.shape[numbers.rhs_spec[2 + k]]
        stride, dilation = p["window_strides"][k], p["rhs_dilation"][k]
        o = out.aval.shape[place[k]]
        at = axis - len(x.aval.shape)
        axes.append(Axis(at, size, window, stride, dilation, low, high, high, o))
    return axes, base, place


@_rule("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
def _reduce_window(f, at, i):
    axes, base = _window_axes(at.eqn, all_of_them=True)
    if i >= len(at.eqn.outvars):  # where the windows start from
        return f.everywhere
    return f.window(axes[f.axis], f.axis, base[f.axis])


def _window_axes(eqn, all_of_them: bool = False) -> tuple[list[Axis], list[int]]:
    """The windows of `lax.reduce_window`, and zeros between elements."""
    p, shape, out = eqn.params, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    ndim = len(shape)
    base = [*(p.get("base_dilation") or (1,) * ndim)]
    dilation = p.get("window_dilation") or (1,) * ndim
    axes = []
    for k, (low, high) in enumerate(p["padding"]):
        size = (shape[k] - 1) * base[k] + 1
        window, stride = p["window_dimensions"][k], p["window_strides"][k]
        sizes = (size, window, stride, dilation[k], low, high, high, out[k])
        axes.append(Axis(k - ndim, *sizes))
    if all_of_them:
        return axes, base
    moves = [k for k, a in enumerate(axes) if (a.window, a.stride) != (1, 1)]
    return [axes[k] for k in moves], [base[k] for k in moves]


@_rule("pool_read")
def _pool_read(f, at, i):
    return _stage(f, at) if i == 0 else _same(f, at, i)


@_rule("pool_read_weighted")
def _pool_read_weighted(f, at, i):
    # x, then of the weights what is an element's and what is a window's.
    return _stage(f, at) if i in (0, 1, 4) else _same(f, at, i)


@_rule("pool_mean")
def _pool_mean(f, at, i):
    return _windows(f, at, at.params["stage"][0])


def _stage(f, at):
    return _windows(f, at, at.params["stage"])


def _windows(f, at, geometry):
    by_axis = {len(at.out) + a.axis: a for a in geometry.axes}
    return f.window(by_axis[f.axis], f.axis) if f.axis in by_axis else f
