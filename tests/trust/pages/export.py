"""The section on exported programs."""

from pages.matrix import part

TITLE = "Export"
section, pages = part(
    TITLE,
    """\
One artefact for CPU, CUDA, ROCm and TPU, with a symbolic batch or with all sizes
symbolic, serialised with its derivative, read again and called: values and gradients
are those of the op. Compiled and counted as for sharding.""",
)
