"""Which heads of a language model copy? Induction heads, found by patching, then taken out.

`python examples/induction_heads.py --out FOLDER`, a minute on a CPU, no download.

A causal transformer of two blocks of attention alone learns to continue passages of Python's own
help texts, letter by letter, each passage said again and again. To know what comes next the second
time, a head must look at what followed the same letters the first time: an induction head (Olsson
et al. 2022, arXiv:2209.11895). Passages are of any length, so no fixed distance will do.

Patching finds them on passages held back: the answer comes back where a head's value is taken from
the text with the repeat. Where that head looks was not asked, and must agree; and without it the
model must forget how to repeat, but not how to write.
"""

import argparse
import functools
import string

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxviz as jv
from jaxviz import plot
from jaxviz.folders import out_folder

LETTERS = string.printable[:95]
LENGTH, WIDTH, HEADS, BLOCKS = 32, 64, 4, 2
HALF = LENGTH // 2


def help_texts():
    """The letters of Python's help topics as numbers."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name] for name in sorted(topics)).split())
    return np.array([LETTERS.find(letter) for letter in text if letter in LETTERS], np.int32)


def block(w, x):
    """Heads whose values are added to the stream."""
    q, k, v = (jnp.einsum("ntd,dhk->nhtk", x, w[name]) for name in "qkv")
    scores = jnp.einsum("nhqk,nhtk->nhqt", q, k) / np.float32(q.shape[-1] ** 0.5)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    return x + jnp.einsum("nhqk,hkd->nqd", jnp.einsum("nhqt,nhtk->nhqk", weights, v), w["o"])


def net(w, ids):
    """Letters `[N, T]` to logits of the next one `[N, T, letters]`; blocks in a scan."""
    x = w["embed"][ids] + w["places"][None, : ids.shape[1]]
    x, _ = jax.lax.scan(lambda x, one: (block(one, x), None), x, w["blocks"])
    return x @ w["out"]


def initial(key):
    keys = iter(jax.random.split(key, 7))
    drawn = lambda *shape: jax.random.normal(next(keys), shape)
    scale, head = np.float32(WIDTH**-0.5), WIDTH // HEADS
    blocks = {name: drawn(BLOCKS, WIDTH, HEADS, head) * scale for name in "qkv"}
    blocks["o"] = drawn(BLOCKS, HEADS, head, WIDTH) * scale
    ends = {"embed": drawn(len(LETTERS), WIDTH), "places": drawn(LENGTH, WIDTH)}
    return {"blocks": blocks, **ends, "out": drawn(WIDTH, len(LETTERS)) * scale}


def passages(key, text, count, length=None):
    """Passages said again and again, of `length` letters or of any from 8 to half of all."""
    one, two = jax.random.split(key)
    sizes = jax.random.randint(one, (count, 1), 8, HALF + 1) if length is None else length
    starts = jax.random.randint(two, (count, 1), 0, len(text) - LENGTH)
    return text[starts + jnp.arange(LENGTH)[None] % sizes]


@functools.partial(jax.jit, static_argnames="num_steps")
def train(w, key, text, num_steps):
    optimizer = optax.adam(3e-3)

    def loss(w, ids):
        losses = optax.softmax_cross_entropy_with_integer_labels(net(w, ids)[:, :-1], ids[:, 1:])
        return losses.mean()

    def step(state, key):
        w, moments = state
        value, slope = jax.value_and_grad(loss)(w, passages(key, text, 64))
        updates, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(w, updates), moments), value

    state = w, optimizer.init(w)
    return jax.lax.scan(step, state, jax.random.split(key, num_steps))[0][0]


def accuracy(model, w, ids):
    """How often the next letter is right: the first time that it is said, and the second."""
    right = np.asarray(model(w, ids))[:, :-1].argmax(-1) == np.asarray(ids)[:, 1:]
    return float(right[:, : HALF - 1].mean()), float(right[:, HALF:].mean())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the picture")
    parser.add_argument("--num-steps", type=int, default=1000)
    arguments = parser.parse_args(argv)
    text, keys = jnp.asarray(help_texts()), jax.random.split(jax.random.key(0), 5)
    w = train(initial(keys[0]), keys[1], text[:-20_000], arguments.num_steps)

    # x says another passage first, so that what its end repeats was never said.
    said = passages(keys[2], text[-20_000:], 128, HALF)
    other = passages(keys[3], text[-20_000:], 128, HALF)
    source = said[:, :-1]
    x, answer = jnp.concatenate([other[:, :HALF], source[:, HALF:]], 1), said[:, -1]
    rows = np.arange(len(answer))
    logit = lambda outputs: jax.nn.log_softmax(outputs[:, -1])[rows, answer]

    exact = jv.activation_patching(net, w, x, source, logit)
    first_order = jv.attribution_patching(net, w, x, source, logit)
    brings, slopes = (np.asarray(p.effect.mean(0) / p.gap.mean()) for p in (exact, first_order))

    # How much each head looks, from each letter said again, to the one after its first occurrence.
    at = np.arange(HALF, LENGTH - 1)
    maps = jv.attentions(net, w, source).values()
    looks = np.stack([np.asarray(a)[:, :, at, at - HALF + 1].mean((0, 2)) for a in maps])

    names = [name.split("[")[0] for name in jv.attentions(net, w, source[:1])]
    places = [f"{name}[{i}]:heads" for i, name in enumerate(names)]
    zero = lambda model, i, j: jv.patched(model, places[i], 0.0, where=int(j))
    before = accuracy(net, w, said)
    alone = {place: accuracy(zero(net, *place), w, said)[1] for place in np.ndindex(brings.shape)}
    copying = [place for place in np.ndindex(brings.shape) if brings[place] > 0.25]
    without = functools.reduce(lambda model, place: zero(model, *place), copying, net)
    after = accuracy(without, w, said)

    agree = np.corrcoef(brings.ravel(), looks.ravel())[0, 1]
    print(f"next letter right the first time, and the second: {before[0]:.0%}, {before[1]:.0%}")
    for i, j in copying:
        print(
            f"block {i} head {j} brings back {brings[i, j]:.0%} of the answer ({slopes[i, j]:.0%} "
            f"to first order), and looks where it stood {looks[i, j]:.0%} of its time"
        )
    print(f"over all heads the two have a correlation of {agree:.2f}")
    print(f"without these heads: {after[0]:.0%}, {after[1]:.0%}")
    i, j = min(alone, key=lambda place: alone[place])
    print(f"the one head that repeating needs most: block {i} head {j}, {alone[i, j]:.0%} without")
    shown = {"brings back": brings, "first order": slopes, "looks there": looks}
    lost = [[before[1] - alone[i, j] for j in range(HEADS)] for i in range(BLOCKS)]
    shown["forgets without"] = np.array(lost)
    figure = plot.token_layer_map(
        [f"head {j}" for j in range(HEADS)],
        {f"{what}, block {i}": row for what, rows in shown.items() for i, row in enumerate(rows)},
        title="Which heads repeat a text: by patching, by where they look, by what is lost",
    )
    figure.savefig(arguments.out / "induction_heads.png", dpi=120)
    return {"agree": agree, "before": before, "after": after, "copying": copying}


if __name__ == "__main__":
    jv.keep_compiled()
    main()
