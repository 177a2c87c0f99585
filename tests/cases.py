"""The rows of docs/cases.md: what someone reported somewhere, and the right value.

A report about pooling, of jaxpool or of another library, becomes a `Case`: a small
call, the value that is right, and where it comes from. `test_cases.py` makes the calls.
`python tests/cases.py` prints the page, `python tests/cases.py --write` writes it.

To add one, write a row into the section that it belongs to. The right value comes from
the formula, by hand or in NumPy, and never from what the call printed.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cases.md"


@dataclass(frozen=True)
class Case:
    """One report.

    Attributes:
      source: threads as `name#number`, of the repositories in `REPOSITORIES`, or in
        words where something was found otherwise.
      report: what was wrong there, or asked for, in one line.
      call: Python, whose last expression has the value. `test_cases.py` says which
        names there are.
      right: the value, an expression of NumPy alone; or the error of what is refused.
      needs: a package without which the call is skipped.
    """

    source: str
    report: str
    call: str
    right: str
    needs: str = ""


REPOSITORIES = {
    "Theano": "Theano/Theano",
    "candle": "huggingface/candle",
    "coremltools": "apple/coremltools",
    "dm-haiku": "google-deepmind/dm-haiku",
    "EmbedAnything": "StarlightSearch/EmbedAnything",
    "equinox": "patrick-kidger/equinox",
    "espnet": "espnet/espnet",
    "flax": "google/flax",
    "haliax": "marin-community/haliax",
    "jax": "jax-ml/jax",
    "jax-mps": "tillahoffmann/jax-mps",
    "keras": "keras-team/keras",
    "ml-commons": "opensearch-project/ml-commons",
    "mlx": "ml-explore/mlx",
    "mxnet": "apache/mxnet",
    "NeMo": "NVIDIA-NeMo/NeMo",
    "onnx": "onnx/onnx",
    "onnxruntime": "microsoft/onnxruntime",
    "peft": "huggingface/peft",
    "pytorch": "pytorch/pytorch",
    "pytorch-xla": "pytorch/xla",
    "rten": "robertknight/rten",
    "sentence-transformers": "huggingface/sentence-transformers",
    "sherpa-onnx": "k2-fsa/sherpa-onnx",
    "tensorflow": "tensorflow/tensorflow",
    "torch-mlir": "llvm/torch-mlir",
    "torchax": "google/torchax",
    "xla": "openxla/xla",
}

NOT_A_NUMBER = [
    Case(
        "pytorch#7645, tensorflow#2501, Theano#3060, xla#21461",
        "a NaN is lost in a maximum, or becomes the lowest finite value",
        "x = jnp.array([nan, 1, 1, nan, nan, nan, 2, 3])[:, None]; "
        "jp.max_pool(x, (2,), (2,))[:, 0]",
        "[nan, nan, nan, 3]",
    ),
    Case(
        "tensorflow#125965",
        "of identical channels with a NaN some give NaN, and others pass it over",
        "x = jnp.tile(jnp.array([[1], [nan], [3], [2]]), 5); "
        "jp.max_pool(x, (2,), (2,))",
        "[[nan] * 5, [3] * 5]",
    ),
    Case(
        "jaxlib 0.10.2 and 0.12.0",
        "CPU: every NaN is lost in windows that do not overlap, from 4,096 elements on",
        "jax.jit(lambda x: jp.max_pool(x, (2,), (2,)))(jnp.full((8192, 1), nan))",
        "np.full((4096, 1), nan)",
    ),
    Case(
        "tensorflow#118673",
        "the gradient of a maximum that is NaN is dropped, or goes to another element",
        "x = jnp.array([1, nan, 3, 4])[:, None]; "
        "jax.grad(lambda x: jp.max_pool(x, (4,)).sum())(x)[:, 0]",
        "[0, 1, 0, 0]",
    ),
    Case(
        "pytorch#1466, pytorch#20465",
        "windows of nothing but -inf have the index -1, which is written to",
        "jp.max_pool_with_argmax(jnp.full((4, 1), -inf), (2,), (2,))",
        "([[-inf], [-inf]], [[0], [2]])",
    ),
    Case(
        "pytorch#114216",
        "a dilated window in the padding alone has an index outside of the input",
        "compat.max_pool2d(jnp.ones((1, 1, 2)), 2, 1, 1, 2, return_indices=True)",
        "([[[-inf, -inf]]], [[[-1, -1]]])",
    ),
]

MAXIMA = [
    Case(
        "tensorflow#4886, tensorflow#51682, Theano#5404",
        "who of equal elements gets the gradient differs between implementations",
        "jax.grad(lambda x: jp.max_pool(x, (3,)).sum())(jnp.zeros((3, 1)))[:, 0]",
        "[1, 0, 0]",
    ),
    Case(
        "jax#38885",
        "bfloat16: the gradient of a maximum of many equal elements does not add up",
        "g = jax.grad(lambda x: jp.global_max_pool(x).sum())"
        "(jnp.ones((1, 300, 1), jnp.bfloat16)); (g[0, 0, 0], jnp.abs(g).sum())",
        "(1, 1)",
    ),
    Case(
        "jax#3793, pytorch-xla#534, jax-mps#72",
        "a dilated maximum has no gradient",
        "x = jnp.array([3.0, 1, 2, 5])[:, None]; "
        "jax.grad(lambda x: jp.max_pool(x, (2,), window_dilation=2).sum())(x)[:, 0]",
        "[1, 0, 0, 1]",
    ),
    Case(
        "pytorch#33086",
        "maxima of integers are not implemented",
        "x = jnp.array([-128, -100, 7, 5], jnp.int8)[:, None]; "
        "jp.max_pool(x, (2,), (2,))[:, 0]",
        "[-100, 7]",
    ),
    Case(
        "pytorch#33086",
        "maxima of booleans are not implemented",
        "x = jnp.array([False, False, True, False])[:, None]; "
        "jp.max_pool(x, (2,), (2,))[:, 0]",
        "[False, True]",
    ),
    Case(
        "pytorch#33382",
        "that padding of a maximum is -inf, and not 0, is said nowhere",
        "x = jnp.array([-1.0, -2])[:, None]; "
        "jp.max_pool(x, (2,), (1,), ((1, 1),))[:, 0]",
        "[-1, -1, -2]",
    ),
    Case(
        "torchax#32",
        "a maximum that returns indices has no gradient",
        "x = jnp.array([1.0, 2, 4, 3])[:, None]; "
        "jax.grad(lambda x: jp.max_pool_with_argmax(x, (2,), (2,))[0].sum())(x)[:, 0]",
        "[0, 1, 1, 0]",
    ),
    Case(
        "jax#9837",
        "vmap of a pool of values and indices fails",
        "x = jnp.array([[1.0, 2, 4, 3], [5, 0, 0, 6]])[..., None]; "
        "jax.vmap(lambda x: jp.max_pool_with_argmax(x, (2,), (2,))[1])(x)[..., 0]",
        "[[1, 2], [0, 3]]",
    ),
    Case(
        "jax#274, jax#629",
        "no derivatives of second order of a maximum",
        "f = lambda x: (jp.max_pool(x[:, None], (2,), (2,)) ** 3).sum(); "
        "jax.hessian(f)(jnp.array([1.0, 2, 4, 3]))",
        "np.diag([0, 6 * 2, 6 * 4, 0])",
    ),
    Case(
        "jax#1212, jax#7815",
        "a pool with a reducer of one's own has no gradient under `jit`",
        "f = lambda x: jp.pool(x[:, None], 1.0, jax.lax.mul, (2,), (2,)).sum(); "
        "jax.jit(jax.grad(f))(jnp.array([2.0, 3, 4, 5]))",
        "[3, 2, 5, 4]",
    ),
    Case(
        "jax#10834",
        "an array without axes for batch and channels is refused",
        "jp.max_pool(jnp.array([1.0, 3, 2]), (2,), axis=0)",
        "[3, 3]",
    ),
    Case(
        "flax#4233",
        "GPU: the gradient of a maximum cannot be had deterministically",
        "f = jax.grad(lambda x: jp.max_pool(x, (2, 2), (2, 2)).sum()); "
        "'scatter' in jax.jit(f).lower(jnp.ones((4, 4, 1))).as_text()",
        "False",
    ),
    Case(
        "pytorch#103785",
        "indices are int64, which costs memory and time",
        "jp.max_pool_with_argmax(jnp.ones((2, 1)), (2,))[1].dtype.name",
        "'int32'",
    ),
    Case(
        "tensorflow#2169, equinox#894",
        "there is nothing that undoes a maximum",
        "v, i = jp.max_pool_with_argmax(jnp.array([1.0, 5, 2, 3])[:, None], (2,), "
        "(2,)); jp.max_unpool(v, i, (4,))[:, 0]",
        "[0, 5, 0, 3]",
    ),
    Case(
        "pytorch#80204, pytorch#80827",
        "values with one index in common: one is written, and all get its gradient",
        "v, i = jnp.array([[2.0], [3.0]]), jnp.array([[1], [1]]); "
        "(jp.max_unpool(v, i, (3,))[:, 0], "
        "jax.grad(lambda v: jp.max_unpool(v, i, (3,)).sum())(v)[:, 0])",
        "([0, 3, 0], [0, 1])",
    ),
    Case(
        "onnxruntime#27903, pytorch#144836",
        "an index outside of the output is written to, or ends the process",
        "jp.max_unpool(jnp.array([[7.0]]), jnp.array([[9]]), (3,))[:, 0]",
        "[0, 0, 0]",
    ),
]

MEANS = [
    Case(
        "candle#3719, mlx#3909",
        "float16: a mean adds up in float16, and is inf",
        "jp.avg_pool(jnp.full((32, 32, 1), 100, jnp.float16), (32, 32))[0, 0]",
        "[100]",
    ),
    Case(
        "Flax, Equinox, Haiku, Keras",
        "bfloat16: the mean of 64 x 64 numbers of 0.1 is 0.03",
        "jp.avg_pool(jnp.full((64, 64, 1), 0.1, jnp.bfloat16), (64, 64))[0, 0]",
        "[205 / 2**11]",  # the number of eight bits next to 0.1
    ),
    Case(
        "Flax, Equinox, Haiku, Keras",
        "int8: the mean of four times 100 is -28",
        "jp.avg_pool(jnp.full((4, 1), 100, jnp.int8), (4,))",
        "[[100]]",
    ),
    Case(
        "Flax 0.12",
        "a mean of bfloat16 that leaves padding out is float32",
        "x = jnp.ones((3, 1), jnp.bfloat16); "
        "jp.avg_pool(x, (2,), padding='SAME', count_include_pad=False).dtype.name",
        "'bfloat16'",
    ),
    Case(
        "flax#2401, flax#2448",
        "whether a mean counts its padding is not said",
        "jp.avg_pool(jnp.ones((3, 3, 1)), (3, 3), (1, 1), 'SAME')[..., 0]",
        "np.array([[4, 6, 4], [6, 9, 6], [4, 6, 4]]) / 9",
    ),
    Case(
        "tensorflow#45579, keras#18452",
        "whether a mean counts its padding differs between backends",
        "jp.avg_pool(jnp.ones((3, 3, 1)), (3, 3), (1, 1), 'SAME', "
        "count_include_pad=False)[..., 0]",
        "np.ones((3, 3))",
    ),
    Case(
        "pytorch#82266",
        "a mean of complex numbers ends the process",
        "jp.avg_pool(jnp.array([1 + 1j, 3 - 1j])[:, None], (2,))",
        "[[2]]",
    ),
    Case(
        "tensorflow#12293",
        "GPU: means of large binary images are 0 or NaN from windows of 7 on",
        "x = jnp.zeros((64, 64, 1)).at[30, 30].set(1); "
        "y = jp.avg_pool(x, (9, 9)); (y.min(), y.max(), (y > 0).sum())",
        "(0, 1 / 81, 81)",
    ),
    Case(
        "jax#7860",
        "the gradient of a windowed sum is an invalid program",
        "jax.grad(lambda x: jp.sum_pool(x, (2,)).sum())(jnp.ones((3, 1)))[:, 0]",
        "[1, 2, 1]",
    ),
    Case(
        "tensorflow#62422",
        "a mean has no derivative of forward mode",
        "x = jnp.array([1.0, 3, 5, 9])[:, None]; "
        "jax.jvp(lambda x: jp.avg_pool(x, (2,), (2,)), (x,), (x,))[1][:, 0]",
        "[2, 7]",
    ),
    Case(
        "xla#48714",
        "CPU: what spreads a gradient over a large array is compiled wrongly",
        "x = jnp.ones((64, 128, 1)); "
        "jax.grad(lambda x: jp.avg_pool(x, (1, 1), (2, 2)).sum())(x)[:3, :3, 0]",
        "[[1, 0, 1], [0, 0, 0], [1, 0, 1]]",
    ),
    Case(
        "pytorch#184037",
        "the norm of negative numbers is NaN for an odd power",
        "jp.lp_pool(jnp.array([[-1.0], [-2.0]]), (2,), p=3.0)",
        "[[9 ** (1 / 3)]]",
    ),
    Case(
        "pytorch#6765",
        "the gradient of a norm is NaN at 0",
        "jax.grad(lambda x: jp.lp_pool(x, (2,), p=2.0).sum())(jnp.zeros((2, 1)))",
        "[[0], [0]]",
    ),
    Case(
        "pytorch#91593, pytorch#134841",
        "a norm of order 0 divides by zero",
        "jp.lp_pool(jnp.ones((2, 1)), (2,), p=0.0)",
        "ValueError",
    ),
    Case(
        "keras#16702",
        "there is no generalized mean",
        "jp.gem_pool(jnp.array([[1.0], [2.0]]), (2,), p=3.0)",
        "[[((1 + 8) / 2) ** (1 / 3)]]",
    ),
]

SIZES = [
    Case(
        "dm-haiku#76, dm-haiku#125",
        "a window (2, 2) pools width and channels",
        "jp.max_pool(jnp.ones((1, 8, 8, 8)), (2, 2), (2, 2)).shape",
        "(1, 4, 4, 8)",
    ),
    Case(
        "Flax 0.12",
        "padding in numbers fails where there are several batch axes",
        "x = jnp.ones((2, 3, 4, 4, 1)); "
        "jp.max_pool(x, (2, 2), (2, 2), ((1, 1), (1, 1))).shape",
        "(2, 3, 3, 3, 1)",
    ),
    Case(
        "mxnet#12594",
        "channels first and last, in any number of dimensions",
        "jp.avg_pool(jnp.arange(4.0).reshape(1, 2, 2), (2,), axis=-1)",
        "[[[0.5], [2.5]]]",
    ),
    Case(
        "pytorch#3298, pytorch#71362, pytorch#152156",
        "padding of two sizes is not possible",
        "x = jnp.array([1.0, 2, 3])[:, None]; "
        "jp.max_pool(x, (2,), (2,), ((1, 0),))[:, 0]",
        "[1, 3]",
    ),
    Case(
        "pytorch#103423",
        "padding of more than half of the window is refused",
        "x = jnp.array([1.0, 2, 3])[:, None]; "
        "jp.max_pool(x, (3,), (3,), ((2, 1),))[:, 0]",
        "[1, 3]",
    ),
    Case(
        "pytorch#3867",
        "there is no padding SAME",
        "jp.max_pool(jnp.arange(5.0)[:, None], (2,), (2,), 'SAME')[:, 0]",
        "[1, 3, 4]",
    ),
    Case(
        "rten#1416",
        "the size in PyTorch's documentation of MaxPool1d is rounded up twice",
        "jp.max_pool(jnp.ones((4, 1)), (2,), (2,), ceil_mode=True).shape",
        "(2, 1)",
    ),
    Case(
        "equinox#175",
        "with sizes rounded up some windows raise",
        "jp.max_pool(jnp.arange(5.0)[:, None], (2,), (2,), ((1, 1),), "
        "ceil_mode=True)[:, 0]",
        "[0, 2, 4]",
    ),
    Case(
        "pytorch-xla#746, onnxruntime#16203, coremltools#2772, torch-mlir#4144",
        "with sizes rounded up a mean divides by what lies behind the padding",
        "x = jnp.array([1.0, 2, 3, 4])[:, None]; "
        "jp.avg_pool(x, (3,), (2,), ((1, 1),), ceil_mode=True)[:, 0]",
        "[(0 + 1 + 2) / 3, (2 + 3 + 4) / 3, (4 + 0) / 2]",
    ),
    Case(
        "pytorch#198119",
        "the gradient of such a mean divides by another number than the mean",
        "f = lambda x: jp.avg_pool(x, (2,), (2,), ceil_mode=True).sum(); "
        "jax.grad(f)(jnp.ones((5, 1)))[:, 0]",
        "[0.5, 0.5, 0.5, 0.5, 1]",
    ),
    Case(
        "onnxruntime#6543, onnx#4958",
        "a mean is NaN where a window, with sizes rounded up, begins behind the input",
        "jp.avg_pool(jnp.ones((8, 8, 1)), (3, 3), (3, 4), ceil_mode=True, "
        "count_include_pad=False)",
        "np.ones((3, 2, 1))",
    ),
    Case(
        "flax#4494, flax#5495",
        "a window that is an int fails without a word that helps",
        "jp.max_pool(jnp.ones((1, 4, 4, 1)), 2)",
        "ValueError",
    ),
    Case(
        "flax#5495",
        "nor is it known what an int would stand for",
        "jp.max_pool(jnp.ones((1, 4, 4, 1)), 2, 2, axis=(1, 2)).shape",
        "(1, 2, 2, 1)",
    ),
    Case(
        "jax#3973, jax#10315",
        "a window larger than the input gives sizes of 0 or less",
        "jp.max_pool(jnp.ones((1, 2, 2, 1)), (3, 3))",
        "ValueError",
    ),
    Case(
        "keras#19013, tensorflow#46994",
        "a window of -5 or 0 gives NaN",
        "jp.avg_pool(jnp.ones((1, 1, 1)), (-5,))",
        "ValueError",
    ),
    Case(
        "pytorch#50967, pytorch#116323",
        "a window without entries ends the process",
        "jp.max_pool(jnp.ones((1, 4, 1)), ())",
        "ValueError",
    ),
    Case(
        "pytorch#136716",
        "a dilation of 0 ends the process",
        "jp.max_pool(jnp.ones((4, 1)), (2,), window_dilation=0)",
        "ValueError",
    ),
    Case(
        "xla#48719",
        "negative padding ends the process",
        "jp.max_pool(jnp.ones((1, 4, 1)), (1,), (1,), ((-1, 0),))",
        "ValueError",
    ),
    Case(
        "pytorch#50960, pytorch#91553",
        "an output size beyond what an int32 holds ends the process",
        "jp.adaptive_max_pool(jnp.ones((4, 1)), (2**62,))",
        "ValueError",
    ),
    Case(
        "jax#11804",
        "a strided window over an axis of symbolic size fails to export",
        "n = jax.export.symbolic_shape('n, 1'); "
        "f = jax.jit(lambda x: jp.max_pool(x, (2,), (2,))); "
        "spec = jax.ShapeDtypeStruct(n, jnp.float32); "
        "jax.export.export(f)(spec).call(jnp.arange(5.0)[:, None])[:, 0]",
        "[1, 3]",
    ),
    Case(
        "flax#3890",
        "pixels of a sphere (HEALPix, nested) are to be pooled by four",
        "jp.avg_pool(jnp.arange(8.0)[:, None], (4,), (4,))[:, 0]",
        "[1.5, 5.5]",
    ),
]

ADAPTIVE = [
    Case(
        "equinox#641",
        "bins are not PyTorch's where sizes do not divide",
        "jp.adaptive_avg_pool(jnp.arange(7.0)[:, None], (3,))[:, 0]",
        "[1, 3, 5]",
    ),
    Case(
        "equinox#641, keras#19013",
        "more bins than elements divide by zero",
        "jp.adaptive_avg_pool(jnp.array([[1.0], [3.0]]), (3,))[:, 0]",
        "[1, 2, 3]",
    ),
    Case(
        "keras#21813",
        "bins from quotients in float32: wrong or NaN for 7 of 14 and 7 of 224",
        "f = jax.jit(lambda x: jp.adaptive_avg_pool(x, (7,))); "
        "(f(jnp.arange(14.0)[:, None])[:, 0], f(jnp.arange(224.0)[:, None])[:, 0])",
        "(np.arange(7) * 2 + 0.5, np.arange(7) * 32 + 15.5)",
    ),
    Case(
        "pytorch#79332, haliax#50",
        "how adaptive pooling lays its bins is said nowhere, and hard to do in XLA",
        "f = lambda x: jp.adaptive_avg_pool(x, (3,)).sum(); "
        "jax.grad(f)(jnp.ones((7, 1)))[:, 0]",
        "np.array([1, 1, 2, 1, 2, 1, 1]) / 3",
    ),
    Case(
        "pytorch#50198, pytorch#131972",
        "gradients of adaptive pools are not deterministic",
        "f = jax.grad(lambda x: jp.adaptive_max_pool(x, (3,)).sum()); "
        "'scatter' in jax.jit(f).lower(jnp.ones((7, 1))).as_text()",
        "False",
    ),
    Case(
        "pytorch#1988",
        "there is no adaptive pooling in three dimensions",
        "jp.adaptive_max_pool(jnp.arange(16.0).reshape(2, 4, 2, 1), (1, 2, 1)).ravel()",
        "[11, 15]",
    ),
    Case(
        "pytorch#78868",
        "an output of size 0 ends the process in the gradient",
        "jp.adaptive_avg_pool(jnp.ones((4, 1)), (0,))",
        "ValueError",
    ),
    Case(
        "pytorch#141538, pytorch#183249",
        "fractional windows are others when compiled",
        "f = lambda x: jp.fractional_max_pool(x, (3,), window_shape=(2,), "
        "samples=jnp.array([0.3])); "
        "x = jnp.arange(7.0)[:, None]; (f(x)[:, 0], jax.jit(f)(x)[:, 0])",
        "([1, 4, 6],) * 2",  # starts 0, trunc(1.3 * 2.5) = 3 and 5
    ),
    Case(
        "CVE-2021-29550, CVE-2022-21735",
        "a fractional ratio below 1 divides by zero",
        "jp.fractional_max_pool(jnp.ones((4, 4, 1)), ratio=(0.5, 2.0), "
        "deterministic=True)",
        "ValueError",
    ),
    Case(
        "timm's `SelectAdaptivePool2d`",
        "its default is 'fast', and checkpoints say 'fastcatavgmax'",
        "x = jnp.array([[0.0, 1], [2, 5]])[None, ..., None]; "
        "[jp.select_adaptive_pool(x, pool_type=t, flatten=True) "
        "for t in ('fast', 'fastmax', 'fastavgmax', 'fastcatavgmax')]",
        "([[2]], [[5]], [[3.5]], [[2, 5]])",
    ),
    Case(
        "timm's `BlurPool2d`",
        "it pads by half of size and stride, on both sides",
        "jp.blur_pool(jnp.array([0.0, 0, 8, 0, 0])[:, None], 3, convention='timm', "
        "axis=0)[:, 0]",
        "[8 / 4, 8 / 2, 8 / 4]",
    ),
]

TOKENS = [
    Case(
        "sentence-transformers#3208, peft#3620, ml-commons#4744",
        "the last token of a row that is padded on the left is taken for padding",
        "x = jnp.array([[[9.0], [1], [2]], [[3], [4], [9]]]); "
        "m = jnp.array([[False, True, True], [True, True, False]]); "
        "jp.sequence_pool(x, where=m, mode='last')[:, 0]",
        "[2, 4]",
    ),
    Case(
        "EmbedAnything#210",
        "a mean divides by the tokens of the whole batch",
        "x = jnp.array([[[1.0], [3], [9]], [[5], [9], [9]]]); "
        "jp.sequence_pool(x, lengths=jnp.array([2, 1]))[:, 0]",
        "[2, 5]",
    ),
    Case(
        "keras#3678, keras#20165, tensorflow#31636",
        "a masked mean fails under `jit`, or where sizes are not known",
        "x = jnp.array([[[1.0], [3], [9]]]); m = x < 9; "
        "jax.jit(lambda x, m: jp.global_avg_pool(x, where=m))(x, m)",
        "[[2]]",
    ),
    Case(
        "Keras 3.15",
        "the mean of a row that is hidden as a whole is NaN, and so is its gradient",
        "m = jnp.zeros((1, 3, 1), bool); f = lambda x: jp.global_avg_pool(x, where=m); "
        "x = jnp.ones((1, 3, 1)); (f(x), jax.grad(lambda x: f(x).sum())(x)[0])",
        "([[0]], [[0], [0], [0]])",
    ),
    Case(
        "keras#3777",
        "a global maximum takes no mask",
        "x = jnp.array([[[1.0], [3], [9]]]); m = x < 9; jp.global_max_pool(x, where=m)",
        "[[3]]",
    ),
    Case(
        "NeMo#3827, NeMo#5401",
        "statistics of a batch of lengths include the padding",
        "x = jnp.array([[[1.0], [3], [9]]]); m = x < 9; jp.statistics_pool(x, where=m)",
        "[[2, 1]]",
    ),
    Case(
        "sherpa-onnx#2844",
        "rounding makes a variance negative, and its root NaN",
        "x = jnp.full((1, 7, 1), 10000.1); y = jp.statistics_pool(x); "
        "(jnp.isfinite(y).all(), y[0, 1] < 0.01)",
        "(True, True)",
    ),
    Case(
        "espnet#6231",
        "attentive statistics attend to the padding",
        "x = jnp.array([[[1.0], [3], [9]]]); m = x[..., 0] < 9; "
        "w = {'hidden_kernel': jnp.ones((1, 1)), 'score_kernel': jnp.zeros((1, 1))}; "
        "jp.attentive_statistics_pool(x, w, where=m)",
        "[[2, 1]]",
    ),
    Case(
        "SpeechBrain's `AttentiveStatisticsPooling`",
        "weights of ECAPA-TDNN want a ReLU in front of the tanh",
        "w = {'hidden_kernel': jnp.ones((1, 1)), "
        "'score_kernel': jnp.full((1, 1), np.log(3) / np.tanh(1))}; "
        "jp.attentive_statistics_pool(jnp.array([[[-1.0], [1]]]), w, "
        "hidden_fn=jax.nn.relu)",
        # Scores of 0 and log 3 are weights of 1/4 and 3/4.
        "[[-1 / 4 + 3 / 4, np.sqrt(1 - 0.5**2)]]",
    ),
]

TRANSFORMS = [
    Case(
        "scenic's masked layers",
        "padding of more than the window is refused, where Flax's mean is a finite 0",
        "jp.avg_pool(jnp.ones((2, 1)), (2,), (2,), ((4, 0),))[:, 0]",
        "[0, 0, 1]",
    ),
    Case(
        "Flax under `jax.export`",
        "a window as large as an axis of symbolic size is refused",
        "(n,) = jax.export.symbolic_shape('n'); "
        "f = jax.jit(lambda x: jp.avg_pool(x, x.shape[:1])); "
        "f = jax.export.export(f)(jax.ShapeDtypeStruct((n, 1), jnp.float32)); "
        "f.call(jnp.array([[1.0], [2], [6]]))",
        "[[3]]",
    ),
    Case(
        "`jax.shard_map`",
        "the gradient to what all devices share lacks the sum over devices",
        "P = jax.sharding.PartitionSpec; "
        "mesh = jax.make_mesh((2,), ('d',), axis_types=(jax.sharding.AxisType.Auto,)); "
        "f = lambda x, g: jp.exp_weighted_pool(x, 2, logits=g, axis=1); "
        "f = jax.shard_map(f, mesh=mesh, in_specs=(P('d'), P()), out_specs=P('d')); "
        "x = jnp.array([[[1.0], [3]], [[5], [1]]]); "
        "jax.grad(lambda g: f(x, g).sum())(jnp.zeros((1, 2, 1)))[0, :, 0]",
        # Of a mean of two, each logit moves it by a quarter of their difference.
        "[(1 - 3) / 4 + (5 - 1) / 4, (3 - 1) / 4 + (1 - 5) / 4]",
    ),
    Case(
        "`jax.experimental.jet`",
        "Taylor series do not go through a mean",
        "from jax.experimental.jet import jet; "
        "f = lambda x: jp.avg_pool(x, (2,), (2,))[:, 0]; "
        "jet(f, (jnp.array([[1.0], [3]]),), ([jnp.array([[2.0], [6]])],))",
        "([2], [[4]])",
    ),
]

CASES = {
    "NaN and infinity": NOT_A_NUMBER,
    "Maxima, indices, unpooling": MAXIMA,
    "Means and norms": MEANS,
    "Windows, padding, sizes": SIZES,
    "Bins": ADAPTIVE,
    "Tokens and masks": TOKENS,
    "Transforms": TRANSFORMS,
}

INTRODUCTION = """\
# Cases

What users and maintainers reported of pooling, of jaxpool or elsewhere, each as a small
call with the value that is right. Every call is a test. The threads are those in which
something was wrong, or asked for, once; many are solved where they were opened.

`jp` is jaxpool, `compat` is `jaxpool.compat.torch`. Each row stands in
`tests/cases.py`, of which `python tests/cases.py --write` makes this page; a number
that you report becomes one.
"""


def linked(source: str) -> str:
    """The source, with a link for each thread."""

    def link(match: re.Match[str]) -> str:
        repository = REPOSITORIES[match[1]]
        return f"[{match[0]}](https://github.com/{repository}/issues/{match[2]})"

    return re.sub(r"([\w-]+)#(\d+)", link, source)


def page() -> str:
    """The text of docs/cases.md."""
    lines = [INTRODUCTION]
    for title, cases in CASES.items():
        lines += [f"## {title}", "", "| from | what was wrong | call | right |"]
        lines.append("|---|---|---|---|")
        for case in cases:
            code = [f"`{text}`".replace("|", r"\|") for text in (case.call, case.right)]
            lines.append(
                f"| {linked(case.source)} | {case.report} | {' | '.join(code)} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page())
