# %% [markdown]
# # Stochastic pooling and keys
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/#upload=true)
#
# Some pools draw: an element of each window, a rule, or the places of the windows. In
# JAX whoever draws needs a key. This is how keys work with jaxpool's functions, with
# NNX and with Linen, in training and in evaluation.

# %%
import importlib.util

if importlib.util.find_spec("jaxpool") is None:  # on Colab; its jax and Flax stay
    # %pip install -q jaxpool matplotlib
    importlib.invalidate_caches()

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxpool as jp
import jaxpool.linen
import jaxpool.nnx
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

np.set_printoptions(precision=3, suppress=True)  # for what is printed

# %% [markdown]
# ## One key, one result
#
# `stochastic_pool` (Zeiler and Fergus) draws one element of each window, large ones
# more often: with the probability $p_i = x_i / \sum_j x_j$, where negative elements
# count as 0.

# %%
x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 1))
W = {"window_shape": (2, 2), "strides": (2, 2)}

print("x\n", x[0, ..., 0])
for seed in (1, 1, 2):
    y = jp.stochastic_pool(x, **W, key=jax.random.key(seed))
    print(f"key {seed}\n", y[0, ..., 0])

# %% [markdown]
# The same key gives the same elements in `jit` as well. That is not for free: it is how
# a run is repeated on another machine, and a bug is found.

# %%
key = jax.random.key(7)
compiled = jax.jit(lambda x, key: jp.stochastic_pool(x, **W, key=key))
same = compiled(x, key) == jp.stochastic_pool(x, **W, key=key)
print("same in jit:", bool(same.all()))

# %% [markdown]
# **Trap: a key inside of `jit` that is not an argument.** It is a constant of the
# compiled program, and every step draws the same elements. Pass the key as an argument,
# and a new one in each step.

# %%
frozen = jax.jit(lambda x: jp.stochastic_pool(x, **W, key=jax.random.key(7)))
print("constant key:", [round(float(frozen(x).sum()), 3) for _ in range(3)])

keys = jax.random.split(key, 3)
print("new keys:    ", [round(float(compiled(x, k).sum()), 3) for k in keys])

# %% [markdown]
# Without a key, and without saying that none is wanted, there is an error, not a hidden
# seed:

# %%
try:
    jp.stochastic_pool(x, **W)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Evaluation is the expectation
#
# `deterministic=True` needs no key: it gives the mean over all that could be drawn.
# `vmap` over keys draws many results at once, and their mean goes there.

# %%
exact = jp.stochastic_pool(x, **W, deterministic=True)
keys = jax.random.split(jax.random.key(1), 10_000)
draws = jax.vmap(lambda key: jp.stochastic_pool(x, **W, key=key))(keys)

counts = jnp.array([1, 10, 100, 1_000, 10_000])
errors = jnp.stack([jnp.abs(draws[:n].mean(0) - exact).max() for n in counts])
for n, error in zip(counts, errors, strict=True):
    print(f"mean of {n:6,} draws: off by {error:.4f} at most")

# %%
window = x[0, :2, :2, 0].ravel()
drawn = draws[:, 0, 0, 0, 0]
shares = [(drawn == element).mean() for element in window]
places = jnp.arange(4)

figure, panel = plt.subplots(figsize=(5, 2.4), dpi=80)
panel.bar(places - 0.2, window / window.sum(), 0.4, label="probability")
panel.bar(places + 0.2, jnp.stack(shares), 0.4, label="share of the draws")
panel.set_xticks(places, [f"{element:.2f}" for element in window])
panel.set(xlabel="element of the first window")
panel.legend()
plt.tight_layout()
plt.show()

# %% [markdown]
# The gradient goes to the element that was drawn, and in evaluation to all positive
# ones.

# %%
drawn = jax.grad(lambda x: jp.stochastic_pool(x, **W, key=key).sum())(x)
mean = jax.grad(lambda x: jp.stochastic_pool(x, **W, deterministic=True).sum())(x)
print("training\n", drawn[0, ..., 0])
print("evaluation\n", mean[0, ..., 0])

# %% [markdown]
# ## Flax NNX
#
# A module keeps its own stream of keys, as `nnx.Dropout` does, by default the stream
# "dropout" of the `rngs` that it is given. Each call takes the next key. `model.eval()`
# switches to the expectation, `model.train()` back.

# %%
pool = jaxpool.nnx.StochasticPool((2, 2), strides=(2, 2), rngs=nnx.Rngs(0))

print("train():", [round(float(pool(x).sum()), 3) for _ in range(3)])
pool.eval()
print("eval(): ", [round(float(pool(x).sum()), 3) for _ in range(3)])
pool.train()

# %% [markdown]
# In a training step, `nnx.jit` carries the stream's state in and out, so that every
# step draws anew. **Trap:** with `jax.jit` around `nnx.merge`, the state that comes out
# has to be passed on; if it is dropped, all steps draw alike.

# %%
step = nnx.jit(lambda pool, x: pool(x))
print("nnx.jit:           ", [round(float(step(pool, x).sum()), 3) for _ in range(3)])

graph, state = nnx.split(pool)


@jax.jit
def pure_step(state, x):
    pool = nnx.merge(graph, state)
    y = pool(x)
    return y, nnx.state(pool)


dropped = [pure_step(state, x)[0].sum() for _ in range(3)]
print("state dropped:     ", [round(float(y), 3) for y in dropped])

passed = []
for _ in range(3):
    y, state = pure_step(state, x)
    passed.append(round(float(y.sum()), 3))
print("state passed on:   ", passed)

# %% [markdown]
# To repeat one step, give the call a key: it goes before the module's stream.

# %%
again = [pool(x, rngs=jax.random.key(3)) for _ in range(2)]
print("the same:", bool((again[0] == again[1]).all()))

# %% [markdown]
# ## Flax Linen
#
# As for Linen's `Dropout`: keys come with `rngs={"dropout": key}`, and `deterministic`
# is said by whoever calls.


# %%
class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        pool = jaxpool.linen.StochasticPool((2, 2), strides=(2, 2))
        x = pool(x, deterministic=not train)
        return nn.Dense(3)(jp.global_avg_pool(x))


model = CNN()
variables = model.init(jax.random.key(0), x, train=False)
for seed in (1, 1, 2):
    rngs = {"dropout": jax.random.key(seed)}
    logits = model.apply(variables, x, train=True, rngs=rngs)
    print(f"train, key {seed}:", logits[0])
print("evaluation:  ", model.apply(variables, x, train=False)[0])

# %% [markdown]
# ## Averaging whole networks
#
# After a nonlinear layer, the expectation of each pool is no longer the expectation of
# the network. `mean_over_keys` runs the whole network with several keys and averages
# what it says, with no more memory than one run. Its spread says how sure the network
# is.


# %%
def probabilities(key):
    logits = model.apply(variables, x, train=True, rngs={"dropout": key})
    return nn.softmax(logits)


print("pools averaged:   ", nn.softmax(model.apply(variables, x, train=False))[0])
print("network averaged: ", jp.mean_over_keys(probabilities, jax.random.key(0), 64)[0])

each = jax.vmap(probabilities)(jax.random.split(jax.random.key(0), 64))
print("spread of one run:", each.std(0)[0])

# %% [markdown]
# ## Others that draw
#
# All take `key=` and `deterministic=` in the same way:

# %%
image = jax.random.uniform(jax.random.key(4), (1, 8, 8, 1))
key = jax.random.key(5)
results = {
    "random_mixed_pool": jp.random_mixed_pool(image, **W, key=key),
    "rank_stochastic_pool": jp.rank_stochastic_pool(image, **W, key=key),
    "dropout_max_pool": jp.dropout_max_pool(image, **W, rate=0.5, key=key),
    "s3_pool": jp.s3_pool(image, **W, key=key),
    "fractional_max_pool": jp.fractional_max_pool(
        image, ratio=1.5, key=key, axis=(1, 2)
    ),
}
for name, y in results.items():
    print(f"{name:21} {image.shape} -> {y.shape}")
