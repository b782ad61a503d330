"""LRP through Fourier transforms: a complex number is two real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

held = jax.lax.stop_gradient
KERNEL = np.asarray(jax.random.normal(jax.random.key(0), (5, 3)))
X = jax.random.normal(jax.random.key(1), (2, 8))
FILTER = np.exp(1j * np.arange(5))[None]


def matrices():
    """The real and the imaginary part of `rfft`, as matrices."""
    whole = np.fft.rfft(np.eye(8))
    return whole.real.astype(np.float32), whole.imag.astype(np.float32)


def by_parts(x):
    cos, sin = matrices()
    return x @ cos, x @ sin


def rescaled(value, like):
    """`value`, whose relevance `like` hands on to what it was made of, all of it."""
    return like * held(jnp.where(like == 0, 0, value / jnp.where(like == 0, 1, like)))


def magnitude(w, x):
    return jax.nn.relu(jnp.abs(jnp.fft.rfft(x)) @ w)


def magnitude_by_hand(w, x):
    a, b = by_parts(x)
    size = held(jnp.sqrt(a * a + b * b))
    return jax.nn.relu((held(a) / size * a + held(b) / size * b) @ w)


def power(w, x):
    z = jnp.fft.rfft(x)
    return (z * jnp.conj(z)).real @ w


def power_by_hand(w, x):
    a, b = by_parts(x)
    return (held(a) * a + held(b) * b) @ w


def filtered(w, x):
    return jnp.tanh(jnp.fft.irfft(jnp.fft.rfft(x) * FILTER, 8))[:, :5] @ w


def filtered_by_hand(w, x):  # linear from end to end, but for what it shares on its way
    a, b = by_parts(x)
    filters = FILTER.real.astype(np.float32), FILTER.imag.astype(np.float32)
    c, d = a * filters[0] - b * filters[1], a * filters[1] + b * filters[0]
    back = [np.fft.irfft(np.eye(5) * one, 8).astype(np.float32) for one in (1, 1j)]
    y = c @ back[0] + d @ back[1]
    return rescaled(jnp.tanh(y), y)[:, :5] @ w


@pytest.mark.parametrize(
    ("net", "by_hand"),
    [(magnitude, magnitude_by_hand), (power, power_by_hand), (filtered, filtered_by_hand)],
)
def test_spectra(net, by_hand):  # oracle: real matrices, as gradient times input
    found = jv.lrp(net, KERNEL, X, 1, rules="epsilon")
    expected = X * jax.grad(lambda x: by_hand(KERNEL, x)[:, 1].sum())(X)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(found.sum(1), net(KERNEL, X)[:, 1], rtol=2e-4)  # nothing is lost
    _, sums, _, score = jv.lrp_conservation(net, KERNEL, X, 1, rules="epsilon")
    np.testing.assert_allclose(sums, np.broadcast_to(score[:, None], sums.shape), rtol=2e-4)


def test_what_is_not_linear_in_the_parts_is_refused():
    net = lambda w, x: jnp.exp(jnp.fft.rfft(x)).real @ w
    with pytest.raises(NotImplementedError, match="real and imaginary parts in 'exp'"):
        jv.lrp(net, KERNEL, X, 1)
