"""The section on values under transforms."""

from pages.matrix import part

TITLE = "Values under transforms"
section, pages = part(
    TITLE,
    """\
Results are compared with the NumPy oracle's, of ops that sample in training with the
plain call's. The largest error is in epsilons of the dtype, relative to the largest
value. Programs of bfloat16, float16 and float32 without 64-bit types, and of float64,
are compiled as users' are, the others without most of XLA's optimisations.""",
)
