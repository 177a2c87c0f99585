"""The rows of docs/migration.md: another framework's pool, and jaxpool's line for it.

Both sides of a row are expressions, which `test_migration.py` evaluates on the same
numbers wherever the other framework is installed. `python tests/migration.py` prints
the page, `python tests/migration.py --write` writes it.

In an expression `{n}` stands for the number of spatial axes, 1 to 3; `{k}` is
`(2,) * n` and `{last}` are the last n axes, both written out. Arrays are made in
`test_migration.py`.
"""

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "migration.md"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      theirs: an expression in the other framework.
      ours: the same in jaxpool.
      note: what a reader has to know.
      same: whether both give the same numbers; if not, the note says why.
      axes: the numbers of spatial axes that the row holds for, if it says `{n}`.
    """

    theirs: str
    ours: str
    note: str = ""
    same: bool = True
    axes: tuple[int, ...] = (1, 2, 3)

    def pairs(self):
        """Both expressions, for each number of spatial axes."""
        counts = self.axes if "{n}" in self.theirs else (2,)
        for n in counts:
            twos, last = ("2, " * n).rstrip(" "), ", ".join(map(str, range(-n, 0)))
            fill = {
                "n": n,
                "k": f"({twos if n == 1 else twos[:-1]})",
                "last": last,
            }
            yield n, self.theirs.format(**fill), self.ours.format(**fill)


MAX = "jp.max_pool(x{n}, {k}, {k}, axis=({last}))"
ARGMAX = "jp.max_pool_with_argmax(x{n}, {k}, {k}, axis=({last}))"
AVG = "jp.avg_pool(x{n}, {k}, {k}, ceil_mode=True, axis=({last}))"
LP = "jp.lp_pool(x{n}, {k}, {k}, p=2.0, axis=({last}))"
BINS = "jp.adaptive_avg_pool(x{n}, 3, axis=({last}))"
MAX_BINS = "jp.adaptive_max_pool(x{n}, 3, axis=({last}))"
ARG_BINS = "jp.adaptive_max_pool_with_argmax(x{n}, 3, axis=({last}))"
UNPOOL = "jp.max_unpool(v{n}, i{n}, s{n}, axis=({last}))"
FRACTIONAL = (
    "jp.fractional_max_pool(x{n}, 3, window_shape=2, samples=u{n}, axis=({last}))"
)
FRACTIONAL_INDEX = FRACTIONAL.replace("max_pool", "max_pool_with_argmax")
SIZE = "the unpooled size is said, not guessed"
DRAWN = "`samples` in the order of the axes, or `key=`"
SIGNED = "of magnitudes: for signed `x` PyTorch gives NaN, or a signed sum"

PYTORCH = [
    Row("nn.MaxPool{n}d(2)(x{n})", MAX),
    Row("F.max_pool{n}d(x{n}, 2)", MAX),
    Row("nn.MaxPool{n}d(2, return_indices=True)(x{n})", ARGMAX),
    Row("F.max_pool{n}d_with_indices(x{n}, 2)", ARGMAX),
    Row("nn.MaxUnpool{n}d(2)(v{n}, i{n})", UNPOOL, SIZE),
    Row("F.max_unpool{n}d(v{n}, i{n}, 2)", UNPOOL, SIZE),
    Row("nn.AvgPool{n}d(2, ceil_mode=True)(x{n})", AVG),
    Row("F.avg_pool{n}d(x{n}, 2, ceil_mode=True)", AVG),
    Row("nn.LPPool{n}d(2, 2)(x{n})", LP, SIGNED),
    Row("F.lp_pool{n}d(x{n}, 2, 2)", LP, SIGNED),
    Row("nn.AdaptiveAvgPool{n}d(3)(x{n})", BINS),
    Row("F.adaptive_avg_pool{n}d(x{n}, 3)", BINS),
    Row("nn.AdaptiveMaxPool{n}d(3)(x{n})", MAX_BINS),
    Row("F.adaptive_max_pool{n}d(x{n}, 3)", MAX_BINS),
    Row("nn.AdaptiveMaxPool{n}d(3, return_indices=True)(x{n})", ARG_BINS),
    Row("F.adaptive_max_pool{n}d_with_indices(x{n}, 3)", ARG_BINS),
    Row(
        "nn.FractionalMaxPool{n}d(2, 3, _random_samples=t{n})(x{n})",
        FRACTIONAL,
        DRAWN,
        axes=(2, 3),
    ),
    Row(
        "F.fractional_max_pool{n}d(x{n}, 2, 3, _random_samples=t{n})",
        FRACTIONAL,
        DRAWN,
        axes=(2, 3),
    ),
    Row(
        "F.fractional_max_pool{n}d_with_indices(x{n}, 2, 3, _random_samples=t{n})",
        FRACTIONAL_INDEX,
        DRAWN,
        axes=(2, 3),
    ),
]

SAME = "'SAME', count_include_pad=False"
KERAS = [
    Row("layers.MaxPooling{n}D(2)(x{n})", "jp.max_pool(x{n}, {k}, {k})"),
    Row("layers.MaxPool{n}D(2)(x{n})", "jp.max_pool(x{n}, {k}, {k})"),
    Row("ops.max_pool(x{n}, 2, 2)", "jp.max_pool(x{n}, {k}, {k})"),
    Row("layers.AveragePooling{n}D(2)(x{n})", "jp.avg_pool(x{n}, {k}, {k})"),
    Row("layers.AvgPool{n}D(2)(x{n})", "jp.avg_pool(x{n}, {k}, {k})"),
    Row(
        "ops.average_pool(x{n}, 2, 2, padding='same')",
        "jp.avg_pool(x{n}, {k}, {k}, 'SAME', count_include_pad=False)",
    ),
    Row("layers.GlobalMaxPooling{n}D()(x{n})", "jp.global_max_pool(x{n})"),
    Row("layers.GlobalMaxPool{n}D()(x{n})", "jp.global_max_pool(x{n})"),
    Row("layers.GlobalAveragePooling{n}D()(x{n})", "jp.global_avg_pool(x{n})"),
    Row("layers.GlobalAvgPool{n}D()(x{n})", "jp.global_avg_pool(x{n})"),
    Row(
        "layers.GlobalAveragePooling1D()(l1, mask=m1)",
        "jp.sequence_pool(l1, where=m1)",
        "a row without any element gives 0, not NaN",
    ),
    Row("layers.AdaptiveMaxPooling{n}D(3)(x{n})", "jp.adaptive_max_pool(x{n}, b{n})"),
    Row("ops.adaptive_max_pool(x{n}, 3)", "jp.adaptive_max_pool(x{n}, b{n})"),
    Row(
        "layers.AdaptiveAveragePooling{n}D(3)(x{n})",
        "jp.adaptive_avg_pool(x{n}, b{n})",
    ),
    Row("ops.adaptive_average_pool(x{n}, 3)", "jp.adaptive_avg_pool(x{n}, b{n})"),
]

TENSORFLOW = [
    Row("tf.nn.max_pool(x2, 2, 2, 'VALID')", "jp.max_pool(x2, p, p)"),
    Row(
        "tf.nn.avg_pool(x2, 2, 2, 'SAME')",
        "jp.avg_pool(x2, p, p, 'SAME', count_include_pad=False)",
        "SAME never counts its padding",
    ),
    Row("tf.nn.max_pool{n}d(x{n}, 2, 2, 'VALID')", "jp.max_pool(x{n}, {k}, {k})"),
    Row("tf.nn.avg_pool{n}d(x{n}, 2, 2, 'VALID')", "jp.avg_pool(x{n}, {k}, {k})"),
    Row(
        "tf.nn.pool(x2, p, 'MAX', dilations=p)",
        "jp.max_pool(x2, p, window_dilation=p)",
        "jaxpool takes strides and dilation together",
    ),
    Row(
        "tf.nn.max_pool_with_argmax(x2, 2, 2, 'VALID', output_dtype='int32')",
        "(jp.max_pool(x2, p, p), jp.convert_indices(jp.max_pool_with_argmax"
        "(x2, p, p)[1], (8, 9), target='tf'))",
        "`target='tf_batch'` with `include_batch_in_index`",
    ),
    Row(
        "tf.nn.fractional_max_pool(x2, 1.5, pseudo_random=True, key=key)[0]",
        "jp.fractional_max_pool(x2, ratio=1.5, key=key, axis=(1, 2))",
        "the same rule for sequences, other random numbers",
    ),
    Row(
        "tf.nn.fractional_avg_pool(x2, 1.5, overlapping=True, key=key)[0]",
        "jp.fractional_avg_pool(x2, ratio=1.5, key=key, mode='random', "
        "overlapping=True, axis=(1, 2))",
        "the same rule for sequences, other random numbers",
    ),
]

FLAX = [
    Row("linen.max_pool(x2, p, p)", "jp.max_pool(x2, p, p)", "the same arguments"),
    Row("linen.avg_pool(x2, p, p)", "jp.avg_pool(x2, p, p)", "the same arguments"),
    Row(
        "linen.pooling.min_pool(x2, p, p)",
        "jp.min_pool(x2, p, p)",
        "the same arguments",
    ),
    Row(
        "linen.pool(x2, 0.0, lax.add, p, p, 'VALID')",
        "jp.pool(x2, 0.0, lax.add, p, p, 'VALID')",
        "the same arguments, and a derivative for every function",
    ),
    Row("nnx.max_pool(x2, p, p)", "jp.max_pool(x2, p, p)", "the same arguments"),
    Row("nnx.min_pool(x2, p, p)", "jp.min_pool(x2, p, p)", "the same arguments"),
    Row("nnx.avg_pool(x2, p, p)", "jp.avg_pool(x2, p, p)", "the same arguments"),
    Row(
        "nnx.pool(x2, 0.0, lax.add, p, p, 'VALID')",
        "jp.pool(x2, 0.0, lax.add, p, p, 'VALID')",
        "the same arguments",
    ),
]

ADAPTIVE = "other bins (equinox#641): jaxpool's are PyTorch's"
EQUINOX = [
    Row("eqx.MaxPool{n}d(2, 2)(e{n})", "jp.max_pool(e{n}, {k}, {k}, axis=({last}))"),
    Row("eqx.AvgPool{n}d(2, 2)(e{n})", "jp.avg_pool(e{n}, {k}, {k}, axis=({last}))"),
    Row(
        "eqx.Pool(0.0, lax.add, 2, 2, 2)(e2)",
        "jp.sum_pool(e2, p, p, axis=(-2, -1))",
        "`jp.pool` for any function",
    ),
    Row(
        "eqx.AdaptiveAvgPool{n}d(4)(e{n})",
        "jp.adaptive_avg_pool(e{n}, 4, axis=({last}))",
        ADAPTIVE,
        same=False,
    ),
    Row(
        "eqx.AdaptiveMaxPool{n}d(4)(e{n})",
        "jp.adaptive_max_pool(e{n}, 4, axis=({last}))",
        ADAPTIVE,
        same=False,
    ),
    Row(
        "eqx.AdaptivePool(4, 2, jnp.max)(e2)",
        "jp.adaptive_max_pool(e2, 4, axis=(-2, -1))",
        ADAPTIVE,
        same=False,
    ),
]

CHANNELS = "Haiku reads a window of two entries as W and C (haiku#125)"
HAIKU = [
    Row(
        "hk.max_pool(x2, (2, 2, 1), (2, 2, 1), 'VALID')",
        "jp.max_pool(x2, p, p)",
        CHANNELS,
    ),
    Row(
        "hk.avg_pool(x2, (2, 2, 1), (2, 2, 1), 'SAME')",
        f"jp.avg_pool(x2, p, p, {SAME})",
        CHANNELS,
    ),
    Row("hk.MaxPool((2, 2, 1), (2, 2, 1), 'VALID')(x2)", "jp.max_pool(x2, p, p)"),
    Row("hk.AvgPool((2, 2, 1), (2, 2, 1), 'VALID')(x2)", "jp.avg_pool(x2, p, p)"),
]

NOT_COUNTED = "timm counts the zeros of its padding; TensorFlow does not"
WEIGHTS = "arrays by name in `params`; a module makes them"
TIMM = [
    Row(
        "timm.BlurPool2d(3, 3, 2)(x2)",
        "jp.blur_pool(x2, p, convention='timm', axis=(-2, -1))",
        "kornia's: `mode='constant'`",
    ),
    Row(
        "timm.median_pool.MedianPool2d(3, 1, 0)(x2)",
        "jp.median_pool(x2, (3, 3), axis=(-2, -1))",
        "with `same=True`: `jnp.pad` with mode 'reflect' before",
    ),
    Row("timm.LsePlus2d(10.0)(x2)", "jp.global_lse_pool(x2, r=10.0, axis=(-2, -1))"),
    Row("timm.LsePlus1d(10.0)(l1)", "jp.global_lse_pool(l1, r=10.0)"),
    Row(
        "timm.pool2d_same.MaxPool2dSame(3, 2)(x2)",
        "jp.max_pool(x2, (3, 3), p, 'SAME', axis=(-2, -1))",
    ),
    Row(
        "timm.AvgPool2dSame(3, 2)(x2)",
        "jp.avg_pool(x2, (3, 3), p, 'SAME', axis=(-2, -1))",
        NOT_COUNTED,
    ),
    Row(
        "timm.create_pool2d('max', 3, 2, padding='same')(x2)",
        "jp.max_pool(x2, (3, 3), p, 'SAME', axis=(-2, -1))",
    ),
    Row(
        "timm.AdaptiveAvgMaxPool2d(3)(x2)",
        "jp.adaptive_avgmax_pool(x2, 3, axis=(-2, -1))",
    ),
    Row(
        "timm.adaptive_avgmax_pool2d(x2, 3)",
        "jp.adaptive_avgmax_pool(x2, 3, axis=(-2, -1))",
    ),
    Row(
        "timm.SelectAdaptivePool2d(3, 'catavgmax')(x2)",
        "jp.select_adaptive_pool(x2, 3, pool_type='catavgmax', axis=(-2, -1))",
        "`feature_multiplier` is `feat_mult()`",
    ),
    Row(
        "timm.SelectAdaptivePool2d()(x2)",
        "jp.select_adaptive_pool(x2, pool_type='fast', axis=(-2, -1))",
        "timm's default, the mean; `fastmax`, `fastavgmax` and `fastcatavgmax` too",
    ),
    Row(
        "timm.select_adaptive_pool2d(x2, 'avg', 3)",
        "jp.select_adaptive_pool(x2, 3, pool_type='avg', axis=(-2, -1))",
    ),
    Row(
        "timm.global_pool_nlc(l1, 'avg', num_prefix_tokens=1)",
        "jp.sequence_pool(l1, mode='mean', num_prefix_tokens=1)",
        "modes `cls`, `mean`, `max`, `avgmax`",
    ),
    Row("timm.TestTimePoolHead", "jp.dense_head_pool", "the classifier is an argument"),
    Row("timm.apply_test_time_pool", "jp.dense_head_pool"),
    Row("timm.AttentionPool2d", "jp.clip_attention_pool", WEIGHTS),
    Row("timm.RotAttentionPool2d", "jp.rotary_attention_pool", WEIGHTS),
    Row("timm.AttentionPoolLatent", "jp.latent_attention_pool", WEIGHTS),
    Row("timm.SimPool2d", "jp.sim_pool", "with `axis=(-2, -1)`, and " + WEIGHTS),
    Row("timm.SimPool1d", "jp.sim_pool", WEIGHTS),
    Row(
        "timm.AttentionPoolPrr(3, num_heads=3)(l1)",
        "jp.prr_attention_pool(l1, {{}}, num_heads=3)",
        "with norms, arrays by name in `params`",
    ),
]

BLUR = "jp.blur_pool(x2, p, filter_size=3, mode='constant', axis=(-2, -1))"
MAX_BLUR = BLUR.replace("blur_pool(x2, p", "max_blur_pool(x2, p, p")
EDGE_AWARE = "jp.edge_aware_blur_pool(x2, (3, 3), axis=(-2, -1))"
MEDIAN = (
    "jp.median_pool(jnp.pad(x2, ((0, 0), (0, 0), (1, 1), (1, 1)), 'reflect'), (3, 3), "
    "axis=(-2, -1))"
)
ROUNDED = "`ceil_mode` changes nothing here"
KORNIA = [
    Row("filters.BlurPool2D(3, 2)(x2)", BLUR),
    Row("filters.blur_pool2d(x2, 3, 2)", BLUR),
    Row("filters.MaxBlurPool2D(3)(x2)", MAX_BLUR, ROUNDED),
    Row("filters.max_blur_pool2d(x2, 3)", MAX_BLUR, ROUNDED),
    Row("filters.EdgeAwareBlurPool2D(3)(x2)", EDGE_AWARE),
    Row("filters.edge_aware_blur_pool2d(x2, 3)", EDGE_AWARE),
    Row("filters.MedianBlur(3)(x2)", MEDIAN),
    Row("filters.median_blur(x2, 3)", MEDIAN),
    Row(
        "morphology.dilation(x2, o2)",
        "jp.dilate_pool(x2, (3, 3), padding='SAME', axis=(-2, -1), element=e)",
        "`e = np.zeros((3, 3))`, or `structuring_element[::-1, ::-1]`",
    ),
    Row(
        "morphology.erosion(x2, o2)",
        "jp.erode_pool(x2, (3, 3), padding='SAME_LOWER', axis=(-2, -1), element=e)",
        "`e = np.zeros((3, 3))`, or `structuring_element`",
    ),
]

LIST = "boxes of all images in one array, with the image of each"
TORCHVISION = [
    Row(
        "tv.roi_align(g2, [boxes], 3, sampling_ratio=2)",
        "jp.roi_align(l2, boxes, (3, 3), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.RoIAlign(3, 1.0, 2)(g2, [boxes])",
        "jp.roi_align(l2, boxes, (3, 3), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.roi_pool(g2, [boxes], 3)",
        "jp.roi_pool(l2, boxes, (3, 3), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.RoIPool(3, 1.0)(g2, [boxes])",
        "jp.roi_pool(l2, boxes, (3, 3), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.ps_roi_align(g2, [boxes], 2, sampling_ratio=2)",
        "jp.ps_roi_align(l2, boxes, (2, 2), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.PSRoIAlign(2, 1.0, 2)(g2, [boxes])",
        "jp.ps_roi_align(l2, boxes, (2, 2), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.ps_roi_pool(g2, [boxes], 2)",
        "jp.ps_roi_pool(l2, boxes, (2, 2), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.PSRoIPool(2, 1.0)(g2, [boxes])",
        "jp.ps_roi_pool(l2, boxes, (2, 2), batch_indices=zeros)",
        LIST,
    ),
    Row(
        "tv.MultiScaleRoIAlign(['0', '1'], 3, 2)(levels, [boxes], [(32, 36)])",
        "jp.multiscale_roi_align(maps, boxes, (3, 3), batch_indices=zeros, "
        "image_shape=(32, 36))",
        "the rule for levels alone: `roi_levels`",
    ),
]

TABLES = {
    "PyTorch": ("channels first; `compat.torch` takes PyTorch's arguments", PYTORCH),
    "TensorFlow": ("channels last; `compat.tf` takes its arguments", TENSORFLOW),
    "Keras": ("channels last; `compat.keras` takes Keras's arguments", KERAS),
    "Flax": ("`compat.flax.use()` switches a whole code base", FLAX),
    "Equinox": ("channels first, without a batch", EQUINOX),
    "Haiku": ("channels last", HAIKU),
    "timm": (
        "channels first, tokens `[B, L, C]`; `compat.torch.convert` takes its modules "
        "but for attention",
        TIMM,
    ),
    "kornia": ("channels first; `compat.torch.convert` takes its modules", KORNIA),
    "torchvision": (
        "channels first, where jaxpool has them last; boxes are (x1, y1, x2, y2)",
        TORCHVISION,
    ),
}
# Beside the rows of `DIFFERENCES` in jaxpool.compat.
OTHER_DIFFERENCES = {
    "Equinox": [
        (
            "adaptive pools",
            "bins whose sizes differ from PyTorch's; an output larger than the input "
            "divides by zero",
            "PyTorch's bins, for any size",
            "equinox#641",
        ),
        (
            "use_ceil",
            "sizes other than PyTorch's, or an error",
            "PyTorch's",
            "equinox#175",
        ),
        (
            "means of half precision",
            "add up in the dtype of the input",
            "add up in float32 and round once",
            "",
        ),
    ],
    "Haiku": [
        (
            "windows of fewer entries than axes",
            "taken from the last axes, channels first of all",
            "the axes before the channels, or `axis=`",
            "haiku#125",
        ),
        ("padding", "strings only", "numbers too", "haiku#76"),
    ],
    "SpeechBrain": [
        (
            "`AttentiveStatisticsPooling` (ECAPA-TDNN)",
            "ReLU and BatchNorm before the tanh; deviations of at least 1e-6; one "
            "kernel for tokens, means and deviations",
            "`attentive_statistics_pool` with the two as `hidden_fn=`; deviations of "
            "0; its blocks are `hidden_kernel`, `mean_kernel` and `std_kernel`",
            "channels last; `conv.bias` cancels",
        ),
    ],
    "The authors of SimPool": [
        (
            "`SimPool`",
            "subtracts the minimum of the batch",
            "subtracts that of each sample, as timm does",
            "",
        ),
    ],
    "torchvision": [
        (
            "gradient of boxes",
            "none",
            "that of `roi_align` and `ps_roi_align`",
            "stop it with `lax.stop_gradient`",
        ),
        (
            "`sampling_ratio` of 0 or less",
            "as many samples as a box has pixels",
            "an error: shapes cannot depend on values",
            "",
        ),
        (
            "`roi_pool` of NaN, and of -inf alone",
            "passed over; -FLT_MAX",
            "the maximum",
            "",
        ),
        (
            "`ps_roi_pool`'s gradient",
            "reaches the last row and column, which its value leaves out",
            "agrees with the value",
            "",
        ),
    ],
}

INTRODUCTION = """\
# Coming from another framework

One line of jaxpool for every pooling class and function of nine frameworks. The page
is made by `python tests/migration.py --write`, and `tests/test_migration.py` evaluates
both sides of each row on the same numbers, where the other framework is installed;
`compat.tf` stands for TensorFlow, and of pools that learn it asks for the names alone.

`jp` is jaxpool, `x` an array with two spatial axes, `p` is `(2, 2)`; 1d and 3d classes
go the same way, with one or three entries. Where a row says `axis=(-2, -1)`, channels
come first; without it they come last. `v` and `i` are the values and indices of an
argmax pool and `s` the size to unpool to; `t` and `u` are numbers in [0, 1) that place
fractional windows; `b` is an output size, `m` a mask, `o` 3 x 3 ones; `g` has channels
first where `l` has them last. The papers' methods are in [methods.md](methods.md).
"""


def page() -> str:
    """The text of docs/migration.md."""
    lines = [INTRODUCTION]
    for framework, (remark, rows) in TABLES.items():
        lines += [f"## {framework}", "", f"{remark[0].upper()}{remark[1:]}.", ""]
        lines += ["| theirs | jaxpool | |", "|---|---|---|"]
        for row in rows:
            _, theirs, ours = min(row.pairs(), key=lambda pair: abs(pair[0] - 2))
            theirs, ours = (re.sub(r"\b([a-z])\d\b", r"\1", t) for t in (theirs, ours))
            lines.append(f"| `{theirs}` | `{ours}` | {row.note} |")
        lines.append("")
    lines += ["# Where jaxpool differs on purpose", ""]
    for framework, differences in all_differences().items():
        lines += [f"## {framework}", "", "| what | theirs | jaxpool | |"]
        lines += ["|---|---|---|---|"]
        cells = [[cell.replace("|", r"\|") for cell in row] for row in differences]
        lines += [f"| {' | '.join(row)} |" for row in cells]
        lines.append("")
    return "\n".join(lines)


def all_differences():
    """Every deliberate difference, by framework."""
    adapters = {
        "PyTorch": "torch",
        "TensorFlow": "tf",
        "Keras": "keras",
        "Flax": "flax",
    }
    stated = {
        name: importlib.import_module(f"jaxpool.compat.{module}").DIFFERENCES
        for name, module in adapters.items()
    }
    return {**stated, **OTHER_DIFFERENCES}


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        print(page())
