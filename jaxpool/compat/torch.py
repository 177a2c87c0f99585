"""`torch.nn.functional`'s pooling on JAX arrays: names, arguments, layouts, numbers.

A model is ported by changing an import; arrays stay channels first, `(N, C, ...)` or
`(C, ...)`:

  >>> import jax.numpy as jnp
  >>> import jaxpool.compat.torch as F  # was: import torch.nn.functional as F
  >>> x = jnp.arange(16.0).reshape(1, 1, 4, 4)
  >>> values, indices = F.max_pool2d(x, 2, return_indices=True)
  >>> indices[0, 0]
  Array([[ 5,  7],
         [13, 15]], dtype=int32)
  >>> F.max_unpool2d(values, indices, 2).shape
  (1, 1, 4, 4)

Every function has the arguments of PyTorch 2.13's, in its order and with its defaults,
and refuses what PyTorch refuses, with an error that names function, argument, rule and
value. `DIFFERENCES` lists where the two differ, and why. Those that sample take `key=`.

`convert` turns a module of `torch.nn`, timm or kornia into one of `jaxpool.nnx` or
`jaxpool.linen`:

  >>> import torch
  >>> F.convert(torch.nn.MaxPool2d(3, stride=2, padding=1))(x).shape
  (1, 1, 2, 2)

PyTorch itself is never imported.
"""

from jaxpool.compat import _torch_functions
from jaxpool.compat._torch_functions import *
from jaxpool.compat._torch_modules import convert
from jaxpool.compat._words import Difference

__all__ = ["DIFFERENCES", "convert"]
__all__ += _torch_functions.__all__

DIFFERENCES = (
    Difference(
        "max_pool, adaptive_max_pool, fractional_max_pool",
        "of several NaNs in a window the last has the index and the gradient",
        "the first has them, as among other equal values",
        "one rule for ties; NaN propagates in both (pytorch#7645)",
    ),
    Difference(
        "max_pool",
        "a dilated window that lies in the padding alone has an index outside of the "
        "input, where its gradient is written: memory is corrupted",
        "it has -inf, the index -1 and no gradient",
        "max_pool2d(ones(1, 1, 2), 2, 1, 1, 2) has such windows (pytorch#114216)",
    ),
    Difference(
        "max_pool, adaptive_max_pool, fractional_max_pool, max_unpool",
        "indices are int64, and max_unpool takes no others",
        "indices are int32, and max_unpool takes any integers",
        "JAX has no int64 unless it is switched on (asked for in pytorch#103785)",
    ),
    Difference(
        "max_unpool",
        "an index outside of the output raises when it is met",
        "it writes nothing",
        "values are not known while JAX traces",
    ),
    Difference(
        "max_unpool",
        "where several values have one index the last is written (on the CPU), and "
        "all get its gradient",
        "the last is written everywhere, and it alone gets the gradient",
        "the derivative of what is computed (pytorch#80204, #80827)",
    ),
    Difference(
        "max_unpool",
        "in 1 and 2 dimensions a kernel_size or stride of 0 or less and a negative "
        "padding are computed with, and entries of stride past the axes are ignored",
        "they are refused",
        "no pooling has them",
    ),
    Difference(
        "lp_pool",
        "powers are of x: NaN for negative x and a fractional norm_type, or where an "
        "odd power's sum is negative; a signed sum for norm_type=1",
        "powers are of |x|, with the gradient 0 at 0",
        "the p-norm, which is never NaN (pytorch#184037)",
    ),
    Difference(
        "lp_pool",
        "ceil_mode=True scales a window that overhangs the input by "
        "(kernel size / elements in it) ** (1 / norm_type)",
        "every window is the norm of its elements",
        "lp_pool1d(ones(5), 2, 2, ceil_mode=True) ends in 1, not in sqrt(2)",
    ),
    Difference(
        "lp_pool",
        "a negative norm_type is computed with",
        "it is refused, except for -inf, the smallest magnitude",
        "it is no norm, and its derivative is infinite at 0",
    ),
    Difference(
        "adaptive_max_pool, adaptive_avg_pool, fractional_max_pool, max_unpool",
        "an output size of 0 gives an empty result; so do no channels in "
        "adaptive_avg_pool",
        "both are refused",
        "nothing to pool is an error everywhere in jaxpool",
    ),
    Difference(
        "fractional_max_pool",
        "a kernel_size of 0 or less and samples outside of [0, 1) are computed with",
        "they are refused",
        "such windows have no elements, or lie outside of the input",
    ),
    Difference(
        "fractional_max_pool",
        "in 2 dimensions output_ratio has to be a pair",
        "it may be one number, as in 3 dimensions",
        "what PyTorch's documentation says",
    ),
    Difference(
        "fractional_max_pool",
        "samples come from PyTorch's generator",
        "samples come from `key=`, which is needed unless `_random_samples` is given",
        "JAX has no hidden random state",
    ),
    Difference(
        "all",
        "most integer dtypes are not implemented, and avg_pool truncates int64",
        "maxima keep integers, and means and norms of them are floats",
        "as in jax.numpy; the mean of 1 and 2 is 1.5",
    ),
)
"""Where this module differs from PyTorch, for the guide to porting."""
