"""The section on values under transforms."""

from pages.matrix import part

TITLE = "Values under transforms"
section, pages = part(
    TITLE,
    """\
Results are compared with the NumPy oracle's, of ops that sample in training with the
plain call's. The largest error is in epsilons of the dtype, relative to the largest
value.""",
)
