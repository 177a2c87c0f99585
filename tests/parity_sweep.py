"""Many small configurations of every pooling function of PyTorch, on both sides.

    python tests/parity_sweep.py --configs 28000 --seed 1 --jobs 2

compares values, indices and gradients of `jaxpool.compat.torch` with those of
`torch.nn.functional` on the CPU. A configuration that PyTorch refuses has to be refused
here; that is one in five, so 28,000 compare the numbers of more than 20,000. Skipped is
what PyTorch has no kernel for, refuses or corrupts because of values, or would unpool
without having pooled. A quarter of the configurations go through all small
one-dimensional cases, the others are drawn. Every mismatch is printed as the command
that runs it alone.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

import jaxpool.compat.torch as ours

# Compiling takes most of the time here, and nothing runs for long.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
CHUNK = 64  # configurations that are compiled as one program


# Configurations: plain data, so that one line of JSON is a reproduction.


def enumerated():
    """All small one-dimensional cases."""
    for size, k, s, ceil in itertools.product(
        range(1, 9), range(1, 5), range(1, 4), (False, True)
    ):
        window = {"kernel_size": k, "stride": s, "ceil_mode": ceil}
        for p in range(k // 2 + 1):
            for d in (1, 2, 3):
                args = {**window, "padding": p, "dilation": d}
                yield config("max_pool1d_with_indices", [1, 2, size], args, "ties")
            for count in (False, True):
                args = {**window, "padding": p, "count_include_pad": count}
                yield config("avg_pool1d", [1, 2, size], args, "normal")
        if not ceil:
            args = {"norm_type": 2, **window}
            yield config("lp_pool1d", [1, 2, size], args, "normal")
    for size, out in itertools.product(range(1, 13), repeat=2):
        args = {"output_size": out}
        yield config("adaptive_avg_pool1d", [1, 2, size], args, "normal")
        yield config("adaptive_max_pool1d_with_indices", [1, 2, size], args, "ties")


def config(op, shape, args, data, dtype="float32"):
    return {"op": op, "shape": shape, "dtype": dtype, "data": data, "args": args}


@functools.cache
def shuffled(seed):
    cases = list(enumerated())
    random.Random(seed).shuffle(cases)
    return cases


def drawn(seed, number):
    """The configuration with a number: every fourth one is an enumerated one."""
    if number % 4 == 0 and number // 4 < len(shuffled(seed)):
        return shuffled(seed)[number // 4]
    rng = random.Random(f"{seed}-{number}")
    family = rng.choice(FAMILIES)
    nd = rng.choice((2, 2, 3) if family is fractional else (1, 2, 2, 3))
    lead = [rng.randint(1, 2), rng.randint(1, 3)]
    if rng.random() < 0.2:  # without a batch
        lead = lead[1:]
    most = {1: 16, 2: 8, 3: 5}[nd]
    sizes = [rng.randint(1, most) for _ in range(nd)]
    op, args, data, *narrow = family(rng, nd, sizes)
    dtypes = ["float32", "float32", "float64"] + ["bfloat16"] * (not narrow)
    return config(op, lead + sizes, args, data, rng.choice(dtypes))


def per_axis(rng, nd, low, high):
    """An int, or one for each axis."""
    if rng.random() < 0.4:
        return rng.randint(low, high)
    entries = [rng.randint(low, high) for _ in range(nd)]
    return entries[0] if nd == 1 and rng.random() < 0.5 else entries


def windows(rng, nd, sizes):
    args = {"kernel_size": per_axis(rng, nd, 1, min(5, max(sizes) + 1))}
    if rng.random() < 0.7:
        args["stride"] = per_axis(rng, nd, 1, 4)
    if rng.random() < 0.5:
        half = [k // 2 for k in spread(args["kernel_size"], nd)]
        args["padding"] = [rng.randint(0, h) for h in half]
        if rng.random() < 0.3:
            args["padding"] = rng.randint(0, min(half))
        if rng.random() < 0.05:
            args["padding"] = max(half) + 1
    if rng.random() < 0.4:
        args["ceil_mode"] = True
    return args


def max_pool(rng, nd, sizes):
    args = windows(rng, nd, sizes)
    if rng.random() < 0.4:
        args["dilation"] = per_axis(rng, nd, 1, 3)
    suffix = rng.choice(["", "_with_indices"])
    return f"max_pool{nd}d{suffix}", args, rng.choice(["normal", "ties", "inf", "nan"])


def avg_pool(rng, nd, sizes):
    args = windows(rng, nd, sizes)
    if rng.random() < 0.5:
        args["count_include_pad"] = rng.random() < 0.5
    if nd > 1 and rng.random() < 0.3:
        args["divisor_override"] = rng.choice([1, 2, 3, 7, -2])
    return f"avg_pool{nd}d", args, rng.choice(["normal", "normal", "nan"])


def lp_pool(rng, nd, sizes):
    args = windows(rng, nd, sizes)
    args.pop("padding", None)
    if nd == 1 and not isinstance(args["kernel_size"], int):
        args["kernel_size"] = args["kernel_size"][0]
    p = rng.choice([1, 1.5, 2, 2.0, 3, 4, "inf", "-inf"])
    data = "normal" if p in (2, 4, "inf", "-inf") else "positive"
    # PyTorch rounds the powers, the mean and the root to the narrow dtype.
    return f"lp_pool{nd}d", {"norm_type": p, **args}, data, "not in bfloat16"


def adaptive(rng, nd, sizes):
    out = per_axis(rng, nd, 1, max(sizes) + 3)
    if nd > 1 and not isinstance(out, int):
        out = [None if rng.random() < 0.2 else n for n in out]
    kind = rng.choice(["avg_pool{}d", "max_pool{}d", "max_pool{}d_with_indices"])
    data = ["normal", "nan"] if kind.startswith("avg") else ["normal", "ties", "nan"]
    return "adaptive_" + kind.format(nd), {"output_size": out}, rng.choice(data)


def fractional(rng, nd, sizes):
    sizes[:] = [max(n, 3) for n in sizes]
    kernel = [rng.randint(1, n - 1) for n in sizes]
    args = {"kernel_size": kernel}
    if rng.random() < 0.7:
        room = zip(sizes, kernel, strict=True)
        args["output_size"] = [rng.randint(1, n - k + (nd < 3)) for n, k in room]
    else:
        args["output_ratio"] = [rng.uniform(0.34, 0.9) for _ in sizes]
    suffix = rng.choice(["", "_with_indices"])
    data = rng.choice(["normal", "ties", "inf", "nan"])
    return f"fractional_max_pool{nd}d{suffix}", args, data


def max_unpool(rng, nd, sizes):
    args = windows(rng, nd, sizes)
    args.pop("ceil_mode", None)
    for name in ("kernel_size", "stride", "padding"):
        if name in args:
            args[name] = spread(args[name], nd)
    choice = rng.random()
    if choice < 0.4:
        args["output_size"] = list(sizes)
    elif choice < 0.8:
        args["output_size"] = [rng.randint(max(1, n - 1), n + 2) for n in sizes]
    return f"max_unpool{nd}d", args, "normal"


FAMILIES = [max_pool, max_pool, avg_pool, avg_pool, lp_pool, adaptive, adaptive]
FAMILIES += [fractional, max_unpool]


def spread(value, nd):
    return [value] * nd if isinstance(value, int) else list(value)


# Running one.


class Skip(Exception):
    """For a configuration that PyTorch computes without a sound result."""


class Case:
    """A configuration, its input and what PyTorch makes of it."""

    def __init__(self, config):
        self.config = config
        self.op, self.args = config["op"], {**config["args"]}
        self.nd = int(self.op.split("d_with")[0].rstrip("d")[-1])
        self.family = self.op.replace("_with_indices", "")[:-2]
        self.dtype = config["dtype"]
        if isinstance(p := self.args.get("norm_type"), str):
            self.args["norm_type"] = float(p)
        self.rng = np.random.default_rng(zlib.crc32(self.line().encode()))
        self.inputs = {"input": self.draw(config["shape"], config["data"])}
        self.refused = self.skipped = False
        if self.family == "fractional_max_pool":
            self.draw_samples()
        if self.family == "max_unpool" and not self.pool_first():
            self.skipped = True
            return
        try:
            self.run_torch()
        except (RuntimeError, ValueError, TypeError, Skip) as error:
            # What depends on values is not known here: see `DIFFERENCES`.
            self.skipped = "invalid max index" in str(error)
            self.skipped |= isinstance(error, NotImplementedError | Skip)
            self.refused = not self.skipped

    def line(self):
        return json.dumps(self.config)

    def draw(self, shape, data):
        x = self.rng.standard_normal(shape)
        if data in ("ties", "inf"):
            x = self.rng.integers(0, 3, shape).astype(float)
        if data == "positive":
            x = self.rng.uniform(0.1, 2, shape)
        if data == "inf":
            x = np.where(self.rng.random(shape) < 0.5, -np.inf, x)
        if data == "nan":  # one a plane: of several the last counts in PyTorch
            planes = x.reshape(-1, math.prod(shape[-self.nd :]))
            places = self.rng.integers(0, planes.shape[1], len(planes))
            planes[np.arange(len(planes)), places] = np.nan
        return self.array(x)

    def array(self, x):
        return np.asarray(x, jnp.dtype(self.dtype))

    def pool_first(self):
        """Does the pooling which is to be undone, if there is one."""
        args = {n: v for n, v in self.args.items() if n != "output_size"}
        pool = getattr(F, f"max_pool{self.nd}d")
        x = as_torch(self.inputs["input"])
        try:
            values, indices = pool(x, **args, return_indices=True)
        except RuntimeError:
            return False
        self.inputs = {
            "input": self.array(from_torch(values)),
            "indices": indices.numpy().astype(np.int32),
        }
        return True

    def draw_samples(self):
        shape = (1, 1, *self.config["shape"])[-2 - self.nd :][:2]
        # Multiples of 1/128 below 1 are numbers of every dtype.
        samples = self.rng.integers(0, 128, (*shape, self.nd)) / 128
        if self.dtype != "bfloat16":
            samples = samples + self.rng.random(samples.shape) / 128
        self.inputs["_random_samples"] = self.array(samples)

    def run_torch(self):
        self.values, self.index, self.cotangent, self.gradient = self.torch_pass(False)
        exact = ("max_pool", "adaptive_max_pool", "fractional_max_pool", "max_unpool")
        self.exact = self.family in exact
        if self.family == "max_unpool":
            self.gradient = self.gradient * last_of_each(
                self.inputs["indices"], self.nd
            )
        if not self.exact:
            self.value_scale, *_, self.gradient_scale = self.torch_pass(True)

    def torch_pass(self, magnitudes):
        """Values, indices, cotangent, gradient; what errors scale with, of |x|."""
        inputs = {name: as_torch(a) for name, a in self.inputs.items()}
        x = inputs.pop("input")
        x = (x.abs() if magnitudes else x).requires_grad_()
        out = getattr(F, self.op)(x, **inputs, **self.args)
        y, index = out if isinstance(out, tuple) else (out, None)
        if self.family == "max_pool" and self.has_empty_windows(y.shape):
            raise Skip  # its gradient is written outside of the array
        if self.family == "lp_pool":
            y = y * torch.tensor(self.overhang(), dtype=y.dtype)
        if not magnitudes:
            self.shape = y.shape
            # Whole numbers, whose sums are exact in any order and dtype.
            self.whole = self.rng.integers(-4, 5, self.shape).astype(float)
        g = np.abs(self.whole) if magnitudes else self.whole
        y.backward(torch.tensor(g, dtype=y.dtype))
        return from_torch(y), index, self.array(g), from_torch(x.grad)

    def has_empty_windows(self, shape):
        """Whether a dilated window lies in the padding alone."""
        names = ("kernel_size", "stride", "padding", "dilation")
        defaults = (None, self.args["kernel_size"], 0, 1)
        given = [self.args.get(n, d) for n, d in zip(names, defaults, strict=True)]
        entries = [spread(value, self.nd) for value in given]
        sizes = self.config["shape"][-self.nd :]
        for size, out, k, s, p, d in zip(
            sizes, shape[-self.nd :], *entries, strict=True
        ):
            places = np.arange(out)[:, None] * s - p + np.arange(k) * d
            if not ((places >= 0) & (places < size)).any(1).all():
                return True
        return False

    def overhang(self):
        """What `DIFFERENCES` says about windows that overhang the input."""
        p = self.args["norm_type"]
        factors = np.ones(())
        kernel = spread(self.args["kernel_size"], self.nd)
        stride = spread(self.args.get("stride", kernel), self.nd)
        sizes = self.config["shape"][-self.nd :]
        outs = getattr(F, f"max_pool{self.nd}d")(
            torch.zeros(1, *sizes),
            kernel,
            stride,
            0,
            1,
            self.args.get("ceil_mode", False),
        ).shape[1:]
        for size, k, s, out in zip(sizes, kernel, stride, outs, strict=True):
            elements = np.minimum(size - np.arange(out) * s, k)
            factors = factors[..., None] * (elements / k)
        return factors ** (1 / p) if math.isfinite(p) else np.ones_like(factors)

    # Ours.

    def apply(self, inputs, cotangent):
        """Values, indices (or None) and gradient of this library's function."""
        fn = getattr(ours, self.op)

        def split(x):
            out = fn(**inputs | {"input": x}, **self.args)
            return out if isinstance(out, tuple) else (out, None)

        y, pullback, index = jax.vjp(split, inputs["input"], has_aux=True)
        return y, index, pullback(cotangent)[0]

    def refusal(self):
        """Says what is wrong if this library takes what PyTorch refuses."""
        fn = getattr(ours, self.op)
        try:
            out = jax.eval_shape(lambda i: fn(**i, **self.args), self.inputs)
        except (ValueError, TypeError) as error:
            named = str(error).startswith(f"`{self.op}`: `")
            return None if named else f"an error of another kind: {error}"
        return f"PyTorch refuses it, but here it gives {out}"

    def compare(self, results):
        """Says what differs between the results and PyTorch's."""
        y, index, gradient = results
        if y.dtype != self.dtype or y.shape != self.shape:
            return f"{y.dtype}{y.shape} instead of {self.dtype}{tuple(self.shape)}"
        values, slopes = 0.0, 0.0
        if not self.exact:
            values, slopes = self.tolerances()
        for name, actual, expected, bound in (
            ("values", y, self.values, values),
            ("gradient", gradient, self.gradient, slopes),
        ):
            actual = np.asarray(actual, np.float64)
            same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
            with np.errstate(invalid="ignore"):
                wrong = ~(same | (np.abs(actual - expected) <= bound))
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0].tolist())
                pair = f"{actual[at]} instead of {expected[at]}"
                return f"{wrong.sum()} of {wrong.size} {name}: at {at} {pair}"
        if (index is None) != (self.index is None):
            return "indices on one side alone"
        if index is not None and not np.array_equal(index, self.index.numpy()):
            return "indices"
        return None

    def tolerances(self):
        """Bounds of values and gradient, from what rounds on the two sides.

        Maxima, their indices and the sums of their whole cotangents are exact. A sum of
        n numbers in another order differs by at most n roundings of the sum of their
        magnitudes, twice, and a few more come from the division. A norm adds a power
        and a root on each side, each of a few roundings, and the power multiplies the
        relative error of its argument by p. Narrow floats add up in float32 and round
        once, except in the gradients of PyTorch's means and in its
        `adaptive_avg_pool3d`.
        """
        eps = float(jnp.finfo(self.dtype).eps)
        wide = min(eps, float(jnp.finfo("float32").eps))
        if self.op == "adaptive_avg_pool3d":
            wide = eps
        sizes = self.config["shape"][-self.nd :]
        taps = math.prod(spread(self.args.get("kernel_size", 1), self.nd))
        if self.family == "adaptive_avg_pool":
            taps = math.prod(sizes)
        roundings = 2 * taps + 8
        if self.family == "lp_pool":
            p = self.args["norm_type"]
            roundings *= 4 * (p if math.isfinite(p) else 1)
        values = wide * roundings * np.abs(self.value_scale)
        values += (eps if eps > wide else 0) * np.abs(self.values)
        return values, eps * roundings * np.abs(self.gradient_scale)


def as_torch(x):
    if x.dtype == np.int32:
        return torch.from_numpy(x.astype(np.int64))
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(x.astype(np.float32)).bfloat16()
    return torch.from_numpy(x.copy())


def from_torch(x):
    return x.detach().double().numpy()


def last_of_each(index, nd):
    """1 where an index is the last of its value in its plane, else 0."""
    index = np.asarray(index)
    mask = np.zeros(index.shape)
    planes = index.reshape(-1, math.prod(index.shape[-nd:]))
    for plane, out in zip(planes, mask.reshape(planes.shape), strict=True):
        out[list({value: place for place, value in enumerate(plane)}.values())] = 1
    return mask


def check(configs):
    """Runs configurations together; returns (line, complaint) pairs and counts."""
    complaints, counts = [], {"compared": 0, "refused": 0, "skipped": 0}
    for wide in (False, True):
        chosen = [c for c in configs if (c["dtype"] == "float64") == wide]
        jax.config.update("jax_enable_x64", wide)
        cases = [Case(c) for c in chosen]
        for case in cases:
            counts["refused"] += case.refused
            counts["skipped"] += case.skipped
            if case.refused and (complaint := case.refusal()):
                complaints.append((case.line(), complaint))
        cases = [c for c in cases if not (c.refused or c.skipped)]
        counts["compared"] += len(cases)
        for case, results in zip(cases, together(cases), strict=True):
            if isinstance(results, Exception):
                complaint = f"{type(results).__name__}: {results}"
            else:
                complaint = case.compare(results)
            if complaint:
                complaints.append((case.line(), complaint))
    return complaints, counts


def together(cases):
    """The results of all cases; an exception stands for those of the one it is of."""
    if not cases:
        return []

    def program(inputs, cotangents):
        triples = zip(cases, inputs, cotangents, strict=True)
        return [case.apply(i, g) for case, i, g in triples]

    arguments = [c.inputs for c in cases], [c.cotangent for c in cases]
    try:
        run = jax.jit(program, compiler_options=QUICKLY)
        return jax.device_get(run(*arguments))
    except Exception as error:
        if len(cases) == 1:
            return [error]
    return [result for case in cases for result in together([case])]


def chunk(seed, start, stop):
    return check([drawn(seed, number) for number in range(start, stop)])


def sweep(seed, count, jobs=1, report=lambda line: None):
    """Checks `count` configurations; returns complaints and counts, also when stopped.

    `report` gets a line for each mismatch and, now and then, one about the progress.
    """
    complaints, totals = [], {"compared": 0, "refused": 0, "skipped": 0}
    begin = shown = time.monotonic()
    spans = [(n, min(n + CHUNK, count)) for n in range(0, count, CHUNK)]
    try:
        for done, (found, counts) in enumerate(chunks(seed, spans, jobs), 1):
            for line, complaint in found:
                report(
                    f"MISMATCH {complaint}\n  {sys.executable} "
                    f"tests/parity_sweep.py --config '{line}'"
                )
            complaints += found
            totals = {name: n + counts[name] for name, n in totals.items()}
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                rate = min(done * CHUNK, count) / (shown - begin)
                report(summary(seed, totals, complaints, f", {rate:.0f}/s of {count}"))
    except KeyboardInterrupt:
        report("interrupted: what was done so far")
    return complaints, totals


def chunks(seed, spans, jobs):
    if jobs == 1:
        yield from (chunk(seed, *span) for span in spans)
        return
    context = multiprocessing.get_context("spawn")
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    pool = concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=ignore)
    try:
        tasks = [pool.submit(chunk, seed, *span) for span in spans]
        for task in concurrent.futures.as_completed(tasks):
            yield task.result()
    finally:
        pool.shutdown(cancel_futures=True)


def summary(seed, totals, complaints, more=""):
    counts = ", ".join(f"{n} {name}" for name, n in totals.items())
    return f"seed {seed}: {counts}, {len(complaints)} mismatches{more}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--configs", type=int, default=28000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--config", type=json.loads, help="run this one alone")
    args = parser.parse_args()
    if args.config:
        complaints, counts = check([args.config])
        print(counts, *(c for _, c in complaints), sep="\n")
    else:
        begin = time.monotonic()
        show = functools.partial(print, flush=True)
        complaints, totals = sweep(args.seed, args.configs, args.jobs, show)
        seconds = time.monotonic() - begin
        rate = sum(totals.values()) / seconds
        more = f", {seconds:.0f} s, {rate:.1f} configurations/s"
        print(summary(args.seed, totals, complaints, more))
    sys.exit(bool(complaints))


torch.set_num_threads(1)

if __name__ == "__main__":
    main()
