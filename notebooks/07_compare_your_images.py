# %% [markdown]
# # Which pooling is best for your images?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# Take your own images, train the same small network with each pooling method and
# several seeds, and read a table that says which differences are more than chance.
# Replace one cell to use your data; until then it runs on real pieces of two
# photographs.

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q "jaxpool[compare]"
    importlib.invalidate_caches()

# %%
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxpool.compare import compare, print_results
from PIL import Image
from sklearn.datasets import load_sample_images

FAST = "JAXPOOL_FAST" in os.environ  # a trial run of this notebook
os.chdir(tempfile.mkdtemp())  # for the files that are written here

# %% [markdown]
# ## Your images
#
# As most people have them: a folder with a subfolder for each class, or with `train`
# and `test` of that form; without `test`, one image in five is for it. **Replace this
# cell** by `images = Path("...")` to use yours. Here the classes are two photographs
# that come with scikit-learn, a temple and a flower; each image is a piece of one of
# them, without its colour.
#
# **Trap: images of one thing on both sides.** Pieces that overlap would be learned by
# heart and recognised in the test. So the left part of each photograph is for training,
# the right part for the test.

# %%
images = Path("images")
rng = np.random.default_rng(0)
SIZE = 32

photographs = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
for name, photograph in photographs.items():
    border = photograph.shape[1] * 3 // 5
    parts = {"train": photograph[:, :border], "test": photograph[:, border:]}
    for part, pixels in parts.items():
        place = images / part / name
        place.mkdir(parents=True)
        for i in range({"train": 500, "test": 250}[part] // (5 if FAST else 1)):
            top, left = (rng.integers(side - SIZE) for side in pixels.shape[:2])
            piece = pixels[top : top + SIZE, left : left + SIZE]
            Image.fromarray(piece).convert("L").save(place / f"{i:03}.png")

for place in sorted(images.glob("*/*")):
    print(place.relative_to(images), len(list(place.iterdir())), "images")

# %%
figure, panels = plt.subplots(2, 8, figsize=(8, 2.1), dpi=75)
for line, place in zip(panels, sorted((images / "train").iterdir()), strict=True):
    line[0].set_ylabel(place.name)
    for panel, path in zip(line, sorted(place.iterdir()), strict=False):
        panel.imshow(Image.open(path), cmap="gray", vmin=0, vmax=255)
        panel.set(xticks=[], yticks=[])
plt.tight_layout(pad=0.3)
plt.show()

# %% [markdown]
# ## Compare
#
# One call. Each method is trained `seeds` times in the same network; times and memory
# are measured side by side on this device. Whatever is finished is saved at once: after
# an interruption, the same call with `resume=True` goes on. `size` brings images of all
# sizes to one. Instead of a folder, `data` may be an .npz file, or `hf:NAME`.

# %%
settings = {
    "data": str(images),
    "size": SIZE,
    "methods": ["max", "avg", "lp", "mixed_learned", "stochastic", "stride"],
    "baseline": "max",
    "epochs": 1 if FAST else 4,
    "seeds": 2 if FAST else 5,
    "batch": 16 * jax.device_count(),
    "out": "results",
}
results = compare(**settings)

# %% [markdown]
# ## Read the table
#
# `vs max` is the difference of the mean over seeds from that of the baseline, with half
# of its 95 % confidence interval. A star marks a difference that is more than chance.
# **Without a star, a higher number says nothing.** If you need to know, take more
# seeds.

# %%
print_results("results")

# %% [markdown]
# The picture has each seed as a dot:

# %%
figure = plt.figure(figsize=(9, 4.2), dpi=75)
plt.imshow(plt.imread("results/results.png"))
plt.axis("off")
plt.tight_layout(pad=0)
plt.show()

# %% [markdown]
# ## Another method, later
#
# `resume=True` keeps what is finished and trains what is new. `python -m jaxpool
# compare --methods all` lists all methods that fit, and says why others do not.

# %%
settings["methods"].append("gem")
results = compare(**settings, resume=True)
for name, entry in results["methods"].items():
    print(f"{name:14}", [f"{run['accuracy']:.1%}" for run in entry["runs"]])

# %% [markdown]
# The folder holds `results.html`, a page to send to others, `results.md` and
# `results.png` for a README, and `results.json` for programs. The same from a terminal:
#
#     jaxpool compare --data images --size 32 --methods max,avg,lp --seeds 5
