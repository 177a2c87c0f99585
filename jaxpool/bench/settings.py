"""What a benchmark was asked to do, checked before anything runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxpool._core.window import fail
from jaxpool.bench.contestants import PEERS
from jaxpool.bench.models import MODELS
from jaxpool.bench.ops import SUITE, Trial, trials
from jaxpool.bench.problem import DTYPES, LAYOUTS
from jaxpool.bench.shapes import OPS, SUITES, Case
from jaxpool.compare.methods import choose
from jaxpool.compare.settings import UserError

__all__ = ["Settings", "check"]


def check(holds: bool, argument: str, rule: str, value: object) -> None:
    """Raises `UserError` unless `holds`."""
    if not holds:
        raise fail("bench", argument, rule, value, UserError)


def _check_known(argument: str, names: Sequence[str], known: Iterable[str]) -> None:
    check(len(names) > 0, argument, "must name at least one", names)
    for name in names:
        rule = f"must be one of {', '.join(known)}"
        check(name in known, argument, rule, name)


@dataclass(frozen=True)
class Settings:
    """What one benchmark runs.

    Attributes:
      suite: keys of `jaxpool.bench.shapes.SUITES`; or `ops` alone.
      ops: max, avg or all; for the suite ops methods and families of `compare`.
      dtype: keys of `jaxpool.bench.problem.DTYPES`.
      peers: keys of `jaxpool.bench.contestants.PEERS`.
      layout: channels_last or channels_first.
      rounds: rounds of timing, at most.
      quick: whether to keep a third of each suite, of small inputs.
      model: a key of `jaxpool.bench.models.MODELS` or `all`, to time training steps;
        None to time pools.
    """

    suite: tuple[str, ...]
    ops: tuple[str, ...]
    dtype: tuple[str, ...]
    peers: tuple[str, ...]
    layout: str
    rounds: int
    quick: bool
    model: str | None

    def __post_init__(self):
        """Raises `UserError` for a value that breaks a rule."""
        _check_known("suite", self.suite, [*SUITES, SUITE])
        alone = SUITE not in self.suite or self.of_ops
        check(alone, "suite", f"must not name others beside {SUITE}", self.suite)
        if not self.of_ops:
            _check_known("ops", self.ops, [*OPS, "all"])
        _check_known("dtype", self.dtype, DTYPES)
        _check_known("peers", self.peers, PEERS)
        _check_known("layout", [self.layout], LAYOUTS)
        check(self.rounds >= 1, "rounds", "must be at least 1", self.rounds)
        if self.model is not None:
            _check_known("model", [self.model], [*MODELS, "all"])
            only = self.dtype == ("f32",)
            check(only, "dtype", "must be f32 together with `model`", self.dtype)
            check(not self.of_ops, "suite", "must not be ops with `model`", self.suite)
        if self.of_ops:
            last = self.layout == "channels_last"
            rule = f"must be channels_last in the suite {SUITE}"
            check(last, "layout", rule, self.layout)
        some = self.trials() if self.of_ops else self.cases()
        check(len(some) > 0, "ops", "must leave some case of the suite", self.ops)

    @property
    def of_ops(self) -> bool:
        """Whether every op is timed beside a mean, and no framework."""
        return set(self.suite) == {SUITE}

    def trials(self) -> list[Trial]:
        """Returns the ops of the suite `ops` that are asked for, in all their forms."""
        return trials(choose(self.ops, "ops", check), self.quick)

    def cases(self) -> list[tuple[str, Case]]:
        """Returns the suite's name and the case, for each case that is asked for."""
        return [
            (suite, case.quickly() if self.quick else case)
            for suite in dict.fromkeys(self.suite)
            for case in SUITES[suite]
            if {case.op, "all"} & {*self.ops}
            and (case.quick is not None or not self.quick)
        ]
