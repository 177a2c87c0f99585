"""Pooling for JAX and Flax: exact, differentiable to every order.

Arrays are `[B..., S..., C]`: any leading axes, then spatial axes, then channels;
`axis=` names the pooled axes of any other layout. Flax modules over the same functions
live in `jaxpool.nnx` and `jaxpool.linen`, which import Flax; this package imports jax
alone.

  extremum     max_pool  min_pool  max_pool_with_argmax  max_unpool
  average      avg_pool  sum_pool
  any monoid   pool
  power        lp_pool
  blends       mixed_pool
  stochastic   stochastic_pool
  adaptive     adaptive_avg_pool  adaptive_max_pool  adaptive_max_pool_with_argmax
  global       global_avg_pool  global_max_pool  global_min_pool  global_sum_pool
               global_lp_pool  global_gem_pool  global_lse_pool
               global_avgmax_pool  global_catavgmax_pool
  shapes       output_shape

`lowering` is a context in which windows are computed in another form.
"""

from jaxpool._core.lowering import lowering
from jaxpool._ops import *
from jaxpool._ops import __all__ as __all__

__all__ += ["lowering"]

__version__ = "0.1.0"
