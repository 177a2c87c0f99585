"""`check_pool_op` passes what is right, and says of each wrong op what is wrong."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxpool as jp
from jaxpool import testing


@pytest.mark.parametrize(
    ("op", "answer", "facts"),
    [
        pytest.param(
            *(jp.avg_pool, oracle.mean),
            dict(integers="mean", linear=True, monotone=True),
            marks=pytest.mark.full,
        ),
        (jp.max_pool, oracle.maximum, dict(integers="keep", monotone=True)),
        (
            jp.adaptive_avg_pool,
            oracle.element_mean,
            dict(kind="adaptive", integers="mean", linear=True, monotone=True),
        ),
        (jp.global_min_pool, oracle.minimum, dict(kind="global", integers="keep")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.usefixtures("quick_compilation")
def test_passes_what_is_right(op, answer, facts):
    asked = testing.check_pool_op(op, answer, **facts)
    assert {"equals_the_oracle", "integers", "second_derivative"} <= {*asked}
    assert ("mask" in asked) == ("where" in inspect.signature(op).parameters)


def average(x, window_shape, strides=None, padding="VALID", *, axis=None, where=None):
    spec = (window_shape, strides, padding, False)
    return jp.avg_pool(x, *spec, axis=axis, where=where)


def counts_padding(x, window_shape, strides=None, padding="VALID"):
    return jp.avg_pool(x, window_shape, strides, padding)


def without_gradient(x, window_shape, strides=None, padding="VALID"):
    return jax.lax.stop_gradient(average(x, window_shape, strides, padding))


def without_second_derivative(x, window_shape, strides=None, padding="VALID"):
    @jax.custom_jvp
    def square(y):
        return y * y

    @square.defjvp
    def _(primals, tangents):
        return square(*primals), 2 * jax.lax.stop_gradient(primals[0]) * tangents[0]

    return square(average(x, window_shape, strides, padding))


def adds_in_its_own_dtype(x, window_shape, strides=None, padding="VALID"):
    return jp.sum_pool(x * jnp.asarray(1 / 3, x.dtype), window_shape, strides, padding)


def drops_nan(x, window_shape, strides=None, padding="VALID"):
    return jp.max_pool(
        jnp.where(jnp.isnan(x), -jnp.inf, x), window_shape, strides, padding
    )


def multiplies_by_the_mask(
    x, window_shape, strides=None, padding="VALID", *, where=None
):
    x = x if where is None else x * jnp.broadcast_to(where, x.shape).astype(x.dtype)
    return jp.sum_pool(x, window_shape, strides, padding)


def needs_a_batch(x, window_shape, strides=None, padding="VALID"):
    batch, *_ = x.shape
    if x.ndim != 2 + len(window_shape) or not batch:
        raise ValueError("a batch, please")
    return average(x, window_shape, strides, padding)


def ignores_axis(x, window_shape, strides=None, padding="VALID", *, axis=None):
    return average(x, window_shape, strides, padding)


def takes_the_last(x, window_shape, strides=None, padding="VALID"):
    places = jnp.arange(x[0, ..., 0].size, dtype=jnp.float32).reshape(x.shape[1:-1])
    codes = 1024 * jnp.round(x) + jnp.broadcast_to(places[None, ..., None], x.shape)
    return jnp.mod(jp.max_pool(codes, window_shape, strides, padding), 1024)


def first_place(elements, positions, pad):
    return positions[int(np.argmax(elements))]


def square(elements, positions, pad):
    return elements.mean() ** 2


def third(elements, positions, pad):
    return elements.sum() * (1 / 3)


@pytest.mark.parametrize(
    ("op", "answer", "facts", "question"),
    [
        (counts_padding, oracle.element_mean, {}, "equals_the_oracle"),
        (average, oracle.element_mean, {}, "is_what_its_row_says"),
        (ignores_axis, oracle.element_mean, {}, "any_layout"),
        (needs_a_batch, oracle.element_mean, {}, "any_number_of_batch_axes"),
        (without_gradient, oracle.element_mean, {}, "gradient_of_every_case"),
        (without_second_derivative, square, {}, "second_derivative"),
        (adds_in_its_own_dtype, third, {}, "half_precision"),
        (average, oracle.element_mean, dict(integers="keep"), "integers"),
        (drops_nan, oracle.maximum, {}, "nan_and_infinity"),
        (takes_the_last, first_place, {}, "ties"),
        (multiplies_by_the_mask, oracle.total, {}, "mask"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_is_wrong(op, answer, facts, question, monkeypatch):
    def only(cases, integers, table=testing._questions):
        return {question: table(cases, integers)[question]}

    monkeypatch.setattr(testing, "_questions", only)
    with pytest.raises(AssertionError) as raised:
        testing.check_pool_op(op, answer, **facts)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"`{op.__name__}`:"
    assert lines[1].startswith(f"{question}: {op.__name__}-")


def test_refuses():
    with pytest.raises(ValueError, match="`kind` must be one of window, global, ad"):
        testing.check_pool_op(average, oracle.mean, kind="other")
    with pytest.raises(TypeError, match="must have the arguments padding, strides; "):
        testing.check_pool_op(lambda x, window_shape: x, oracle.mean)
    with pytest.raises(ValueError, match="`skip` must be made of questions: equals_"):
        testing.check_pool_op(average, oracle.mean, skip=["values"])
