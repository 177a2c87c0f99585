"""Numbers worked out from the papers' formulas, in `golden.json`, met by every op.

Families say in `GOLDEN` how; what stands here belongs to no family's file, or is not
for any op to give.
"""

import functools
import json
from pathlib import Path

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool

pytestmark = pytest.mark.usefixtures("quick_compilation")
NUMBERS = json.loads(Path(__file__).with_name("golden.json").read_text())
A, B = (np.array(NUMBERS[name], np.float32) for name in "AB")
X5 = np.array(NUMBERS["X5"], np.float32)[..., None]
EYE = np.eye(5, dtype=np.float32)


def blur(x, filter_size, mode="reflect"):
    y = jaxpool.blur_pool(x[..., None], (2, 2), filter_size=filter_size, mode=mode)
    return y[..., 0]


def max_blur(x):
    options = dict(filter_size=3, mode="constant")
    return jaxpool.max_blur_pool(x[..., None], (2, 2), (2, 2), **options)[..., 0]


def bins(size, out):
    """The edges of adaptive bins, found by where a mean reads from."""
    means = jaxpool.adaptive_avg_pool(np.eye(size, dtype=np.float32), (out,))
    return [np.flatnonzero(row)[[0, -1]] + [0, 1] for row in np.asarray(means)]


def starts(size, out, window, u):
    samples = np.full((1, 1), u, np.float32)
    ((start, _),) = jaxpool.fractional_boundaries(
        (size, 1), (out,), window_shape=window, samples=samples
    )
    return np.ravel(start)


def fractional(overlapping):
    return jaxpool.fractional_max_pool(
        X5, (3, 3), samples=(0.125, 0.375), overlapping=overlapping
    )[..., 0]


def roi_align(box, aligned):
    return jaxpool.roi_align(
        A[None, ..., None],
        jnp.array([box]),
        (2, 2),
        batch_indices=jnp.zeros(1, jnp.int32),
        aligned=aligned,
    )[0, ..., 0]


def sequence(mode):
    x = np.array([[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], np.float32)
    return jaxpool.sequence_pool(x, lengths=np.int32(2), mode=mode)


def halves(pool, x, **options):
    return pool(x[..., None], (2, 2), (2, 2), **options)[..., 0]


def soft_gradient():
    last = lambda x: halves(jaxpool.soft_pool, x)[1, 1]  # noqa: E731
    return jax.grad(last)(jnp.asarray(B))[2:, 2:].ravel()


OTHERS = {
    "stoch_eval_A": lambda: halves(jaxpool.stochastic_pool, A, deterministic=True),
    "stoch_eval_relu_B": lambda: halves(jaxpool.stochastic_pool, B, deterministic=True),
    **{
        f"Lp_sum_p{p}_A": functools.partial(halves, jaxpool.lp_pool, A, p=float(p))
        for p in (1, 2, 3)
    },
    "softpool_b1_B_grad_window(1,1)": soft_gradient,
    "blurpool_k3s2_zero_eye5(kornia doc)": lambda: blur(EYE, 3, "constant"),
    "blurpool_k3s2_reflect_eye5": lambda: blur(EYE, 3),
    "blurpool_k4s2_reflect_eye5": lambda: blur(EYE, 4),
    "blurpool_k3s2_reflect_A": lambda: blur(A, 3),
    "blurpool_k4s2_reflect_A": lambda: blur(A, 4),
    "maxblurpool_k3s2_max2_zero_eye5(kornia doc)": lambda: max_blur(EYE),
    "adaptive_bins_7to3": lambda: bins(7, 3),
    "adaptive_bins_10to4": lambda: bins(10, 4),
    "fmp_disjoint_X5_bounds[0,1,3,5]": lambda: fractional(False),
    "fmp_overlap_X5_bounds[0,1,3,5]x[0,2,3,5]": lambda: fractional(True),
    "roialign_A_box[0,0,2,2]_o2_sr2_aligned": lambda: roi_align((0.0, 0, 2, 2), True),
    "roialign_A_box[0,0,2,2]_o2_sr2_legacy": lambda: roi_align((0.0, 0, 2, 2), False),
    "roialign_A_box[.5,.5,3.5,2.5]_o2_sr2_aligned": lambda: roi_align(
        (0.5, 0.5, 3.5, 2.5), True
    ),
    "masked_mean": lambda: sequence("mean"),
    "masked_weightedmean_pos": lambda: sequence("weighted_mean"),
    "masked_sqrtlen": lambda: sequence("mean_sqrt_len"),
    **{
        f"fmp_torch_seq_in{size}_out{out}_k{k}_u{u}": functools.partial(
            starts, size, out, (k,), u
        )
        for size, out, k in ((10, 7, 2), (13, 6, 3))
        for u in (0.0, 0.3, 0.9)
    },
}
NOT_FOR_OPS = {
    "A": "an input",
    "B": "an input",
    "X5": "an input",
    "cov_X": "what covariance pooling takes the root of",
    "gated_B_w": "an argument",
    "stoch_train_probs_relu_B": "a distribution, asked for by test_keys",
    "eDSCW_A": "a part of AdaPool, which is left out",
    "adapool_beta.5_A": "AdaPool is left out",
    "netvlad_raw": "before it is normalised",
    "softpool_channelsummed_c0": "what the formula is not",
    "sqrtm_exact_X": "a limit",
    **{
        f"fmp_graham_bounds_in10_out7_u{u}": "read literally, bins may be empty"
        for u in (0.1, 0.5, 0.9)
    },
    **{
        f"fmp_safe_bounds_in10_out7_u{u}": "another sequence than TensorFlow's"
        for u in (0.0, 0.3, 0.9)
    },
}


def results():
    from_families = {
        key: functools.partial(f, A, B) for key, f in contract.GOLDEN.items()
    }
    assert not set(from_families) & set(OTHERS)
    return {**OTHERS, **from_families}


RESULTS = results()


@pytest.mark.parametrize("key", RESULTS)
def test_golden_number(key):
    expected = np.array(NUMBERS[key])
    y = np.asarray(RESULTS[key]())
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_every_number_is_met():
    assert set(RESULTS) | set(NOT_FOR_OPS) == set(NUMBERS)
