"""The section on arrays that are split over devices."""

from pages.matrix import part

TITLE = "Sharding"
section, pages = part(
    TITLE,
    """\
Values and gradients of arrays that are split over two devices, by hand, by the compiler
and explicitly, are those of one device. Programs are compiled without most of XLA's
optimisations. The largest error is in epsilons of the dtype, relative to the largest
value.""",
)
