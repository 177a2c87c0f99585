"""The table docs/deploy_table.md: what each target gives for every op.

`python tests/deploy_table.py` makes it anew, or with names of ops their rows alone;
`test_deploy.py` asks whether it holds. A row is one typical call of an op, exported to
every target, run there and compared with JAX.
"""

import importlib.metadata
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import contract

from jaxpool.deploy import DeployError, to_litert, to_onnx, to_stablehlo
from jaxpool.deploy.onnx_pools import NODES

TABLE = Path(__file__).parent.parent / "docs" / "deploy_table.md"
CASES = {case.op.name: case for case in contract.typical()}
# Nodes that are pools, and for pools of the whole extent reductions.
POOLS = {*NODES, "AVERAGE_POOL_2D", "MAX_POOL_2D"}
REDUCTIONS = {
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"),
    *("MEAN", "REDUCE_MAX", "REDUCE_MIN", "SUM"),
}
# What only arranges elements, pads, or changes signs.
BESIDE = {
    *("Cast", "Identity", "Neg", "Pad", "Reshape", "Shape", "Squeeze", "Transpose"),
    *("Unsqueeze", "Constant", "Concat", "Gather", "Slice"),
    *("PAD", "PADV2", "RESHAPE", "TRANSPOSE", "QUANTIZE", "DEQUANTIZE", "CAST", "SUB"),
    "BITCAST",
}
# What halves what a pool is given and doubles what it gives, for the sake of -inf.
TWICE = {"Mul": "MaxPool", "MUL": "MAX_POOL_2D"}


def cells(case, targets=None):
    """What each target gives for a case, in words."""
    found = []
    for target in targets or WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                text = WRITERS[target](case, Path(folder, "model"))
            except DeployError as error:
                text = f"not possible: {_why(str(error))}"
            written = len(list(Path(folder).iterdir()))
        assert written == (not text.startswith("not possible"))
        found.append(text)
    return found


def _stablehlo(case, out):
    x = np.asarray(case.input())
    gradient = np.issubdtype(x.dtype, np.floating)
    also = "" if gradient else " (integers: no gradient)"
    try:
        to_stablehlo(case.function(), x, out=out, gradient=gradient)
        return f"any batch size{also}"
    except DeployError as error:
        if "a batch of any size" not in str(error):
            raise
    to_stablehlo(case.function(), x, out=out, gradient=gradient, dynamic_batch=False)
    return f"one batch size{also}"


def _onnx(case, out):
    x = np.asarray(case.input())
    try:
        return _words(case, to_onnx(case.function(), x, out=out).nodes)
    except DeployError as error:
        if "a batch of any size" not in str(error):
            raise
    made = to_onnx(case.function(), x, out=out, dynamic_batch=False)
    return f"{_words(case, made.nodes)}; one batch size"


def _litert(case, out):
    return _words(case, to_litert(case.function(), case.input(), out=out).nodes)


def _int8(case, out):
    x, z = case.input(), case.input(seed=1)
    given = {"dtype": "int8", "calibration": [x, z]}
    return _words(case, to_litert(case.function(), x, out=out, **given).nodes)


def _words(case, nodes):
    floats = sorted(n.split()[0] for n in nodes if n.endswith(" in float32"))
    whole = case.op.kind == "global" or case.op.family == "pyramid"
    known = POOLS | (REDUCTIONS if whole else set())
    native = ", ".join(f"`{n}`" for n in sorted(known & nodes.keys()))
    twice = {m for m, pool in TWICE.items() if nodes.get(m) == 2 * nodes.get(pool, 0)}
    if native and nodes.keys() <= known | BESIDE | twice:
        text = f"**native**: {native}"
    else:
        text = f"composed, with {native}" if native else "composed"
    if floats:
        text += f"; float32: {', '.join(f'`{n}`' for n in floats)}"
    return text


def _why(error):
    if "disagrees with JAX" in error:
        if "int8" in error or "LiteRT" in error:
            exact = "where nothing is" in error
            what = "indices or integers change" if exact else "differs by more than 0.1"
            return f"8 bits are too few ({what})"
        return "differs from JAX"
    error = (error.partition(": ")[2] or error).partition("Node number")[0]
    return " ".join(error.split()).rstrip(".").replace("|", "\\|")[:160]


WRITERS = {
    "StableHLO": _stablehlo,
    "ONNX": _onnx,
    "LiteRT float32": _litert,
    "LiteRT int8": _int8,
}


def line(name, found):
    """A row of the table."""
    return f"| `{name}` | {' | '.join(found)} |"


def rows():
    """The committed rows, by op."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return {t.split("`")[1]: t for t in lines if t.startswith("| `")}


def page(lines):
    """The page with these rows, by op."""
    names = ("jax", "onnxruntime", "ai-edge-litert", "litert-converter")
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    shown = [lines[name] for name in CASES]
    text = f"""\
# What each target gives

<!-- Made by `python tests/deploy_table.py`, and held to what is found by the tests. -->
Each row is one typical call of an op: 2-D, channels last, windows that overlap and are
padded where it has windows. It was exported to each target, run there and compared with
JAX ({versions}).

**native** names the nodes that compute it; beside them stand at most nodes that pad,
arrange elements, change signs, or halve and double them for the sake of -inf.
*composed* is made of the target's arithmetic, and right, but the runtime sees no pool.
In int8, what stays in float32 is named; an op that 8 bits are too few for can be left
in float32, or trained with quantization in mind. [Deployment](deployment.md) says how.

| op | {" | ".join(WRITERS)} |
|---|{"---|" * len(WRITERS)}
"""
    return text + "\n".join(shown) + "\n"


def main(names):
    """Writes the table, or some of its rows, as far as it comes."""
    lines = rows()
    for name in names or CASES:
        lines[name] = line(name, cells(CASES[name]))
        print(lines[name], flush=True)
        if lines.keys() >= CASES.keys():
            TABLE.write_text(page(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
