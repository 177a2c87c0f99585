"""What seeds have trained, kept by Orbax."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxpool.compare.data import Dataset
from jaxpool.compare.forms import COUNT, TEXT, Form, conform
from jaxpool.compare.methods import all_methods
from jaxpool.compare.model import build
from jaxpool.compare.reading import first_line
from jaxpool.compare.results import FILE, is_index, read
from jaxpool.compare.settings import MODELS, UserError, check
from jaxpool.compare.training import State

__all__ = ["check_installed", "restore", "save"]

_NEEDED: Form = {"settings": {"model": TEXT}, "data": {"image": [COUNT]}}


class Standardize(nnx.Module):
    """What is done to images before a network sees them.

    Attributes:
      mean: what is taken from each pixel of an image from 0 to 1.
      std: what each pixel is then divided by.
    """

    def __init__(self, mean: float, std: float):
        """Keeps both numbers."""
        self.mean = mean
        self.std = std

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns uint8 or floating `images` [N, H, W, C] in float32, standardized."""
        scale = 255 if images.dtype == np.uint8 else 1
        return (images.astype(np.float32) / scale - self.mean) / self.std


def check_installed() -> None:
    """Raises `UserError` where Orbax is missing."""
    try:
        import orbax.checkpoint  # noqa: F401
    except ModuleNotFoundError as error:
        needs = "needs the package orbax-checkpoint: pip install orbax-checkpoint"
        raise UserError(f"`compare`: `checkpoint` {needs}") from error


def _folder(out: Path, method: str, seed: int) -> Path:
    return out.absolute() / "checkpoints" / method / f"seed{seed}"


def save(out: Path, method: str, seed: int, state: State, dataset: Dataset) -> None:
    """Saves a seed's parameters, and whatever else of its network is no random state.

    The folder is whole or not there, and takes the place of an earlier one. Of several
    processes the first one calls this.

    Raises:
      OSError: if that fails.
    """
    import orbax.checkpoint as ocp

    folder = _folder(out, method, seed)
    for left in folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(left)  # by a process that was killed
    arrays = nnx.merge_state(state.params, _arrays(state.rest))
    tree = _tree(arrays, dataset.mean, dataset.std)
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:  # the others do not take part
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="compare"
        )
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
            checkpointer.save(folder, tree, force=True)
    except Exception as error:  # whatever a disk that fails makes Orbax raise
        raise OSError(f"{folder} cannot be written: {first_line(error)}") from error


def _arrays(state: Any) -> Any:
    return nnx.filter_state(state, nnx.Not(nnx.RngState))


def _tree(state: Any, mean: float, std: float) -> dict[str, Any]:
    arrays = jax.tree.map(np.asarray, nnx.to_pure_dict(state))
    numbers = {"mean": np.asarray(mean), "std": np.asarray(std)}
    return {"model": arrays, **numbers}


def restore(out: str | Path, method: str, seed: int = 0) -> nnx.Sequential:
    """Loads a network that `jaxpool compare --checkpoint` has trained.

    Args:
      out: the folder of the results; of several data sets, the one of its own that each
        of them has in there.
      method: the method's name.
      seed: which of its seeds, from 0.

    Returns:
      The network, as it is evaluated (`model.train()` makes it ready to be trained
      on). It takes images [N, H, W, C] as the data set has them, uint8 or floating,
      standardizes them as in training, and returns logits [N, classes]. Where it draws
      random numbers, those begin anew.

    Raises:
      UserError: if there is no such network in `out`, or it cannot be read.

    Example:
      >>> import tempfile, numpy as np
      >>> from jaxpool.compare import compare, restore
      >>> out = tempfile.mkdtemp()
      >>> asked = {"data": "digits", "methods": ["max"], "epochs": 1, "seeds": 1}
      >>> results = compare(**asked, out=out, checkpoint=True)
      >>> restore(out, "max")(np.zeros((2, 8, 8, 1), np.float32)).shape
      (2, 10)
    """
    import orbax.checkpoint as ocp

    out = Path(out)
    rule = f"must hold {FILE}"
    check((out / FILE).exists(), "out", rule, str(out), "restore")
    rule = "must be the folder of one data set, which is within that of several"
    check(not is_index(out / FILE), "out", rule, str(out), "restore")
    results = read(out / FILE)
    entries = results["methods"]
    rule = f"must be one that {out} has results of ({', '.join(entries)})"
    check(method in entries, "method", rule, method, "restore")
    folder = _folder(out, method, seed)
    rule = f"must have been trained with --checkpoint ({folder} is missing)"
    check(folder.is_dir(), "seed", rule, seed, "restore")
    try:
        model = _model(results, method, seed)
        state = nnx.state(model, nnx.Not(nnx.RngState))
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(folder, _tree(state, 0.0, 1.0))
    except Exception as error:  # whatever damage makes Orbax raise
        problem = f"`restore`: `out` {folder} is not readable: {first_line(error)}"
        raise UserError(problem) from error
    nnx.replace_by_pure_dict(state, tree["model"])
    nnx.update(model, state)
    whole = nnx.Sequential(
        Standardize(float(tree["mean"]), float(tree["std"])), *model.layers
    )
    whole.eval()
    return whole


def _model(results: Mapping[str, Any], method: str, seed: int) -> nnx.Sequential:
    """Returns the network that a seed started from."""
    conform(results, _NEEDED)
    data = results["data"]
    widths = MODELS[results["settings"]["model"]]
    shape = tuple(data["image"])
    return build(all_methods()[method], shape, widths, data["classes"], seed)
