"""Hostile calls of everything public end in a right value or an error that helps."""

import collections

import fuzz
import pytest

# Of each public name; 50,000 in all, in so many tests. Without --full, of one name in
# `EVERY`.
CALLS, TESTS = 172, 8
FEW, EVERY = 2, 5


def ask(calls, names, record):
    """Makes the calls, in halves that a table can be made of, and records them."""
    counts, findings = collections.defaultdict(collections.Counter), []
    for outcome in fuzz.fuzz(calls, only=names):
        count = counts[outcome["name"]]
        count[outcome["kind"]] += 1
        count["compared"] += outcome.get("compared", False)
        count["calls"] += 1
        if outcome["kind"] == "finding":
            findings.append(outcome)
            record(**outcome)
    for name, count in counts.items():
        record(name=name, kind="counts", **count)
    total = sum(counts.values(), collections.Counter())
    print(dict(total))
    assert set(counts) == set(names)
    assert {count["calls"] for count in counts.values()} == {calls}
    assert min(total["value"], total["ValueError"], total["TypeError"]) > 0
    assert total["compared"] > total["value"] / 3
    assert not findings, f"{len(findings)} findings, of which the first: {findings[0]}"


def test_some_hostile_calls(record):
    ask(FEW, fuzz.public_names()[::EVERY], record)


@pytest.mark.full
@pytest.mark.parametrize("first", range(TESTS))
def test_50_000_hostile_calls(first, record):
    ask(CALLS, fuzz.public_names()[first::TESTS], record)


def test_what_ends_a_process_is_found_and_the_rest_goes_on():
    """The fuzzer sees what it is for: a death, a hang, a wrong value and poor words."""
    names = ["sabotage.dies", "sabotage.hangs", "sabotage.lies", "sabotage.grumbles"]
    outcomes = list(fuzz.fuzz(1, only=[*names, "output_shape"], hang=3.0))
    assert [o["name"] for o in outcomes] == [*names, "output_shape"]
    assert [o["kind"] == "finding" for o in outcomes] == [True] * 4 + [False]
    reasons = ["ended with -6", "no answer within", "shape (1,), not", "in other words"]
    for outcome, reason in zip(outcomes, reasons, strict=False):
        assert reason in outcome["why"]
