"""The section on derivatives."""

from pages.matrix import part

TITLE = "Derivatives"
section, pages = part(
    TITLE,
    """\
Derivatives are compared with those in float64, and these with central differences of
what is one order lower, for every element. The largest error is in epsilons of the
dtype, relative to the largest value, or to how far the derivative moves when the inputs
move by their own size, where that is more.""",
)
