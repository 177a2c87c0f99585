"""The command line: `jaxpool` or `python -m jaxpool`."""

import argparse
import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from jaxpool import __version__
from jaxpool._core.user_code import UserError, complaint
from jaxpool._core.window import fail

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: the arguments after the program's name, `sys.argv[1:]` by default.

    Returns:
      The exit code: 0, 1 for a model that breaks (`shape`) and for a fault of jaxpool,
      2 for a request that cannot be met, 130 for Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = vars(_parser().parse_args(arguments))
    handler = options.pop("handler")
    return _answered(arguments, lambda: handler(arguments, options))


def _answered(arguments: list[str], run: Callable[[], int]) -> int:
    """The exit code of a command; what keeps it from its end is said here, once."""
    name = arguments[0]
    try:
        return run()
    except KeyboardInterrupt:
        return 130
    except (Exception, SystemExit) as error:
        text = complaint(error) or _lacking(name, error)
        if isinstance(error, SystemExit) and not text:
            raise  # by argparse
        if text:
            print(f"jaxpool {name}: {text}", file=sys.stderr)
        else:
            traceback.print_exc()
            print(_FAULT.format(__version__, shlex.join(arguments)), file=sys.stderr)
        if isinstance(error, OSError) and name in _RESUMED:
            _say_how_to_go_on("Stopped", arguments)
        return 2 if text else 1


_FAULT = """\
That is a fault of jaxpool {}, not of what you asked for. Please report it, as an issue
where you have jaxpool from: all lines above, this command and what `pip freeze` prints.
  jaxpool {}"""
_RESUMED = ("compare", "bench")
_EXTRAS = {"compare": "compare", "bench": "bench", "shape": "bench"}


def _lacking(command: str, error: BaseException) -> str | None:
    """What to install, if it is that which an error is about."""
    if not isinstance(error, ModuleNotFoundError) or command not in _EXTRAS:
        return None
    package = (error.name or "jaxpool").partition(".")[0]
    extra = f"needs the package {package}: pip install 'jaxpool[{_EXTRAS[command]}]'"
    return None if package == "jaxpool" else extra


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("jaxpool", description="Pooling for JAX and Flax.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True)
    _add_compare(commands)
    _add_bench(commands)
    _add_deploy(commands)
    _add_shape(commands)
    return parser


def _add_compare(commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="train one small network with each pooling method and compare",
        description="Trains the same small CNN with each pooling method on real "
        "images; reports accuracy, time, memory and parameters of each.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(handler=partial(_compare, parser))
    option = parser.add_argument
    option(
        "--config",
        metavar="FILE.toml",
        help="a file that sets any of these options; those given here go first",
    )
    option(
        "--data",
        type=_data,
        default="mnist5k",
        metavar="NAME|FOLDER|FILE.npz,...",
        help="mnist5k, digits, hf:NAME from Hugging Face, a folder with a subfolder of "
        "images for each class, a file with x_train, y_train, x_test and y_test, or "
        "several of them",
    )
    option(
        "--methods",
        type=_names,
        default="max, avg, lp, mixed, mixed_learned, stochastic, adaptive_avg, "
        "global_avg, stride, none",
        metavar="NAME,...",
        help="methods, families of ops (family:NAME where a method has that name) or "
        "all",
    )
    option(
        "--baseline",
        metavar="METHOD",
        help="what the others are compared with; without it max, or the first method",
    )
    option("--model", default="small", help="small, medium or large")
    option("--epochs", type=int, default=4, help="passes over the training images")
    option("--batch", type=int, default=16, help="images in one step")
    option("--seeds", type=int, default=3, help="how often to train each method")
    option("--lr", type=float, default=5e-3, help="learning rate at the start")
    option(
        "--size",
        type=int,
        metavar="PIXELS",
        help="height and width that images of a folder or of Hugging Face are cut and "
        "brought to",
    )
    option(
        "--parallel-seeds",
        type=_auto,
        default="auto",
        metavar="N|auto",
        help="seeds to train side by side; auto is 1 on CPUs, and elsewhere as many as "
        "fit into memory",
    )
    option("--out", default="jaxpool-results", metavar="DIR", help="where results go")
    option(
        "--log",
        metavar="DIR",
        help="where curves of loss and accuracy go, for TensorBoard and as CSV",
    )
    option(
        "--checkpoint",
        action="store_true",
        help="save each seed's network in --out, for jaxpool.compare.restore",
    )
    option(
        "--resume",
        action="store_true",
        help="go on from the results in --out; methods and seeds may be added, and to "
        "several data sets further ones",
    )
    option(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT,N,I",
        help="one of several processes, each started with these arguments: JAX finds "
        "the others (TPU pods, Slurm, Open MPI), or this is process I of N, which meet "
        "at the HOST:PORT of process 0",
    )


def _add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time pooling side by side with other frameworks",
        description="Times jaxpool, and the frameworks that are installed, on the "
        "windows of real networks; reports times as ratios, and memory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(handler=_bench)
    option = parser.add_argument
    option("--quick", action="store_true", help="a third of the cases, small batches")
    option(
        "--ops",
        type=_names,
        default="all",
        metavar="NAME,...",
        help="max, avg; in the suite ops any methods or families of `jaxpool compare`",
    )
    option(
        "--dtype",
        type=_names,
        default="f32",
        metavar="NAME,...",
        help="f32, bf16, f16",
    )
    option(
        "--suite",
        type=_names,
        default="models",
        metavar="NAME,...",
        help="models, windows, batch, channels, adaptive; or ops: every op beside "
        "avg_pool",
    )
    option(
        "--peers",
        type=_names,
        default="flax,equinox,keras,torch",
        metavar="NAME,...",
        help="whom to compare with; those not installed are left out",
    )
    option(
        "--layout",
        default="channels_last",
        help="channels_last or channels_first, for those who know both",
    )
    option("--rounds", type=int, default=9, help="rounds of timing, at most")
    option(
        "--model",
        help="time training steps of networks in place of pools: small, resnet18, "
        "unet or all",
    )
    option(
        "--out",
        default="jaxpool-bench",
        metavar="DIR",
        help="where results go, in place of earlier ones",
    )
    option(
        "--resume",
        action="store_true",
        help="go on from the results in --out, all else as it was",
    )


def _add_deploy(commands) -> None:
    parser = commands.add_parser(
        "deploy",
        help="write a model for ONNX, LiteRT or StableHLO, and compare it with JAX",
        description="Writes a function of arrays, such as an NNX model, for a runtime "
        "without JAX; runs what it is about to write, and writes nothing that "
        "disagrees with JAX.",
    )
    parser.set_defaults(handler=_deploy)
    option = parser.add_argument
    option(
        "model",
        metavar="MODEL.py:NAME",
        help="a function of arrays or a model; what needs no arguments is called "
        "first, and gives it. A model is put in evaluation mode",
    )
    option("--to", required=True, choices=("stablehlo", "onnx", "litert"))
    option(
        "--input",
        action="append",
        default=[],
        dest="inputs",
        metavar="SIZES[:DTYPE]",
        help="for each input, as 1x28x28x1 or 1x28x28x1:float32; noise is tried on it. "
        "1xh=28xw=28x1: of any height and width (stablehlo, onnx)",
    )
    option(
        "--examples",
        metavar="FILE.npz",
        help="real data to try it on and to calibrate int8 with: an array for each "
        "input, an example a row. In batches of --input's size, or of one",
    )
    option("--out", metavar="FILE", help="what to write; MODEL with a fitting suffix")
    unset = argparse.SUPPRESS
    option(
        "--dtype",
        default=unset,
        metavar="NAME",
        help="float32, float16 or int8 (litert)",
    )
    option(
        "--static",
        action="store_true",
        default=unset,
        help="for the batch size of --input alone (stablehlo, onnx; litert always is)",
    )
    option(
        "--opset",
        type=int,
        default=unset,
        help="the version of ONNX's operators; the lowest that will do (onnx)",
    )
    option(
        "--no-extremes",
        dest="extremes",
        action="store_false",
        default=unset,
        help="not to compare it at infinities and the ends of dtypes (onnx, litert)",
    )
    option(
        "--gradient",
        action="store_true",
        default=unset,
        help="with its derivative (stablehlo)",
    )
    option(
        "--platforms",
        type=_names,
        default=unset,
        metavar="NAME,...",
        help="where it is to run: cpu,cuda,rocm,tpu (stablehlo)",
    )
    option(
        "--tolerance",
        type=float,
        default=unset,
        help="how much may differ from JAX, relative to the largest value",
    )


def _add_shape(commands) -> None:
    parser = commands.add_parser(
        "shape",
        help="explain the shapes, windows and receptive fields of layers or a model",
        usage="jaxpool shape SHAPE LAYER [LAYER ...] [options]\n"
        "       jaxpool shape MODEL.py:NAME SHAPE [options]",
        description="Follows a chain of layers, or a Flax model, without computing it.",
        epilog="A layer is NAME[:SIZE][/STRIDE][pPADDING][dDILATION][:WORD], as in "
        "max:3/2p1, conv:3x5:SAME, avg:2/2:ceil, adaptive_avg:7, global_avg, flatten. "
        "NAME is an op as in `jaxpool compare`; a WORD is SAME, SAME_LOWER, VALID, "
        "ceil or cN, the channels of a convolution. A model's NAME is a module of "
        "Flax, or what makes one, or a function.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(handler=_shape)
    option = parser.add_argument
    option("what", metavar="SHAPE|MODEL.py:NAME", help="224x224x3, or a model")
    option("rest", nargs="+", metavar="LAYER|SHAPE", help="layers, or 1x224x224x3")
    option(
        "--axis",
        metavar="I,...",
        help="spatial axes of a model's input; else all but the first and the last",
    )
    option("--dtype", default="float32", help="of a model's input")
    option(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further argument of the model's call",
    )
    option("--all", action="store_true", help="layers that change nothing as well")
    option("--json", action="store_true", help="print JSON and no table")
    option(
        "--memory",
        action="store_true",
        help="what XLA needs for inference and gradient on this device; before and "
        "after --swap, or with jaxpool's pools in place of Flax's",
    )
    option("--batch", type=int, metavar="N", help="the batch, for --memory")
    option(
        "--swap",
        type=_names,
        metavar="OLD=NEW,...",
        help="pools to put in place of others, for --memory: max=avg",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _data(text: str) -> str | tuple[str, ...]:
    """One data set, which a path with commas is too, or several."""
    names = _names(text)
    return text if len(names) == 1 or os.path.exists(text) else names


def _auto(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _compare(
    parser: argparse.ArgumentParser, arguments: list[str], options: dict
) -> int:
    address = options.pop("distributed")
    if address is None:
        return _compare_here(parser, arguments, options)
    _meet(address)
    code = _answered(arguments, lambda: _compare_here(parser, arguments, options))
    if code:
        # JAX would wait at the exit for the others, who wait for this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _meet(address: str) -> None:
    """Joins the processes that compare together, before JAX looks for devices."""
    import jax

    meet = jax.distributed.initialize
    if address:
        try:
            coordinator, count, index = address.split(",")
            meet = partial(meet, coordinator, int(count), int(index))
        except ValueError:
            rule = "must be HOST:PORT,N,I, or nothing where JAX finds the processes"
            raise fail("compare", "distributed", rule, address) from None
    try:
        meet()
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error


def _compare_here(
    parser: argparse.ArgumentParser, arguments: list[str], options: dict
) -> int:
    from jaxpool.compare import compare, print_results, read_config

    if config := options.pop("config"):
        parser.set_defaults(**read_config(config))
        options = vars(parser.parse_args(arguments[1:]))
        for name in ("config", "distributed", "handler"):
            del options[name]
    try:
        compare(**options)
        print_results(options["out"])
    except KeyboardInterrupt:
        with contextlib.suppress(UserError):
            print_results(options["out"])
        _say_how_to_go_on("Interrupted", arguments)
        return 130
    return 0


def _bench(arguments: list[str], options: dict) -> int:
    from jaxpool.bench import bench, print_tables

    results = bench(**options)
    print_tables(results)
    if results["interrupted"]:
        _say_how_to_go_on("Interrupted", arguments)
        return 130
    return 0


def _deploy(arguments: list[str], options: dict) -> int:
    del arguments
    from jaxpool.deploy.command import deploy

    made = deploy(options.pop("model"), **options)
    print(f"{made.path}: {made.path.stat().st_size:,} bytes")
    print("nodes:", ", ".join(f"{n} {kind}" for kind, n in made.nodes.items()))
    print(f"largest difference to JAX: {made.error:.2g} of the largest value")
    return 0


def _shape(arguments: list[str], options: dict) -> int:
    del arguments
    from jaxpool.explain.command import shape

    return shape(**options)


def _say_how_to_go_on(what: str, arguments: list[str]) -> None:
    again = shlex.join([*(a for a in arguments if a != "--resume"), "--resume"])
    print(f"{what}. To go on: jaxpool {again}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
