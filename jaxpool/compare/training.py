"""Training and testing of one method, on all devices of all processes at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    "can_go_side_by_side",
    "compile_program",
    "on_devices",
    "shardings",
    "side_by_side",
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

    Compiled for several seeds side by side, everything has one more axis, of seeds, in
    front; the images of `infer` alone are the same for all of them.

    Attributes:
      init: makes the state that a seed, or each of several, starts from.
      step: (state, images, labels) -> (state, loss); the state is donated.
      infer: (params, rest, images) -> logits [B, classes], replicated.
      parameters: number of trained values of one seed.
      learned: state of one seed -> the pooling layers' share of them [n].
    """

    init: Callable[..., State]
    step: jax.stages.Compiled
    infer: jax.stages.Compiled
    parameters: int
    learned: Callable[[State], np.ndarray]


def shardings() -> tuple[NamedSharding, NamedSharding, NamedSharding]:
    """Returns where state, images and labels live: replicated, and split in batches."""
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    return NamedSharding(mesh, PartitionSpec()), split, split


def side_by_side(sharding: NamedSharding) -> NamedSharding:
    """Returns a sharding with one more axis in front, which is not split."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def on_devices(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds where it belongs."""
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def can_go_side_by_side() -> bool:
    """Whether this JAX can `vmap` a convolution's gradient, which 0.7.2 cannot."""

    def total(kernel, image):
        return jax.lax.conv(image, kernel, (1, 1), "VALID").sum()

    replicated, _, _ = shardings()
    several = jax.device_put(np.ones((2, 1, 1, 1, 1), np.float32), replicated)
    try:
        jax.eval_shape(jax.vmap(jax.grad(total)), several, several)
    except NotImplementedError:
        return False
    return True


def steps_per_epoch(dataset: Dataset, settings: Settings) -> int:
    """Returns how many whole batches the training images make."""
    return len(dataset.x_train) // settings.batch


def compile_program(
    method: Method, dataset: Dataset, settings: Settings, beside: int = 1
) -> Program:
    """Compiles a method's train step and inference, each once for all seeds.

    Args:
      method: what to train.
      dataset: what to train on.
      settings: how to train.
      beside: how many seeds to train side by side, by `jax.vmap`.
    """
    replicated, split, labelled = shardings()
    steps = settings.epochs * steps_per_epoch(dataset, settings)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.lr, steps))

    def model(seed: int) -> nnx.Sequential:
        widths = MODELS[settings.model]
        return build(method, dataset.image_shape, widths, dataset.classes, seed)

    def start(seed: int) -> State:
        _, params, rest = nnx.split(model(seed), nnx.Param, ...)
        return State(params, rest, optimizer.init(params))

    def init(*seeds: int) -> State:
        states = [start(seed) for seed in seeds]
        if beside == 1:
            return everywhere(*states)
        return everywhere(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))

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

    state = init(*range(beside))
    images = jax.ShapeDtypeStruct((settings.batch, *dataset.image_shape), np.float32)
    batch = (images, jax.ShapeDtypeStruct((settings.batch,), np.int32))
    of_batch = (split, labelled)
    if beside > 1:
        step, infer = jax.vmap(step), jax.vmap(infer, in_axes=(0, 0, None))
        batch = jax.tree.map(lambda x: x.update(shape=(beside, *x.shape)), batch)
        of_batch = (side_by_side(split), side_by_side(labelled))
    jit_step = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated, *of_batch),
        out_shardings=replicated,
    )
    jit_infer = jax.jit(
        infer, in_shardings=(replicated, replicated, split), out_shardings=replicated
    )
    return Program(
        init,
        jit_step.lower(state, *batch).compile(),
        jit_infer.lower(state.params, state.rest, images).compile(),
        sum(leaf.size for leaf in jax.tree.leaves(state.params)) // beside,
        learned,
    )


def train(
    program: Program,
    dataset: Dataset,
    settings: Settings,
    seeds: Sequence[int],
    on_step: Callable[[], object],
    on_epoch: Callable[[Sequence[float], Sequence[float]], object] | None = None,
) -> tuple[list[dict[str, Any]], list[State]]:
    """Trains from each of some seeds, side by side, then tests.

    Each epoch visits the training images in a new order, which is the seed's, and
    leaves out those that do not fill a batch.

    Args:
      program: what was compiled for as many seeds.
      dataset: what to train on.
      settings: how to train.
      seeds: what to start from.
      on_step: called behind each step.
      on_epoch: called behind each epoch with each seed's mean loss in it and accuracy
        after it, which takes another test.

    Returns:
      For each seed, a run and the state in which it ended. A run is the seed; the
      accuracy on all test images (0 to 1); `first_loss` and `loss`, the training loss
      over the first and the last tenth of all steps; and `moved`, the root mean square
      of how far the pooling layers' parameters are from where they started, None if
      they have none.
    """
    count = len(seeds)
    state = program.init(*seeds)
    start = [program.learned(one) for one in _each(state, count)]
    rngs = [np.random.default_rng(seed) for seed in seeds]
    steps, batch = steps_per_epoch(dataset, settings), settings.batch
    _, split, labelled = shardings()
    if count > 1:
        split, labelled = side_by_side(split), side_by_side(labelled)
    losses = []
    for _ in range(settings.epochs):
        orders = [rng.permutation(len(dataset.x_train)) for rng in rngs]
        for first in range(0, steps * batch, batch):
            rows = np.stack([order[first : first + batch] for order in orders])
            rows = rows if count > 1 else rows[0]
            images = on_devices(dataset.x_train[rows], split)
            labels = on_devices(dataset.y_train[rows], labelled)
            state, loss = program.step(state, images, labels)
            losses.append(loss)
            on_step()
        if on_epoch:
            mean = np.mean(losses[-steps:], axis=0).reshape(count)
            on_epoch(mean, _accuracies(program, state, dataset, batch, count))
    tenth = -(-len(losses) // 10)
    accuracies = _accuracies(program, state, dataset, batch, count)
    curves = np.reshape(losses, (-1, count)).T
    states = _each(state, count)
    runs = []
    for i, seed in enumerate(seeds):
        moved = program.learned(states[i]) - start[i]
        run = {
            "seed": seed,
            "accuracy": accuracies[i],
            "first_loss": float(np.mean(curves[i, :tenth])),
            "loss": float(np.mean(curves[i, -tenth:])),
            "moved": float(np.sqrt(np.mean(moved**2))) if moved.size else None,
        }
        runs.append(run)
    return runs, states


def _each(state: State, count: int) -> list[State]:
    """Returns the state of each of several seeds."""
    if count == 1:
        return [state]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(count)]


def _accuracies(
    program: Program, state: State, dataset: Dataset, batch: int, count: int
) -> list[float]:
    """Tests on every image: the last batch is filled up, and the filling not read."""
    correct = np.zeros(count, int)
    _, split, _ = shardings()
    for start in range(0, len(dataset.x_test), batch):
        images = dataset.x_test[start : start + batch]
        labels = dataset.y_test[start : start + batch]
        filled = np.zeros((batch, *dataset.image_shape), np.float32)
        filled[: len(images)] = images
        images = on_devices(filled, split)
        logits = program.infer(state.params, state.rest, images)
        predicted = np.argmax(logits, axis=-1).reshape(count, batch)[:, : len(labels)]
        correct += np.count_nonzero(predicted == labels, axis=1)
    return [int(n) / len(dataset.x_test) for n in correct]
