"""Models for where there is no JAX: StableHLO, ONNX and LiteRT (TensorFlow Lite).

Each writer takes any JAX function of arrays and examples of these, runs what it is
about to write, compares the results with JAX's, and writes nothing that disagrees.

  to_stablehlo   what XLA compiles, for all platforms, with gradient if asked
  to_onnx        ONNX, for onnxruntime and what else reads it
  to_litert      a .tflite file for phones and microcontrollers: float32, float16, int8

Importing this imports no optional package; a writer that lacks one says which extra
brings it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxpool.deploy.agreement import Artefact, DeployError

if TYPE_CHECKING:
    from jaxpool.deploy.litert import to_litert
    from jaxpool.deploy.onnx import to_onnx
    from jaxpool.deploy.stablehlo import to_stablehlo

__all__ = ["Artefact", "DeployError", "to_litert", "to_onnx", "to_stablehlo"]

_WRITERS = {f"to_{name}": name for name in ("stablehlo", "onnx", "litert")}


def __getattr__(name: str) -> Any:
    if name not in _WRITERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WRITERS[name]}"), name)
