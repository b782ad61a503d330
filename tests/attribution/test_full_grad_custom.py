"""The full gradient of a net inside of a function with a derivative of its own."""

import jax
import numpy as np

import jaxviz as jv


def net(w, x):
    return jax.nn.relu(x @ w[0] + w[1][None]) @ w[2]


@jax.custom_vjp
def wrapped(w, x):
    return net(w, x)


wrapped.defvjp(lambda w, x: (net(w, x), (w, x)), lambda kept, g: jax.vjp(net, *kept)[1](g))


@jax.custom_vjp
def reversed_(x):
    return x * 1


reversed_.defvjp(lambda x: (x, None), lambda _, g: (-g,))


def test_biases_inside_of_a_custom_derivative_have_their_terms():
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    w, x = (draw(0, 4, 5), draw(1, 5), draw(2, 5, 2)), draw(3, 3, 4)
    plain, found = (jv.full_gradient(f, w, x, 0) for f in (net, wrapped))
    np.testing.assert_allclose(found.biases[0], plain.biases[0], rtol=1e-5)
    total = found.inputs.sum(1) + sum(b.sum(1) for b in found.biases)
    np.testing.assert_allclose(total, net(w, x)[:, 0], rtol=1e-5)
    # A derivative that no bias is inside of stays the model's own.
    turned = jv.full_gradient(lambda w, x: net(w, reversed_(x)), w, x, 0)
    np.testing.assert_allclose(turned.inputs, -plain.inputs, rtol=1e-5)
