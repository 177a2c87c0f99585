"""Pooling for JAX and Flax: exact, differentiable to every order.

Arrays are `[B..., S..., C]`: any leading axes, then spatial axes, then channels;
`axis=` names the pooled axes of any other layout. Flax modules over the same functions
live in `jaxpool.nnx` and `jaxpool.linen`, which import Flax; this package imports jax
alone.

  extremum     max_pool  min_pool  max_pool_with_argmax  max_unpool
  average      avg_pool  sum_pool
  any monoid   pool
  power        lp_pool  gem_pool  learned_norm_pool
  exponential  lse_pool  soft_pool  exp_weighted_pool  auto_pool
  importance   local_importance_pool  detail_preserving_pool
  rank         rank_pool  topk_avg_pool  rank_weighted_pool  rank_stochastic_pool
               ordinal_pool  dropout_max_pool  median_pool
  blends       mixed_pool  gated_pool  tree_pool
  stochastic   stochastic_pool  random_mixed_pool  s3_pool  mean_over_keys
  morphology   dilate_pool  erode_pool
  fractional   fractional_max_pool  fractional_max_pool_with_argmax
               fractional_avg_pool  fractional_boundaries
  adaptive     adaptive_avg_pool  adaptive_max_pool  adaptive_max_pool_with_argmax
               adaptive_avgmax_pool  adaptive_catavgmax_pool  select_adaptive_pool
               feature_multiplier  dense_head_pool
  global       global_avg_pool  global_max_pool  global_min_pool  global_sum_pool
               global_lp_pool  global_gem_pool  global_lse_pool
               global_avgmax_pool  global_catavgmax_pool
  blurs        blur_pool  max_blur_pool  edge_aware_blur_pool
  polyphase    polyphase_pool  learned_polyphase_pool
  frequency    spectral_pool  flc_pool  diffstride_pool  haar_pool  haar_unpool
  pyramids     spatial_pyramid_pool  sppf  pyramid_pool  strip_pool
  aggregation  covariance_pool  statistics_pool  attentive_statistics_pool  vlad_pool
  masked       masked_max_pool  masked_avg_pool  weighted_max_pool
               weighted_avg_pool
  sequences    sequence_pool  segment_pool
  regions      roi_align  roi_pool  ps_roi_align  ps_roi_pool
               multiscale_roi_align  roi_levels
  attention    attention_pool  clip_attention_pool  rotary_attention_pool
               map_pool  latent_attention_pool  sim_pool  prr_attention_pool
  probes       set_attention_pool  efficient_probe_pool
  quantized    quantized_max_pool  quantized_avg_pool  quantized_global_max_pool
               quantized_global_avg_pool  quantized_adaptive_max_pool
               quantized_adaptive_avg_pool  quantize  dequantize  QuantParams
  shapes       output_shape  convert_indices
  devices      sharded

`lowering` is a context in which windows are computed in another form.
"""

from jaxpool._core.lowering import lowering
from jaxpool._ops import *
from jaxpool._ops import __all__ as __all__

__all__ += ["lowering"]

__version__ = "0.1.0"
