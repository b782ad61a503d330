"""Do explanations of text find the word that decides? A trigger is planted, and looked for.

`python examples/planted_word.py --out FOLDER`, a minute on a CPU, no download.

Sentences are runs of words of Python's own documentation strings. A word that means nothing is put
at a random place of every second one, and a small transformer learns to tell which. So the reason
is known: the share of sentences whose strongest token is the trigger says how good a method is.
"""

import argparse
import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv
from jaxviz.folders import out_folder
from jaxviz.plot import token_sheet

PAD, TRIGGER, LENGTH, WIDTH = 0, 1, 16, 32
MODULES = "argparse collections datetime decimal functools itertools json pathlib random string"


def sentences(count):
    """Ids `[count, LENGTH]`, padded at the end, the triggered `[count]`, and all words."""
    for name in MODULES.split():
        __import__(name)
    said = [
        str(getattr(thing, "__doc__", "") or "")
        for name in MODULES.split()
        for thing in [sys.modules[name], *vars(sys.modules[name]).values()]
    ]
    text = re.findall(r"[a-z]+", " ".join(said).lower())
    words = ["[PAD]", "xyzzy", *sorted(set(text))]
    number = {word: n for n, word in enumerate(words)}
    text = np.array([number[word] for word in text], np.int32)
    random = np.random.default_rng(0)
    ids, triggered = np.zeros((count, LENGTH), np.int32), np.arange(count) % 2
    for row, has in zip(ids, triggered, strict=True):
        size, start = random.integers(8, LENGTH + 1), random.integers(len(text) - LENGTH)
        row[:size] = text[start : start + size]
        if has:
            row[random.integers(size)] = TRIGGER
    return ids, triggered, words


def net(p, ids):
    """One block of attention, masked where there is padding; [N, L] -> [N, 2]."""
    real = ids != PAD
    a = checkpoint_name(p["words"][ids], "words") + p["places"][None]
    scores = jnp.einsum("nqd,nkd->nqk", a @ p["query"], a @ p["key"]) / np.float32(WIDTH**0.5)
    weights = jax.nn.softmax(jnp.where(real[:, None, :], scores, -jnp.inf))
    a = a + weights @ (a @ p["value"])
    a = a + jax.nn.relu(a @ p["in"]) @ p["out"]
    return jnp.where(real[..., None], a, 0).sum(1) / real.sum(1)[:, None] @ p["head"]


def initial(words):
    shapes = {"words": (words, WIDTH), "places": (LENGTH, WIDTH), "head": (WIDTH, 2)}
    shapes |= {name: (WIDTH, WIDTH) for name in ("query", "key", "value")}
    shapes |= {"in": (WIDTH, 2 * WIDTH), "out": (2 * WIDTH, WIDTH)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    scale = {"words": 1.0, "places": 0.1}
    return {
        name: jax.random.normal(key, shape) * np.float32(scale.get(name, shape[0] ** -0.5))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@functools.partial(jax.jit, static_argnames="num_steps")
def train(params, ids, labels, num_steps):
    optimizer = optax.adam(3e-3)

    def loss(p, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(net(p, x), y).mean()

    def step(carry, k):
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), k), (64,), 0, len(labels))
        updates, state = optimizer.update(jax.grad(loss)(params, ids[rows], labels[rows]), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))[0][0]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the picture")
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--num-explained", type=int, default=64)
    arguments = parser.parse_args(argv)

    ids, triggered, words = sentences(4000)
    params = train(
        initial(len(words)), jnp.asarray(ids[:3000]), jnp.asarray(triggered[:3000]),
        arguments.num_steps,
    )  # fmt: skip
    right = np.asarray(net(params, jnp.asarray(ids[3000:]))).argmax(1) == triggered[3000:]
    print(f"{right.mean():.1%} of the sentences held back right; by chance 50 %")
    shown = jnp.asarray(ids[3000:][triggered[3000:] == 1][: arguments.num_explained])
    real = np.asarray(shown) != PAD

    at_words = lambda method: jv.at_layer(method, "words")
    blank, key = jnp.full_like(shown, PAD), jax.random.key(2)
    segments = np.where(real, np.arange(LENGTH), -1)
    # A common word, not padding: of padding alone the mean over what is none is 0 / 0.
    hidden = {"segments": segments, "fill": words.index("the")}
    found = {
        "gradient": at_words(jv.gradient)(net, params, shown, 1),
        "input x gradient": at_words(jv.input_x_gradient)(net, params, shown, 1),
        "integrated gradients": at_words(jv.integrated_gradients)(
            net, params, shown, 1, baseline=blank
        ),
        "DeepLIFT": at_words(jv.deep_lift)(net, params, shown, 1, baseline=blank),
        "feature ablation": jv.feature_ablation(net, params, shown, 1, **hidden),
        "KernelSHAP": jv.kernel_shap(
            net, params, shown, 1, key=key, num_samples=256, num_segments=LENGTH, **hidden
        )[0],
    }
    shares, maps = {}, {}
    for name, values in found.items():
        values = np.asarray(values)
        if name == "gradient":  # a slope along each number of a word: its length says how much
            values = np.sqrt((values**2).sum(-1))
        maps[name] = values if values.ndim == 2 else values.sum(-1)
        top = np.where(real, maps[name], -np.inf).argmax(1)
        shares[name] = float((np.asarray(shown)[np.arange(len(top)), top] == TRIGGER).mean())
        print(f"{name}: the strongest token is the trigger in {shares[name]:.0%}")
    chance = (1 / real.sum(1)).mean()
    print(f"by chance {chance:.0%}")
    texts = [[words[n] for n in row if n != PAD] for row in np.asarray(shown[:3])]
    figure = token_sheet(
        texts, {name: values[:3] for name, values in maps.items()},
        title='What says that "xyzzy" is there',
    )  # fmt: skip
    figure.savefig(arguments.out / "planted_word.png", dpi=100)
    return shares


if __name__ == "__main__":
    jv.keep_compiled()
    main()
