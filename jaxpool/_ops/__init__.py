"""The formulas: one family a file."""

from jaxpool._ops import (
    adaptive,
    aggregation,
    attention,
    average,
    blend,
    blur,
    conventions,
    exponential,
    extremum,
    fractional,
    frequency,
    importance,
    masked,
    monoid,
    morphology,
    polyphase,
    power,
    probe,
    pyramid,
    quantized,
    rank,
    regions,
    segment,
    sequence,
    shapes,
    shards,
    stochastic,
)
from jaxpool._ops.adaptive import *
from jaxpool._ops.aggregation import *
from jaxpool._ops.attention import *
from jaxpool._ops.average import *
from jaxpool._ops.blend import *
from jaxpool._ops.blur import *
from jaxpool._ops.conventions import *
from jaxpool._ops.exponential import *
from jaxpool._ops.extremum import *
from jaxpool._ops.fractional import *
from jaxpool._ops.frequency import *
from jaxpool._ops.importance import *
from jaxpool._ops.masked import *
from jaxpool._ops.monoid import *
from jaxpool._ops.morphology import *
from jaxpool._ops.polyphase import *
from jaxpool._ops.power import *
from jaxpool._ops.probe import *
from jaxpool._ops.pyramid import *
from jaxpool._ops.quantized import *
from jaxpool._ops.rank import *
from jaxpool._ops.regions import *
from jaxpool._ops.segment import *
from jaxpool._ops.sequence import *
from jaxpool._ops.shapes import *
from jaxpool._ops.shards import *
from jaxpool._ops.stochastic import *

__all__: list[str] = []
__all__ += adaptive.__all__
__all__ += aggregation.__all__
__all__ += attention.__all__
__all__ += average.__all__
__all__ += blend.__all__
__all__ += blur.__all__
__all__ += conventions.__all__
__all__ += exponential.__all__
__all__ += extremum.__all__
__all__ += fractional.__all__
__all__ += frequency.__all__
__all__ += importance.__all__
__all__ += masked.__all__
__all__ += monoid.__all__
__all__ += morphology.__all__
__all__ += polyphase.__all__
__all__ += power.__all__
__all__ += probe.__all__
__all__ += pyramid.__all__
__all__ += quantized.__all__
__all__ += rank.__all__
__all__ += regions.__all__
__all__ += segment.__all__
__all__ += sequence.__all__
__all__ += shapes.__all__
__all__ += shards.__all__
__all__ += stochastic.__all__
