"""Hostile calls of everything public, made in a process that may die of them.

    python tests/trust/fuzz.py --calls 20                    of each public name
    python tests/trust/fuzz.py --only max_pool --first 17    one of them, again

A call is an honest one of `contract.py` with up to three arguments replaced, drawn by
(seed, name, number) alone. It has to end in

  a value   with the shape and the numbers of the NumPy oracle wherever that has an
            answer, without NaN from finite input, and not empty unless the input is;
  an error  ValueError or TypeError, naming the function and an argument of it;

within `SECONDS` of the library's own work and `MEMORY` bytes. What takes longer than
`HANG`, or ends the process, is a finding too, and the next process goes on behind it.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HANG = 60.0  # seconds of the wall, compilation and all, on a shared machine
START = 300.0  # to import what is called


WORK = (sys.executable, str(HERE / "fuzz_worker.py"))


def fuzz(calls, seed=0, only=(), first=0, hang=HANG):
    """Yields `{name, number, kind, ...}` for `calls` calls of each public name."""
    names = only or public_names()
    todo = [[name, first + k] for name in names for k in range(calls)]
    while todo:
        done = 0
        # Not all at once: compiled programs pile up in a process.
        for outcome in _one_process([*WORK, str(seed)], todo[:3000], hang):
            done += 1
            yield outcome
        todo = todo[done:]


def public_names():
    """Every public function, and every module of both Flax APIs."""
    return subprocess.check_output(WORK, env=_environment(), text=True).split()


def _environment():
    path = [str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**os.environ, **quick, "PYTHONPATH": os.pathsep.join(path)}


def _one_process(command, calls, hang):
    """Outcomes of calls, up to the first that ends the process or does not end."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(json.dumps(calls).encode())
        given.seek(0)
        streams = dict(stdin=given, stdout=subprocess.PIPE, stderr=errors)
        worker = subprocess.Popen(command, env=_environment(), **streams)
        try:
            lines = _lines(worker.stdout.fileno(), hang)
            for name, number in calls:
                announced = next(lines, None)
                answer = announced and next(lines, None)
                if answer:
                    yield {"name": name, "number": number, **announced, **answer}
                    continue
                ended = worker.poll()
                try:
                    ended = worker.wait(2)
                    errors.seek(0)
                    last = errors.read()[-2000:].decode(errors="replace")
                    why = f"the process ended with {ended}: {last}"
                except subprocess.TimeoutExpired:
                    why = f"no answer within {hang} s"
                if announced is None:
                    raise RuntimeError(f"no call was announced: {why}")
                call = {"name": name, "number": number, **announced}
                yield {**call, "kind": "finding", "why": why}
                return
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def _lines(pipe, hang):
    """JSON from a pipe, a line each, until it closes or is silent for too long."""
    rest, limit = b"", START
    while select.select([pipe], [], [], limit)[0]:
        some = os.read(pipe, 2**16)
        if not some:
            return
        *whole, rest = (rest + some).split(b"\n")
        yield from map(json.loads, whole)
        limit = hang


def main():
    """Prints findings, and how many calls ended how."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="print every call")
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    counts = {}
    for outcome in fuzz(given.calls, given.seed, given.only, given.first):
        counts[outcome["kind"]] = counts.get(outcome["kind"], 0) + 1
        if given.log:
            with given.log.open("a") as file:
                file.write(json.dumps(outcome) + "\n")
        if given.all or outcome["kind"] == "finding":
            print(json.dumps(outcome), flush=True)
    print(counts)


if __name__ == "__main__":
    main()
