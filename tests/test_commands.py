"""What each command says of each kind of thing that a user may hand it."""

import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxpool
from jaxpool.__main__ import main
from jaxpool._core import user_code
from jaxpool._ops import average, extremum

MODEL = """
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxpool


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, (3, 3))(x)


class LinenOfWidth(nn.Module):
    width: int

    def __call__(self, x):
        return x * self.width


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 2, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.conv(x)


class NetOfWidth(nnx.Module):
    def __init__(self, width, rngs):
        self.conv = nnx.Conv(2, width, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.conv(x)


class BreaksInCall(nnx.Module):
    def __call__(self, x):
        raise KeyError("weights")  # in call


class BreaksInInit(nnx.Module):
    def __init__(self):
        raise KeyError("weights")  # in init


class NoCall(nnx.Module):
    pass


class LinenBreaks(nn.Module):
    def __call__(self, x):
        raise KeyError("weights")  # in linen


class NotFlax:
    def __call__(self, x):
        return x + 1


def pool(x):
    return jaxpool.max_pool(x, (2, 2))


def two(x, y):
    return x + y


def none():
    return None


def breaks(x):
    raise RuntimeError("boom")  # in function


def exits(x):
    sys.exit(3)  # in exits


def maker_breaks():
    raise RuntimeError("boom")  # in maker


def maker_exits():
    sys.exit("no weights")  # in exit


def recurses(x):
    return recurses(x)  # for ever


def of_text(x):
    return "text"


def of_object(x):
    return x, NotFlax()


def several(*arrays):
    return arrays[0] + 1


def of_nothing(x):
    return None


def by_value(x):
    return x if x.sum() > 0 else -x  # by value


def misfits(x):
    return x @ jnp.ones((99, 1), x.dtype)  # misfits


def misuses(x):
    return jaxpool.max_pool(x, (99, 99))  # misuses


def misses(x):
    return jaxpool.max_pool(x)  # misses


def callback(x):
    def host(x):
        raise ValueError("on the host")

    return jax.pure_callback(host, x, x)


linen = Linen()
bound = Linen().bind({"params": {"Conv_0": {
    "kernel": jnp.ones((3, 3, 2, 2)), "bias": jnp.zeros(2)}}})
linen_breaks = LinenBreaks()
net = Net(nnx.Rngs(0))
breaks_in_call = BreaksInCall()
no_call = NoCall()
not_flax = NotFlax()
applied = functools.partial(Linen().apply, bound.variables)
curried = functools.partial(NetOfWidth, 2, rngs=nnx.Rngs(0))
ufunc = jnp.sin
number = 3
text = "text"
array = np.ones(3)
mapping = {"a": 1}
"""

FILES = {
    "model.py": MODEL,
    "raises.py": "def f(x):\n    return x\n\nraise KeyError('late')\n",
    "syntax.py": "def f(x)\n    return x\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "imports.py": "import no_such_package\n",
    "helped.py": "import helper\nf = helper.f\n",
    "helper.py": "def f(x):\n    raise KeyError('helped')\n",
    "types.py": "def f(x):\n    return x + 1\n",
    "text.txt": "f = abs\n",
}


def line_of(mark, file="model.py"):
    """FILE:LINE of the line that ends with a mark."""
    lines = FILES[file].splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"# {mark}"))
    return f"{file}:{number}"


IN_CALL, IN_INIT = line_of("in call"), line_of("in init")
RUNS = (0, "")
# What `deploy` and `shape` do with each: the exit code, and what is said. A model that
# breaks for a shape is what `shape` is about: 1.
OBJECTS = {
    "model.py:Linen": ((2, "must hold its weights"), RUNS),
    "model.py:linen": ((2, "lambda x: module.apply(variables, x)"), RUNS),
    "model.py:bound": (RUNS, RUNS),
    "model.py:LinenOfWidth": (
        (2, "must name a function of arrays"),
        (2, "of a class that takes width"),
    ),
    "model.py:linen_breaks": (
        (2, "must hold its weights"),
        (1, f"KeyError: 'weights' ({line_of('in linen')})"),
    ),
    "model.py:Net": ((2, "must name a function of arrays"), RUNS),
    "model.py:net": (RUNS, RUNS),
    "model.py:NetOfWidth": (
        (2, "must name a function of arrays"),
        (2, "of a class that takes width"),
    ),
    "model.py:BreaksInCall": ((2, f"KeyError: 'weights' ({IN_CALL})"), (1, IN_CALL)),
    "model.py:breaks_in_call": ((2, f"'weights' ({IN_CALL})"), (1, IN_CALL)),
    "model.py:BreaksInInit": (
        (2, f"model.py:BreaksInInit fails: KeyError: 'weights' ({IN_INIT})"),
        (2, f"model.py:BreaksInInit fails: KeyError: 'weights' ({IN_INIT})"),
    ),
    "model.py:NoCall": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:no_call": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:NotFlax": (RUNS, RUNS),
    "model.py:not_flax": (RUNS, RUNS),
    "model.py:pool": (RUNS, RUNS),
    "model.py:several": (RUNS, RUNS),
    "model.py:applied": (RUNS, RUNS),
    "model.py:curried": (RUNS, RUNS),
    "model.py:ufunc": (RUNS, RUNS),
    "model.py:two": ((2, "missing 1 required"), (2, "missing a required argument")),
    "model.py:none": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:breaks": (
        (2, f"RuntimeError: boom ({line_of('in function')})"),
        (1, f"RuntimeError: boom ({line_of('in function')})"),
    ),
    "model.py:exits": ((2, "fails: SystemExit: 3 (model.py:"), (2, "SystemExit: 3")),
    "model.py:maker_breaks": (
        (2, f"boom ({line_of('in maker')})"),
        (2, f"model.py:maker_breaks fails: RuntimeError: boom ({line_of('in maker')})"),
    ),
    "model.py:maker_exits": (
        (2, "SystemExit: no weights"),
        (2, "no weights (model.py"),
    ),
    "model.py:recurses": (
        (2, f"({line_of('for ever')})"),
        (1, f"({line_of('for ever')})"),
    ),
    "model.py:of_text": ((2, "of_text fails: TypeError"), (1, "TypeError")),
    "model.py:of_object": ((2, "of_object fails: TypeError"), (1, "TypeError")),
    "model.py:of_nothing": ((2, "must return at least one array"), RUNS),
    "model.py:by_value": (
        (2, f"({line_of('by value')})"),
        (1, f"({line_of('by value')})"),
    ),
    "model.py:misfits": ((2, line_of("misfits")), (1, f"({line_of('misfits')})")),
    "model.py:misuses": (
        (2, f"`max_pool`: `window_shape` leaves nothing|({line_of('misuses')})"),
        (1, "window 99x99 does not fit"),
    ),
    "model.py:misses": ((2, f"({line_of('misses')})"), (1, "`max_pool`: missing a")),
    "model.py:callback": ((2, ""), (0, "~ at most: pure_callback")),
    "model.py:number": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:text": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:array": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:mapping": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:np": ((2, "must name a function"), (2, "must be a module of Flax")),
    "model.py:absent": ((2, "must name a function"), (2, "must name something in")),
    "model.py:": ((2, "must be FILE.py:NAME"), (2, "or FILE.py:NAME")),
    "model.py": ((2, "must be FILE.py:NAME"), (2, "or FILE.py:NAME")),
    "absent.py:f": ((2, "of a file that exists"), (2, "must be a file that exists")),
    "folder.py:f": ((2, "of a file that exists"), (2, "must be a file that exists")),
    "text.txt:f": ((2, "must be FILE.py:NAME"), (2, "must be a file ending in .py")),
    "no.such.module:f": ((2, "must be FILE.py:NAME"), (2, "that can be imported")),
    ".model:f": ((2, "must be FILE.py:NAME"), (2, "that can be imported")),
    "raises.py:f": ((2, "'late' (raises.py:4)"), (2, "'late' (raises.py:4)")),
    "raises:f": ((2, "must be FILE.py:NAME"), (2, "KeyError: 'late' (raises.py:4)")),
    "syntax.py:f": ((2, "SyntaxError|(syntax.py:1)"), (2, "SyntaxError|(syntax.py:1)")),
    "exits.py:f": ((2, "SystemExit: 3 (exits.py:2)"), (2, "SystemExit: 3")),
    "imports.py:f": ((2, "'no_such_package' (imports.py:1)"), (2, "'no_such_package'")),
    "helped.py:f": ((2, "'helped' (helper.py:2)"), (1, "'helped' (helper.py:2)")),
    "nul.py:f": ((2, "nul.py fails: "), (2, "nul.py fails: ")),
    "latin.py:f": ((2, "latin.py fails: "), (2, "latin.py fails: ")),
    "types.py:f": (RUNS, RUNS),
}
COMMANDS = {
    "deploy": "deploy {} --to stablehlo --input 1x6x6x2 --out out --platforms cpu",
    "shape": "shape {} 1x6x6x2",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with users' files, in which commands run as they do for users."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(user_code, "_folders", [])
    modules = {*sys.modules}
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("folder.py").mkdir()
    Path("nul.py").write_bytes(b"f = 1\0")
    Path("latin.py").write_bytes(b"f = '\xe4'")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield tmp_path
    for name in {*sys.modules} - modules:
        if name.rstrip("_") in {file.removesuffix(".py") for file in FILES}:
            del sys.modules[name]


def check_refusal(command, parts, shown):
    """One line on standard error, and nothing else."""
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"jaxpool {command}: ")
    assert len(shown.err) < 1000
    for part in parts.split("|"):
        assert part in shown.err


# Other requests that cannot be met, of all commands.
REQUESTS = {
    "deploy model.py:pool --to onnx --input 1x6": "model.py:pool fails: |(model.py:",
    "deploy model.py:pool --to onnx --input 1x6x6x2:str": "sizes and a dtype",
    "deploy model.py:pool --to onnx --input 1x6x6x2:object": "sizes and a dtype",
    "deploy model.py:pool --to stablehlo --input 1x6x6x2 --out folder.py": "folder.py",
    "deploy model.py:pool --to onnx --examples text.npz": "of arrays of numbers",
    "deploy model.py:pool --to onnx --examples one.npy": "must be an .npz file",
    "deploy model.py:pool --to onnx --examples cut.npz": "must be an .npz file",
    "deploy model.py:pool --to onnx --examples folder.py": "(Is a directory)",
    "deploy model.py:pool --to litert --dtype int4 --input 1x6x6x2": "`dtype` must be",
    "deploy model.py:pool --to stablehlo --platforms mars --input 1x6x6x2": "must",
    "shape model.py:pool 1x6x6x2 --set window=3": "`options` must be what the|window",
    "shape model.py:net 1x6x6x2 --set depth=3": "`options` must be what the|depth",
    "shape model.py:linen 1x6x6x2 --set depth=3": "`options` must be what the|depth",
    "shape model.py:callback 1x6x6x2 --memory": "the model's gradient fails: |JVP",
    "shape model.py:pool 1x6x6x2 --memory --swap min=avg": "`swap` must name pools",
    "shape model.py:pool 1x6x6x2 --axis 7": "`axis` must lie within",
    "shape model.py:pool 1x0x6x2": "must have no size of 0",
    "shape 99999999999999x3 max:2": "jaxpool shape: ",
    "shape 'no  such.py:f' 1x6x6x2": "'no  such.py'",
    "compare --data model.py": "`data` must be",
    "compare --data cut.npz": "must be a whole .npz archive",
    "compare --data one.npy": "`data` must be",
    "compare --data text.npz": "must hold x_train",
    "compare --data empty": "empty",
    "compare --config model.py": "model.py",
    "compare --config absent.toml": "absent.toml",
    "compare --data digits --out model.py": "model.py",
    "compare --distributed here": "`distributed` must be HOST:PORT,N,I",
    "bench --out model.py": "model.py",
    "bench --peers model.py": "must be one of",
    "bench --model model.py": "must be one of",
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_cannot_be_done(request_, folder, capsys):
    Path("empty").mkdir()
    np.save("one.npy", np.ones(3))
    np.savez("text.npz", x=np.array(["a", "b"]))
    Path("cut.npz").write_bytes(Path("text.npz").read_bytes()[:60])
    assert main(shlex.split(request_)) == 2
    check_refusal(request_.split()[0], REQUESTS[request_], capsys.readouterr())


@pytest.mark.parametrize(
    ("request_", "place", "error"),
    [
        ("deploy model.py:pool --to stablehlo --input 1x6x6x2", place, error)
        for place in ("jaxpool.deploy.to_stablehlo", "jaxpool.deploy.command._spec")
        for error in (KeyError("a"), ValueError("b"), TypeError("c"), AssertionError())
    ]
    + [
        ("shape model.py:pool 1x6x6x2", place, error)
        for place in (
            "jaxpool.explain.fields._Walker.program",
            "jaxpool.explain.command.explain",
        )
        for error in (IndexError("a"), ValueError("b"), TypeError("c"), RuntimeError())
    ]
    + [
        (
            "shape 6x6x2 max:2",
            "jaxpool.explain.fields._Walker.program",
            ValueError("b"),
        ),
        ("compare --data digits", "jaxpool.compare.load", ValueError("b")),
        ("compare --data digits", "jaxpool.compare.Run", KeyError("b")),
        ("bench --quick", "jaxpool.bench.bench", TypeError("c")),
    ],
)
def test_a_fault_of_jaxpool_says_so(
    request_, place, error, folder, capsys, monkeypatch
):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(place, broken)
    assert main(request_.split()) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    traceback, _, said = shown.err.partition("That is a fault of jaxpool ")
    assert traceback.startswith("Traceback")
    assert type(error).__name__ in traceback
    assert said.startswith(f"{jaxpool.__version__}, not of what you asked for. Please")
    assert said.endswith(f"\n  jaxpool {request_}\n")
    assert said.count("\n") <= 4


def test_a_fault_in_a_pool_is_not_the_models(folder, capsys, monkeypatch):
    def broken(*args, **kwargs):
        return ()[0]

    broken.__code__ = broken.__code__.replace(co_filename=average.__file__)
    monkeypatch.setattr(extremum, "window_extremum", broken)
    for command in COMMANDS.values():
        assert main(command.format("model.py:pool").split()) == 1
        assert "That is a fault of jaxpool" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "bench", "shape 6x6x2 max:2"])
def test_a_package_that_is_missing(command, folder, capsys, monkeypatch):
    name = command.split()[0]
    module = {"shape": "explain.command"}.get(name, name)
    for loaded in [m for m in sys.modules if m.startswith(f"jaxpool.{module}")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(command.split()) == 2
    check_refusal(name, "needs the package rich: pip install", capsys.readouterr())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", OBJECTS)
def test_each_kind_of_object(name, command, folder, capsys):
    code, text = OBJECTS[name][[*COMMANDS].index(command)]
    before = {path.name for path in folder.iterdir()} | {"__pycache__"}
    assert main(COMMANDS[command].format(name).split()) == code
    shown = capsys.readouterr()
    if code == 2:
        check_refusal(command, text, shown)
    else:
        assert shown.err == ""
        assert text in " ".join(shown.out.split())
    made = {"out"} if (code, command) == (0, "deploy") else set()
    assert {path.name for path in folder.iterdir()} - before == made
