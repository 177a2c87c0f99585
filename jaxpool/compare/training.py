"""Training and testing of one method, on all devices of all processes at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpool.compare.data import Dataset
from jaxpool.compare.methods import Method
from jaxpool.compare.model import build
from jaxpool.compare.settings import MODELS, Settings
from jaxpool.nnx import PoolModule

__all__ = [
    "Program",
    "State",
    "compile_program",
    "on_devices",
    "shardings",
    "steps_per_epoch",
    "train",
]


class State(NamedTuple):
    """All that changes in training: a tree of arrays, replicated on every device."""

    params: Any
    rest: Any  # what the model holds besides parameters, such as RNG state
    optimizer: Any


@dataclass(frozen=True)
class Program:
    """One method, compiled ahead of time for one data set and batch size.

    Attributes:
      init: makes the state that a seed starts from.
      step: (state, images, labels) -> (state, loss); the state is donated.
      infer: (params, rest, images) -> logits [B, classes], replicated.
      parameters: number of trained values.
      learned: state -> the pooling layers' share of them [n].
    """

    init: Callable[[int], State]
    step: jax.stages.Compiled
    infer: jax.stages.Compiled
    parameters: int
    learned: Callable[[State], np.ndarray]


def shardings() -> tuple[NamedSharding, NamedSharding, NamedSharding]:
    """Returns where state, images and labels live: replicated, and split in batches."""
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    return NamedSharding(mesh, PartitionSpec()), split, split


def on_devices(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds where it belongs."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def steps_per_epoch(dataset: Dataset, settings: Settings) -> int:
    """Returns how many whole batches the training images make."""
    return len(dataset.x_train) // settings.batch


def compile_program(method: Method, dataset: Dataset, settings: Settings) -> Program:
    """Compiles a method's train step and inference, each once for all seeds."""
    replicated, split, labelled = shardings()
    steps = settings.epochs * steps_per_epoch(dataset, settings)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.lr, steps))

    def model(seed: int) -> nnx.Sequential:
        widths = MODELS[settings.model]
        return build(method, dataset.image_shape, widths, dataset.classes, seed)

    def init(seed: int) -> State:
        _, params, rest = nnx.split(model(seed), nnx.Param, ...)
        return everywhere(State(params, rest, optimizer.init(params)))

    everywhere = jax.jit(lambda state: state, out_shardings=replicated)
    graph = nnx.graphdef(model(0))

    def step(state: State, images: jax.Array, labels: jax.Array):
        def loss_and_rest(params):
            model = nnx.merge(graph, params, state.rest, copy=True)
            model.train()
            logits = model(images)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return loss.mean(), nnx.state(model, nnx.Not(nnx.Param))

        grad = jax.value_and_grad(loss_and_rest, has_aux=True)
        (loss, rest), grads = grad(state.params)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), rest, opt_state), loss

    def infer(params, rest, images: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params, rest)
        model.eval()
        return model(images)

    def learned(state: State) -> np.ndarray:
        layers = nnx.merge(graph, state.params, state.rest, copy=True).layers
        own = [nnx.state(n, nnx.Param) for n in layers if isinstance(n, PoolModule)]
        # In a copy: the step is given the state's memory to write in.
        return np.concatenate([np.zeros(0), *map(np.ravel, jax.tree.leaves(own))])

    state = init(0)
    images = jax.ShapeDtypeStruct((settings.batch, *dataset.image_shape), np.float32)
    labels = jax.ShapeDtypeStruct((settings.batch,), np.int32)
    jit_step = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated, split, labelled),
        out_shardings=replicated,
    )
    jit_infer = jax.jit(
        infer, in_shardings=(replicated, replicated, split), out_shardings=replicated
    )
    return Program(
        init,
        jit_step.lower(state, images, labels).compile(),
        jit_infer.lower(state.params, state.rest, images).compile(),
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        learned,
    )


def train(
    program: Program,
    dataset: Dataset,
    settings: Settings,
    seed: int,
    on_step: Callable[[], object],
) -> dict[str, float | None]:
    """Trains from a seed, then tests.

    Each epoch visits the training images in a new order, and leaves out those that
    do not fill a batch.

    Returns:
      The seed; the accuracy on all test images (0 to 1); `first_loss` and `loss`, the
      training loss over the first and the last tenth of all steps; and `moved`, the
      root mean square of how far the pooling layers' parameters are from where they
      started, None if they have none.
    """
    state = program.init(seed)
    start = program.learned(state)
    rng = np.random.default_rng(seed)
    steps, batch = steps_per_epoch(dataset, settings), settings.batch
    _, split, labelled = shardings()
    losses = []
    for _ in range(settings.epochs):
        order = rng.permutation(len(dataset.x_train))
        for rows in order[: steps * batch].reshape(steps, batch):
            images = on_devices(dataset.x_train[rows], split)
            labels = on_devices(dataset.y_train[rows], labelled)
            state, loss = program.step(state, images, labels)
            losses.append(loss)
            on_step()
    tenth = -(-len(losses) // 10)
    moved = program.learned(state) - start
    accuracy = _accuracy(program, state, dataset, batch)
    return {
        "seed": seed,
        "accuracy": accuracy,
        "first_loss": float(np.mean(losses[:tenth])),
        "loss": float(np.mean(losses[-tenth:])),
        "moved": float(np.sqrt(np.mean(moved**2))) if moved.size else None,
    }


def _accuracy(program: Program, state: State, dataset: Dataset, batch: int) -> float:
    """Tests on every image: the last batch is filled up, and the filling not read."""
    correct = 0
    _, split, _ = shardings()
    for start in range(0, len(dataset.x_test), batch):
        images = dataset.x_test[start : start + batch]
        labels = dataset.y_test[start : start + batch]
        filled = np.zeros((batch, *dataset.image_shape), np.float32)
        filled[: len(images)] = images
        images = on_devices(filled, split)
        logits = program.infer(state.params, state.rest, images)
        predicted = np.argmax(logits, axis=-1)[: len(labels)]
        correct += int(np.count_nonzero(predicted == labels))
    return correct / len(dataset.x_test)
