"""The section on derivatives."""

from pages.matrix import part

TITLE = "Derivatives"
section, pages = part(
    TITLE,
    """\
Derivatives are compared with those in float64, and these with central differences of
what is one order lower, for every element. The largest error is in epsilons of the
dtype, relative to the largest value, or to how far the derivative moves when the inputs
move by their own size, where that is more. Programs of bfloat16, float16 and float32
without 64-bit types, and of float64, are compiled as users' are, the others without
most of XLA's optimisations.""",
)
