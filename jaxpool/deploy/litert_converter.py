"""StableHLO to LiteRT by the passes of the package `litert_converter`.

Its bindings are not documented, and all that is used of them is here.
"""

import re
from types import ModuleType

from jax import export

from jaxpool.deploy.agreement import DeployError, need

__all__ = ["SIGNATURE", "convert", "reason"]

SIGNATURE = "serving_default"


def convert(module: export.Exported) -> bytes:
    """The model, with inputs `input_0`, ... and outputs `output_0`, ...

    Raises:
      DeployError: if the converter refuses; says what it does not know.
      ModuleNotFoundError, RuntimeError: if it is not there, or not as it used to be.
    """
    ir, manager, stablehlo, api = _bindings()
    names = [
        [f"{kind}_{i}" for i, _ in enumerate(avals)]
        for kind, avals in (("input", module.in_avals), ("output", module.out_avals))
    ]
    context = ir.Context()
    api.prepare_mlir_context(context)
    with context:
        passes = manager.PassManager("builtin.module")
        try:
            program = stablehlo.deserialize_portable_artifact(
                context, module.mlir_module_serialized
            )
            api.set_signature(program.operation, SIGNATURE, *names)
            api.run_convert_to_tfl_passes(program, passes, api.ConvertToTFLConfig())
            return bytes(api.export_flatbuffer_to_bytes(program.operation))
        except Exception as error:  # of its passes, most are ValueErrors
            why = reason(str(error), module.mlir_module())
            raise DeployError(f"LiteRT: {why}.") from error


def _bindings() -> tuple[ModuleType, ModuleType, ModuleType, ModuleType]:
    need("litert", "litert_converter")
    package = "litert_converter.mlir"
    try:
        ir, manager, stablehlo, api = (
            need("litert", f"{package}.{name}")
            for name in (
                "ir",
                "passmanager",
                "dialects.stablehlo",
                "_mlir_libs.converter_api_ext",
            )
        )
        for owner, name in (
            (stablehlo, "deserialize_portable_artifact"),
            (api, "prepare_mlir_context"),
            (api, "set_signature"),
            (api, "run_convert_to_tfl_passes"),
            (api, "ConvertToTFLConfig"),
            (api, "export_flatbuffer_to_bytes"),
        ):
            getattr(owner, name)
    except (ModuleNotFoundError, AttributeError) as error:
        problem = (
            f"`to_litert` does not know this version of litert-converter ({error}): "
            "pip install 'jaxpool[litert]'"
        )
        raise RuntimeError(problem) from error
    return ir, manager, stablehlo, api


def reason(error: str, program: str) -> str:
    """What a converter's error says of the program, in a few words."""
    illegal = re.search(r"failed to legalize operation '([\w.]+)'", error)
    if illegal:
        kind = re.search(r"tensor<(?:[\dx]*x)?(\w+)>\) ->", error)
        of = f" of {kind[1]}" if kind else ""
        return f"the converter knows no {illegal[1].split('.')[-1]}{of}"
    missing = re.search(r"(?:TF Select|Custom) ops: (.*)", error)
    if missing:
        return f"the runtime has no {missing[1].strip()}"
    foreign = re.search(r"stablehlo.custom_call @([\w.$]+)", program)
    if foreign:
        return f"the converter knows no {foreign[1]}, which belongs to XLA"
    if "stablehlo.while" in program:
        return "the converter writes no loops (lax.scan, lax.map, lax.while_loop)"
    return f"the converter failed: {' '.join(error.split())[:300]}"
