"""What users do with a function of an array, and what must come of it.

A transform is `t(f, x, z)`, of a pool and two inputs of one shape, and gives what `f`
gives for `x` or for both, or a derivative at `x`. Beside it stands the name of what is
expected: `Reference` has that, in float64, from the op's oracle and from differences.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


def pair(x, z, axis=0):
    """Both inputs in one array."""
    return jnp.stack([x, z], axis)


def on_every_axis(f, x, z):
    axes = range(x.ndim + 1)
    return [jax.vmap(f, axis)(pair(x, z, axis)) for axis in axes]


def in_scan(f, x, z):
    return jax.lax.scan(lambda carry, x: (carry, f(x)), None, pair(x, z))[1]


def in_while_loop(f, x, z):
    def body(state):
        i, _ = state
        return i + 1, f(jnp.where(i == 0, z, x))

    nothing = jax.tree.map(jnp.zeros_like, f(x))
    return jax.lax.while_loop(lambda state: state[0] < 2, body, (0, nothing))[1]


def in_custom_vjp(f):
    """`f` with a rule of the user's own, which asks `f` for its derivative."""
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: jax.vjp(f, x), lambda pullback, y: pullback(y))
    return g


# name: (what is expected, the transform)
VALUES = {
    "jit": ("y", lambda f, x, z: f(x)),
    "vmap": ("every y", on_every_axis),
    "checkpoint": ("y", lambda f, x, z: jax.checkpoint(f)(x)),
    "scan": ("both y", in_scan),
    "while_loop": ("y", in_while_loop),
    "custom_vjp": ("y", lambda f, x, z: in_custom_vjp(f)(x)),
}


def loss_of(f):
    """The sum of squares: its Hessian has the second derivatives of `f`, and more."""
    return lambda x: jnp.sum(f(x) ** 2)


def hvp(f, x, v):
    """The Hessian of the loss times a vector, forward over reverse."""
    return jax.jvp(jax.grad(loss_of(f)), (x,), (v,))[1]


def along(f, x, v):
    """The sum of cubes, which has a third derivative, after a step along `v`."""
    return lambda step: jnp.sum(f(x + step * v) ** 3)


def third(f, x, v):
    """The third derivative of that in the step, forward over reverse over reverse."""
    twice = jax.grad(jax.grad(along(f, x, v)))
    zero = jnp.zeros((), x.dtype)
    return jax.jvp(twice, (zero,), (zero + 1,))[1]


DERIVATIVES = {
    "grad": ("gradient", lambda f, x, v: jax.grad(loss_of(f))(x)),
    "jvp": ("jvp", lambda f, x, v: jax.jvp(f, (x,), (v,))[1]),
    "jacfwd": ("jacobian", lambda f, x, v: jax.jacfwd(f)(x)),
    "jacrev": ("jacobian", lambda f, x, v: jax.jacrev(f)(x)),
    "hessian": ("hessian", lambda f, x, v: jax.hessian(loss_of(f))(x)),
    "hvp": ("hvp", hvp),
    "linearize": ("jvp", lambda f, x, v: jax.linearize(f, x)[1](v)),
    "vmap(grad)": (
        "both gradients",
        lambda f, x, z: jax.vmap(jax.grad(loss_of(f)))(pair(x, z)),
    ),
    "grad(checkpoint)": (
        "gradient",
        lambda f, x, v: jax.grad(loss_of(jax.checkpoint(f)))(x),
    ),
    "grad(scan)": (
        "both gradients",
        lambda f, x, z: jax.grad(
            lambda both: jax.lax.scan(
                lambda total, x: (total + loss_of(f)(x), None),
                jnp.zeros((), x.dtype),
                both,
            )[0]
        )(pair(x, z)),
    ),
    "jvp(while_loop)": (
        "jvp",
        lambda f, x, v: jax.jvp(lambda x: in_while_loop(f, x, x), (x,), (v,))[1],
    ),
    "grad(custom_vjp)": (
        "gradient",
        lambda f, x, v: jax.grad(loss_of(in_custom_vjp(f)))(x),
    ),
}
THIRD = {"third order": ("third", third)}


NEAR = 2.0**-24  # far above the noise of float64, below what changes an order


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is right for one case, in float64.

    `f` is differentiated by its own rules, in reverse; `differences` of its values are
    there to check these. `moves` says how far what is expected moves when each input
    moves by its own size: no result is nearer than epsilon of that.
    """

    f: object
    x: np.ndarray
    z: np.ndarray

    @property
    def _derivatives(self):
        return self._both[0]

    @functools.cached_property
    def moves(self):
        here, near = self._both
        return {name: np.abs(near[name] - here[name]).max() / NEAR for name in here}

    @functools.cached_property
    def _both(self):
        """The derivatives at both inputs, and at inputs near to them."""
        f, loss = self.f, loss_of(self.f)

        @jax.jit
        def all_of_them(x, z):
            gradient = jax.grad(loss)
            hessian = jax.jacrev(gradient)(x)
            return {
                "jacobian": jax.jacrev(f)(x),
                "gradient": gradient(x),
                "both gradients": jnp.stack([gradient(x), gradient(z)]),
                "hessian": hessian,
                "hvp": jnp.tensordot(hessian, z, z.ndim),
            }

        signs = np.random.default_rng(0).choice([-1.0, 1.0], (2, *self.x.shape))
        found = []
        for step in (0.0, NEAR):
            x, z = np.stack([self.x, self.z]) * (1 + step * signs)
            with double():
                here = jax.tree.map(np.asarray, all_of_them(jnp.array(x), jnp.array(z)))
            found.append(here | {"jvp": np.tensordot(here["jacobian"], z, z.ndim)})
        return found

    @functools.cached_property
    def _third(self):
        with double():
            return np.asarray(jax.jit(jax.grad(self._second))(0.0))

    def _second(self, step):
        """The second derivative in the step along `z`, after a step."""
        x, z = jnp.asarray(self.x), jnp.asarray(self.z)
        return jax.grad(jax.grad(along(self.f, x, z)))(step)

    def __getitem__(self, name):
        return self._third if name == "third" else self._derivatives[name]

    def differences(self, step=1e-5):
        """Central differences of the values, the gradient and the second derivative."""
        norm = np.linalg.norm(self.z)

        def slopes(g, x, step=step):
            steps = jnp.eye(x.size).reshape(-1, *x.shape) * step
            columns = jax.vmap(lambda d: (g(x + d) - g(x - d)) / (2 * step))(steps)
            columns = jnp.moveaxis(columns, 0, -1)
            return columns.reshape(*columns.shape[:-1], *x.shape)

        @jax.jit
        def all_of_them(x):
            return {
                "jacobian": slopes(self.f, x),
                "hessian": slopes(jax.grad(loss_of(self.f)), x),
                # So that all of x moves that far, not each element of it.
                "third": slopes(self._second, jnp.zeros(()), step / norm),
            }

        with double():
            return jax.tree.map(np.asarray, all_of_them(self.x))


class double:
    """64-bit types within, and again what was before after it."""

    def __enter__(self):
        self.before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)

    def __exit__(self, *_):
        jax.config.update("jax_enable_x64", self.before)
