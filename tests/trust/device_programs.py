"""What the tests of devices run in processes of their own, with devices of their own.

    python device_programs.py NAME OUT ARGUMENTS

runs a function of this file, whose keywords ARGUMENTS (JSON) gives, and writes what it
yields, rows of facts and arrays, as files in OUT. The environment says how many
devices there are.
"""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxpool

COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def collectives(compiled):
    """The shapes that each kind of collective moves, an entry an operation."""
    pattern = rf"= (.*?) ({COLLECTIVES})(?:-start)?\("
    found = {}
    for shape, name in re.findall(pattern, compiled.as_text()):
        found.setdefault(name, []).append(re.sub(r"\{.*?\}", "", shape))
    return found


def sizes_in(shape):
    """The sizes of each array that such a shape names."""
    arrays = re.findall(r"\[([\d,]*)\]", shape)
    return [[int(n) for n in a.split(",") if n] for a in arrays]


def elements(shape):
    """The number of elements of the largest array that such a shape names."""
    return max(map(math.prod, sizes_in(shape)))


def farthest(a, b):
    """How far two arrays are apart, for each unit of the largest element."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


RATE = 5e-3
# How each layout splits a batch of images [N, H, W, C]: sizes of the mesh's axes.
LAYOUTS = {
    "one device": {},
    "batch over 8": {"data": 8},
    "height over 8": {"rows": 8},
    "batch over 4, height over 2": {"data": 4, "rows": 2},
    "batch over 2, height over 4": {"data": 2, "rows": 4},
}


def training(methods, layouts, steps, batch=16):
    """Trains the network of `compare`, with each method in each layout."""
    from jaxpool.compare import data
    from jaxpool.compare import methods as known
    from jaxpool.compare import training as compare
    from jaxpool.compare.settings import Settings

    dataset = data._prepare("pictures", pictures())
    settings = Settings("pictures", "small", 1, batch, RATE)
    for name, layout in [(n, each) for n in methods for each in layouts]:
        sizes = LAYOUTS[layout]
        devices = np.array(jax.devices()[: math.prod(sizes.values())])
        mesh = Mesh(
            devices.reshape([*sizes.values()]) if sizes else devices,
            [*sizes] or ["data"],
        )
        axes = [axis if axis in mesh.shape else None for axis in ("data", "rows")]

        def shardings(mesh=mesh, axes=axes):
            specs = ((), axes, axes[:1])
            return tuple(NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs)

        compare.shardings = shardings
        program = compare.compile_program(known.all_methods()[name], dataset, settings)
        row = {"method": name, "layout": layout}
        row["collectives"] = collectives(program.step)
        yield row, train(program, dataset, steps, batch, shardings())
        # What rounding does to a training: as in `transforms.Reference`, what is
        # expected of a result is told by how far it moves when its inputs do.
        for seed in range(MOVED if layout == "one device" else 0):
            signs = np.random.default_rng(seed).choice([-1, 1], dataset.x_train.shape)
            images = dataset.x_train * (1 + EPSILON * signs).astype(np.float32)
            moved = dataclasses.replace(dataset, x_train=images)
            arrays = train(program, moved, steps, batch, shardings())
            yield {**row, "layout": "one device, moved"}, arrays


MOVED = 24  # of erosions one in eight decides otherwise
EPSILON = float(np.finfo(np.float32).eps)


def train(program, dataset, steps, batch, shardings):
    """The losses of so many steps, and what the network is and says after them."""
    from jaxpool.compare import training as compare

    state, losses = program.init(0), []
    _, images, labels = shardings
    for step in range(steps):
        rows = slice(step * batch, (step + 1) * batch)
        x = compare.on_devices(dataset.x_train[rows], images)
        y = compare.on_devices(dataset.y_train[rows], labels)
        state, loss = program.step(state, x, y)
        losses.append(loss)
    logits = program.infer(state.params, state.rest, x)
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(state.params)]
    return {"losses": losses, "logits": logits, "params": np.concatenate(leaves)}


def pictures(count=160, size=32, classes=4):
    """Images that a network can learn: a pattern a class, and noise."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(classes, size, size))
    labels = np.arange(count) % classes
    images = patterns[labels] + rng.normal(size=(count, size, size))
    arrays = images.astype(np.float32), labels
    return dict(
        zip(("x_train", "y_train", "x_test", "y_test"), arrays * 2, strict=True)
    )


WINDOWS = {
    "2x2 by 2": {"window_shape": (2, 2), "strides": (2, 2)},
    "3x3 by 2, SAME": {"window_shape": (3, 3), "strides": (2, 2), "padding": "SAME"},
    "3x3 by 2, padding 1": {"window_shape": (3, 3), "strides": (2, 2), "padding": 1},
    "3x3 by 1, SAME": {"window_shape": (3, 3), "padding": "SAME"},
    "3x3 by 2, ceil_mode": {"window_shape": 3, "strides": 2, "ceil_mode": True},
    "5x5 by 2, SAME": {"window_shape": (5, 5), "strides": (2, 2), "padding": "SAME"},
    "3x3 by 1, dilation 2, SAME": {
        "window_shape": (3, 3),
        "padding": "SAME",
        "window_dilation": 2,
    },
}
# What an op cannot do without, or what shows more.
OPTIONS = {
    "pool": {"init": 0.5, "reduce_fn": jnp.add},
    "topk_avg_pool": {"k": 3},
}
MESHES = {
    "height over 8": {"rows": 8},
    "2 x 2 x 2": {"data": 2, "rows": 2, "columns": 2},
}


def halos(ops, windows, forms, meshes, derivatives):
    """Compiles pools of split arrays: what they move, how far off they are."""
    x = jax.random.normal(jax.random.key(0), (2, 64, 24, 4))
    for name, form, each in [(n, f, m) for n in ops for f in forms for m in meshes]:
        sizes = MESHES[each]
        mesh = Mesh(np.array(jax.devices()).reshape([*sizes.values()]), [*sizes])
        axes = [a if a in sizes else None for a in ("data", "rows", "columns")]
        split = NamedSharding(mesh, PartitionSpec(*axes))
        pool = whole = getattr(jaxpool, name)
        if form == "sharded":
            pool = jaxpool.sharded(whole, mesh, split.spec)
        for window in windows:
            options = {**WINDOWS[window], **OPTIONS.get(name, {})}
            if options["window_shape"] == 3:
                options["axis"] = (1, 2)
            if name == "rank_pool":  # a weight for each element of a square
                n = np.max(options["window_shape"]) ** 2
                options["weights"] = np.linspace(1, -0.5, n, dtype=np.float32)
            for derivative in derivatives:
                with jaxpool.lowering("auto" if form == "sharded" else form):
                    f = derived(pool, options, derivative)
                    laid = {"in_shardings": split, "out_shardings": split}
                    compiled = jax.jit(f, **laid).lower(x).compile()
                wanted = jax.jit(derived(whole, options, derivative))(x)
                yield (
                    {
                        "op": name,
                        "form": form,
                        "window": window,
                        "mesh": each,
                        "derivative": derivative,
                        "collectives": collectives(compiled),
                        "deviation": farthest(compiled(x), wanted),
                    },
                    {},
                )


def derived(pool, options, derivative):
    """The pool, its gradient, or the gradient's derivative in one direction."""

    def f(x):
        return pool(x, **options)

    gradient = jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))
    return {
        0: f,
        1: gradient,
        2: lambda x: jax.jvp(gradient, (x,), (jnp.cos(x),))[1],
    }[derivative]


def main(name, out, arguments):
    arguments = json.loads(arguments)
    if address := arguments.pop("processes", None):
        jax.distributed.initialize(*address)
    rows = []
    for row, arrays in globals()[name](**arguments):
        rows.append(row)
        if arrays and jax.process_index() == 0:
            np.savez(Path(out, f"{len(rows)}.npz"), **arrays)
    if jax.process_index() == 0:
        Path(out, "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
