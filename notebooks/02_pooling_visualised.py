# %% [markdown]
# # Pooling visualised
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# What windows, strides and padding do, drawn from jaxpool's own gradients; what each
# method makes of a photograph; and which pixels it listens to.

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q jaxpool scikit-learn matplotlib
    importlib.invalidate_caches()

# %%
import jax
import jax.numpy as jnp
import jaxpool as jp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from sklearn.datasets import load_sample_image

plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "figure.facecolor": "white"})

# %% [markdown]
# ## Which elements does a window hold?
#
# Ask the derivative. `sum_pool` is linear, so its Jacobian is 1 where a window holds an
# element, and 0 elsewhere. A row below is a window, a column an element of an input of
# eight; the window has three, and moves by two.


# %%
def windows(**options):
    """Which elements each window holds: [windows, 8]."""

    def pool(x):
        return jp.sum_pool(x[:, None], (3,), (2,), **options)[:, 0]

    return jax.jacobian(pool)(jnp.ones(8))


settings = {
    "VALID": {},
    "ceil_mode": {"ceil_mode": True},
    "SAME": {"padding": "SAME"},
    "SAME_LOWER": {"padding": "SAME_LOWER"},
    "padding 2": {"padding": 2},
    "dilation 2": {"window_dilation": 2},
}
figure, panels = plt.subplots(1, 6, figsize=(11, 2.1))
for panel, (name, options) in zip(panels, settings.items(), strict=True):
    held = windows(**options)
    panel.pcolormesh(held, cmap="Blues", vmin=0, vmax=1.4, edgecolors="0.8", lw=0.5)
    panel.set(title=name, xticks=[], yticks=np.arange(len(held)) + 0.5, aspect="equal")
    panel.set_yticklabels(range(len(held)))
    panel.invert_yaxis()
panels[0].set_ylabel("window")
plt.tight_layout()
plt.show()

# %% [markdown]
# - `VALID` drops what does not fill a window: here the last element is in none.
# - `ceil_mode` (PyTorch's) adds a window that hangs over the end instead.
# - `SAME` puts the larger half of the padding behind, `SAME_LOWER` in front.
# - Padding is not an element: it never wins a maximum, and a mean counts it only if
#   `count_include_pad` says so.
#
# The last point is a trap. Flax's default, and PyTorch's, counts the padding as zeros,
# and makes the border of a picture darker:

# %%
white = jnp.ones((6, 6, 1))
for count in (True, False):
    means = jp.avg_pool(white, (3, 3), (2, 2), "SAME", count_include_pad=count)
    print(f"count_include_pad={count}:\n{means[..., 0].round(2)}")

# %% [markdown]
# ## In two dimensions
#
# How many windows hold each pixel? The gradient of all sums together. With a window of
# 3 and a stride of 2 pixels count unequally, and the last of them may not count at all.

# %%
cases = {
    "2x2 by 2": ((2, 2), (2, 2), "VALID"),
    "3x3 by 2, VALID": ((3, 3), (2, 2), "VALID"),
    "3x3 by 2, SAME": ((3, 3), (2, 2), "SAME"),
    "2x2 by 3": ((2, 2), (3, 3), "VALID"),
}
figure, panels = plt.subplots(1, 4, figsize=(9, 2.5))
for panel, (name, case) in zip(panels, cases.items(), strict=True):
    total = jax.grad(lambda x, case=case: jp.sum_pool(x, *case).sum())
    counts = total(jnp.ones((8, 8, 1)))[..., 0]
    panel.imshow(counts, cmap="Blues", vmin=0, vmax=6)
    for (row, column), count in np.ndenumerate(np.asarray(counts, int)):
        panel.text(column, row, count, ha="center", va="center", fontsize=7)
    panel.set(title=name, xticks=[], yticks=[])
plt.tight_layout()
plt.show()

# %% [markdown]
# ## A photograph
#
# It comes with scikit-learn. All methods below shrink it by 4 in both directions.

# %%
photograph = load_sample_image("china.jpg")[30:414, 130:514].astype(np.float32) / 255
photograph = jnp.asarray(photograph.reshape(96, 4, 96, 4, 3).mean((1, 3)))  # 96 x 96

W = {"window_shape": (4, 4), "strides": (4, 4)}
methods = {
    "max": lambda x: jp.max_pool(x, **W),
    "min": lambda x: jp.min_pool(x, **W),
    "avg": lambda x: jp.avg_pool(x, **W),
    "median": lambda x: jp.median_pool(x, **W),
    "soft, beta=10": lambda x: jp.soft_pool(x, **W, beta=10.0),
    "stochastic, one key": lambda x: jp.stochastic_pool(x, **W, key=jax.random.key(0)),
    "blur": lambda x: jp.blur_pool(x, (4, 4), filter_size=7),
    "spectral": lambda x: jp.spectral_pool(x, (24, 24), axis=(0, 1)),
    "every 4th pixel": lambda x: x[::4, ::4],
}

figure, panels = plt.subplots(2, 5, figsize=(10, 4.4))
pictures = {name: pool(photograph) for name, pool in methods.items()}
pictures = {"photograph": photograph, **pictures}
for panel, (name, picture) in zip(panels.flat, pictures.items(), strict=True):
    panel.imshow(jnp.clip(picture, 0, 1))
    panel.set(title=name, xticks=[], yticks=[])
plt.tight_layout()
plt.show()

# %% [markdown]
# Taking every fourth pixel throws the rest away; the edges of the roof break into
# steps. The maximum brightens, the minimum darkens, and the mean blurs; the median
# blurs less at edges. The lowest frequencies ring: the Fourier transform takes the
# picture for periodic, so that its borders are edges too.
#
# ## Which pixels does a method listen to?
#
# One window of 4 x 4, and the derivative of its result with respect to each pixel. For
# the mean all are 1/16; for the maximum one pixel has it all.

# %%
window = photograph[24:28, 38:42, :1]
W = {"window_shape": (4, 4)}
listeners = {
    "max": lambda x: jp.max_pool(x, **W),
    "avg": lambda x: jp.avg_pool(x, **W),
    "gem, p=3": lambda x: jp.gem_pool(x, **W, p=3.0),
    "soft, beta=5": lambda x: jp.soft_pool(x, **W, beta=5.0),
    "median": lambda x: jp.median_pool(x, **W),
    "topk_avg, k=4": lambda x: jp.topk_avg_pool(x, **W, k=4),
}
figure, panels = plt.subplots(1, 7, figsize=(12, 2.1))
center = {"ha": "center", "va": "center", "fontsize": 6}
panels[0].imshow(window[..., 0], cmap="gray", vmin=0, vmax=1)
panels[0].set(title="the window", xticks=[], yticks=[])
for panel, (name, pool) in zip(panels[1:], listeners.items(), strict=True):
    weights = jax.grad(lambda x, pool=pool: pool(x).sum())(window)[..., 0]
    limit = float(jnp.abs(weights).max())
    panel.imshow(weights, cmap="RdBu_r", norm=TwoSlopeNorm(0, -limit, limit))
    for (row, column), weight in np.ndenumerate(np.asarray(weights)):
        color = "white" if abs(weight) > limit / 2 else "0.3"
        panel.text(column, row, f"{weight:.2f}", color=color, **center)
    panel.set(title=name, xticks=[], yticks=[])
plt.tight_layout()
plt.show()

# %% [markdown]
# Red is positive, blue negative. Softmax weights are the one surprise: making a dark
# pixel brighter can *lower* the result, because it takes weight from brighter ones.
#
# ## What reaches the layer below
#
# The gradient of all results, over a part of the photograph. With the maximum most
# pixels learn nothing in a step; that is why blends and softer methods exist.

# %%
W = {"window_shape": (2, 2), "strides": (2, 2)}
learners = {
    "max": lambda x: jp.max_pool(x, **W),
    "soft, beta=5": lambda x: jp.soft_pool(x, **W, beta=5.0),
    "mixed": lambda x: jp.mixed_pool(x, **W, alpha=0.5),
    "avg": lambda x: jp.avg_pool(x, **W),
}
part = photograph[20:44, 36:60, :1]
figure, panels = plt.subplots(1, 5, figsize=(10, 2.3))
panels[0].imshow(part[..., 0], cmap="gray")
panels[0].set(title="part of it", xticks=[], yticks=[])
for panel, (name, pool) in zip(panels[1:], learners.items(), strict=True):
    gradient = jax.grad(lambda x, pool=pool: pool(x).sum())(part)[..., 0]
    panel.imshow(gradient, cmap="RdBu_r", norm=TwoSlopeNorm(0, -1, 1))
    panel.set(title=name, xticks=[], yticks=[])
    share = float((gradient != 0).mean())
    print(f"{name:14} {share:4.0%} of the pixels have a gradient")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Shift the photograph by one pixel
#
# A network that sees the same thing one pixel further on should say the same. Pooling
# with a stride breaks that: its windows cut the picture elsewhere. Here is the smallest
# example, stripes two pixels wide, before and after a shift by one pixel (around the
# corner).

# %%
stripes = jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), 3)[:, None]
pools = {
    "max_pool": lambda x: jp.max_pool(x, (2,), (2,)),
    "max_blur_pool": lambda x: jp.max_blur_pool(x, (2,), (2,), "SAME", mode="wrap"),
    "polyphase_pool": lambda x: jp.polyphase_pool(x, (2,))[0],
}
figure, panels = plt.subplots(2, 4, figsize=(9, 1.8))
shifts = {"before": stripes, "after": jnp.roll(stripes, 1, axis=0)}
for row, (when, x) in zip(panels, shifts.items(), strict=True):
    row[0].set_ylabel(when)
    results = {"stripes": x, **{name: pool(x) for name, pool in pools.items()}}
    for panel, (name, y) in zip(row, results.items(), strict=True):
        panel.imshow(y.T, cmap="gray", vmin=0, vmax=1, aspect="auto")
        panel.set(xticks=[], yticks=[])
        if when == "before":
            panel.set_title(name)
plt.tight_layout()
plt.show()

# %% [markdown]
# After the shift, the maximum of every window is the same, and the stripes are gone.
# `max_blur_pool` blurs before it drops pixels, and so changes less. `polyphase_pool`
# chooses which pixels to keep by the picture, not by the grid: the stripes survive,
# shifted.
#
# The [gallery](../docs/gallery.md) has such pictures of every method.
