"""A LiteRT model, read, run and quantized; also as a program, which may crash alone.

Without JAX and without the rest of jaxpool, so that the program starts fast.
"""

import contextlib
import importlib
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["kinds", "main", "quantize", "run"]

Arrays = Sequence[np.ndarray]


def run(model: bytes, signature: str, inputs: Arrays) -> list[np.ndarray]:
    """The outputs as real numbers; int8 inputs are rounded from the real ones given."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=model).get_signature_runner(signature)
    given = {}
    for i, x in enumerate(inputs):
        details = runner.get_input_details()[f"input_{i}"]
        scale, zero = details["quantization"]
        given[f"input_{i}"] = _quantized(x, scale, zero, details["dtype"])
    outputs, details = runner(**given), runner.get_output_details()
    names = [f"output_{i}" for i in range(len(outputs))]
    return [_real(outputs[n], *details[n]["quantization"]) for n in names]


def _quantized(x, scale, zero, dtype):
    if not scale:  # not a quantized one
        return np.asarray(x, dtype)
    limits = np.iinfo(dtype)
    steps = np.round(np.asarray(x, np.float64) / scale) + zero
    return np.clip(steps, limits.min, limits.max).astype(dtype)


def _real(y, scale, zero):
    if not scale:
        return np.array(y)
    return ((y.astype(np.float64) - zero) * scale).astype(np.float32)


def kinds(model: bytes) -> dict[str, int]:
    """How often each kind of node is in it; a quantized one's floats by themselves."""
    schema: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    names = {
        code: name
        for name, code in vars(schema.BuiltinOperator).items()
        if not name.startswith("_")
    }
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    found = []
    for graph in parsed.subgraphs:
        types = [tensor.type for tensor in graph.tensors]
        integer = any(_scaled(tensor) for tensor in graph.tensors)
        for node in graph.operators:
            code = parsed.operatorCodes[node.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            real = schema.TensorType.FLOAT32 in (types[i] for i in node.outputs)
            real = real and integer and name != "DEQUANTIZE"
            found.append(f"{name} in float32" if real else name)
    return dict(Counter(found).most_common())


def _scaled(tensor):
    scale = tensor.quantization and tensor.quantization.scale
    return scale is not None and len(scale) > 0


def quantize(
    model: bytes, signature: str, dtype: str, batches: Sequence[Arrays] = ()
) -> bytes:
    """The model with float16 weights, or in int8 with ranges as seen in the batches."""
    from litert_quantizer import calibrator, quantizer, recipe, recipe_manager
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.qtyping import TFLOperationName
    from litert_quantizer.utils import qsv_utils

    work = quantizer.Quantizer(bytearray(model))
    if dtype == "float16":
        work.add_weight_only_config(
            ".*",
            TFLOperationName.ALL_SUPPORTED,
            num_bits=16,
            algorithm_key=AlgorithmName.FLOAT_CASTING,
        )
        ranges = None
    else:
        work.load_quantization_recipe(recipe.static_wi8_ai8())
        manager = recipe_manager.RecipeManager()
        manager.load_quantization_recipe(recipe.static_wi8_ai8())
        # By default ranges are those of the first batch, moved a little by the others:
        # what lies outside would be clipped.
        calibration = calibrator.Calibrator(
            model, num_threads=1, qsv_update_func=qsv_utils.min_max_update
        )
        data = [{f"input_{i}": x for i, x in enumerate(b)} for b in batches]
        calibration.calibrate({signature: data}, manager)
        ranges = calibration.get_model_qsvs()
    made: Any = work.quantize(
        ranges, enable_progress_bar=False, enable_progress_report=False
    )
    return bytes(made.quantized_model)


def main(given: str, made: str) -> None:
    """Quantizes what one .npz file holds, and writes model and outputs to another."""
    with np.load(given) as file:
        about = json.loads(str(file["about"]))
        batches = [
            [file[f"batch_{b}_{i}"] for i in range(about["inputs"])]
            for b in range(about["batches"])
        ]
        model = file["model"].tobytes()
    model = quantize(model, about["signature"], "int8", batches)
    results: dict[str, Any] = {"model": np.frombuffer(model, np.uint8)}
    for b, batch in enumerate(batches):
        for i, y in enumerate(run(model, about["signature"], batch)):
            results[f"output_{b}_{i}"] = y
    np.savez(made, **results)


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        main(*sys.argv[1:])
