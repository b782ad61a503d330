"""Targets of structured outputs, against NumPy's indexing; one program for equal ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz import targets

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(size=(3, 5, 7)).astype(np.float32)  # [N, L, V]
LOGS = OUTPUTS - np.log(np.exp(OUTPUTS).sum(-1, keepdims=True))


def test_a_position_and_a_class():
    at = lambda *given: np.asarray(targets.position_and_class(*given)(jnp.asarray(OUTPUTS)))
    np.testing.assert_array_equal(at(-1, 4), OUTPUTS[:, 4, 4])
    places, classes = [4, -2, 0], np.array([1, 6, 0])
    np.testing.assert_array_equal(at(places, classes), OUTPUTS[[0, 1, 2], [4, 3, 0], classes])


def test_the_log_probability_of_a_continuation():
    given = lambda *a, **o: targets.log_probability(*a, **o)(jnp.asarray(OUTPUTS))
    np.testing.assert_allclose(given([6, 2]), LOGS[:, 2, 6] + LOGS[:, 3, 2], rtol=1e-5)
    np.testing.assert_allclose(given([6, 2], start=1), LOGS[:, 0, 6] + LOGS[:, 1, 2], rtol=1e-5)
    own = np.array([[1], [2], [3]])
    np.testing.assert_allclose(given(own), LOGS[[0, 1, 2], 3, [1, 2, 3]], rtol=1e-5)


def test_the_mean_over_masked_positions():
    mask = RNG.random((3, 5)) < 0.6
    mask[:, 0] = True
    labels = RNG.integers(0, 7, (3, 5))
    labels[~mask] = -100  # of what is not masked nothing is read
    mean = lambda *given: np.asarray(targets.masked_mean(*given)(jnp.asarray(OUTPUTS)))
    by_hand = [OUTPUTS[n][mask[n], 3].mean() for n in range(3)]
    np.testing.assert_allclose(mean(mask, 3), by_hand, rtol=1e-5)
    by_hand = [
        np.mean([OUTPUTS[n, p, labels[n, p]] for p in np.flatnonzero(mask[n])]) for n in range(3)
    ]
    np.testing.assert_allclose(mean(mask, labels), by_hand, rtol=1e-5)
    np.testing.assert_allclose(mean(mask[0], 3)[1], OUTPUTS[1][mask[0], 3].mean(), rtol=1e-5)
    found = targets.masked_mean(mask)(jnp.asarray(OUTPUTS[..., 0]))
    np.testing.assert_allclose(found, [OUTPUTS[n, mask[n], 0].mean() for n in range(3)], rtol=1e-5)


def test_a_difference_of_classes_and_of_targets():
    rows = jnp.asarray(OUTPUTS[:, 0])
    np.testing.assert_allclose(targets.difference(2, 5)(rows), OUTPUTS[:, 0, 2] - OUTPUTS[:, 0, 5])
    word = lambda index: targets.position_and_class(1, index)
    found = targets.difference(word(2), word(5))(jnp.asarray(OUTPUTS))
    np.testing.assert_allclose(found, OUTPUTS[:, 1, 2] - OUTPUTS[:, 1, 5])


def test_equal_targets_are_one():
    masks = [np.array([True, False])] * 2
    for make in (
        lambda n: targets.position_and_class([n, 1], 2),
        lambda n: targets.log_probability([n, 1]),
        lambda n: targets.masked_mean(masks[0], np.array([n, 3])),
        lambda n: targets.difference(targets.log_probability([n]), 1),
        lambda n: jv.continuations(jnp.sin, [[n], [2, 3]]),
    ):
        assert make(0) == make(0)
        assert hash(make(0)) == hash(make(0))
        assert make(0) != make(1)


WORDS = jnp.asarray(RNG.normal(size=(7, 4)), jnp.float32)


def causal(words, ids):
    """What stands before each place, summed, says what follows."""
    return jnp.tanh(jnp.cumsum(words[ids], 1)) @ words.T


def test_continuations_are_classes_of_a_prompt():
    """Each run by hand; occlusion of the prompt of the difference of two."""
    prompt, pair = np.array([[1, 2, 3], [4, 0, 6]]), ([5], [1, 3])

    def score(ids, tokens):
        total = 0
        for k, token in enumerate(tokens):  # one word at a time, as it would be spoken
            before = np.concatenate([ids, np.broadcast_to(tokens[:k], (len(ids), k))], 1).astype(
                int
            )
            last = np.tanh(np.asarray(WORDS)[before].sum(1)) @ np.asarray(WORDS).T
            total += last[:, token] - np.log(np.exp(last).sum(1))
        return total

    model = jv.continuations(causal, pair)
    by_hand = np.stack([score(prompt, tokens) for tokens in pair], 1)
    np.testing.assert_allclose(model(WORDS, jnp.asarray(prompt)), by_hand, rtol=1e-4)
    target = targets.difference(0, 1)
    found = jv.feature_ablation(model, WORDS, jnp.asarray(prompt), target)
    gap = by_hand[:, 0] - by_hand[:, 1]
    for place in range(3):
        hidden = prompt.copy()
        hidden[:, place] = 0
        lost = gap - (score(hidden, pair[0]) - score(hidden, pair[1]))
        np.testing.assert_allclose(found[:, place], lost, atol=1e-4)


def test_a_gradient_of_a_continuation_at_the_embedding():
    ids = jnp.array([[1, 2, 3, 5]])  # the last is the continuation
    found = jv.at_layer(jv.gradient, "embed_0")(causal, WORDS, ids, targets.log_probability([5]))

    def score(a):
        logits = jnp.tanh(jnp.cumsum(a, 0)) @ WORDS.T
        return jax.nn.log_softmax(logits[2])[5]

    np.testing.assert_allclose(found[0], jax.grad(score)(WORDS[ids[0]]), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: targets.position_and_class(5, 0), r"position must be in \[-5, 5\).*got 5"),
        (lambda: targets.position_and_class([0, 1], 0), r"position must be .* each of 3 examples"),
        (lambda: targets.position_and_class(0, 7), r"index must be in \[0, 7\)"),
        (lambda: targets.log_probability([1], start=5), r"start must be 1 to 4"),
        (lambda: targets.log_probability([1] * 5), r"start must be 1 to 0"),
        (lambda: targets.log_probability([9]), r"tokens must be in \[0, 7\)"),
        (lambda: targets.masked_mean([True], 0), r"mask must be \(5,\) or \(3, 5\)"),
        (lambda: targets.masked_mean([False] * 5, 0), r"a position for each example"),
        (lambda: targets.difference(0, 1), r"outputs must be \[N, K\]"),
    ],
)
def test_what_the_outputs_do_not_have_is_refused(make, told):
    net = lambda _, x: x * 1.0
    with pytest.raises(ValueError, match=rf"^gradient: .*{told}"):
        jv.gradient(net, None, jnp.asarray(OUTPUTS), make())
