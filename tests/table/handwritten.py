"""Models as people write them in plain JAX, each `name -> Row`."""

import jax
import jax.numpy as jnp
import numpy as np
from rows import (
    Row,
    attention,
    conv,
    layer_norm,
    matrices,
    normal,
    relu,
    rms_norm,
)

N = 2


def vit(p, x):
    patches = conv(x, p[0], window_strides=(2, 2), padding="VALID")
    tokens = patches.reshape(N, -1, 4) + p[1][None]
    tokens = tokens + attention(p[2:6], layer_norm(tokens))
    tokens = tokens + relu(layer_norm(tokens) @ p[6]) @ p[7]
    return layer_norm(tokens).mean(1) @ p[8]


VIT = matrices((2, 2, 3, 4), (4, 4), *[(4, 4)] * 4, (4, 8), (8, 4), (4, 3))


def causal(p, x):
    """A language model from its embeddings on: logits of the next token."""
    after = jnp.tril(jnp.ones((5, 5), bool))[None, None]
    x = x + attention(p[:4], layer_norm(x), after)
    x = x + jax.nn.gelu(layer_norm(x) @ p[4]) @ p[5]
    return layer_norm(x)[:, -1] @ p[6]


def rotary(x):
    angles = jnp.arange(x.shape[1], dtype=x.dtype)[:, None] * jnp.array([[1.0, 0.1]])
    cos, sin = jnp.cos(angles)[None], jnp.sin(angles)[None]
    left, right = x[..., :2], x[..., 2:]
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)


def llama(p, x):
    h = rms_norm(x) * p[7][None]
    queries, keys = rotary(h @ p[0]), rotary(h @ p[1])
    logits = jnp.einsum("ntd,nsd->nts", queries, keys) / 2
    logits = jnp.where(jnp.tril(jnp.ones((5, 5), bool))[None], logits, -1e9)
    x = x + jnp.einsum("nts,nsd->ntd", jax.nn.softmax(logits, -1), h @ p[2])
    h = rms_norm(x)
    x = x + (jax.nn.silu(h @ p[3]) * (h @ p[4])) @ p[5]
    return rms_norm(x)[:, -1] @ p[6]


def swin(p, x):
    """Attention in windows of 2 x 2, shifted by one the second time."""
    for w, shift in ((p[:4], 0), (p[4:8], 1)):
        h = jnp.roll(layer_norm(x), (-shift, -shift), (1, 2))
        h = h.reshape(N, 2, 2, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(N * 4, 4, 4)
        h = attention(w, h)
        h = h.reshape(N, 2, 2, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(N, 4, 4, 4)
        x = x + jnp.roll(h, (shift, shift), (1, 2))
    return x.mean((1, 2)) @ p[8]


def gru(p, x):
    def cell(h, column):
        reset, update = jnp.split(jax.nn.sigmoid(column @ p[0] + h @ p[1]), 2, axis=1)
        candidate = jnp.tanh(column @ p[2] + (reset * h) @ p[3])
        return (1 - update) * h + update * candidate, None

    return jax.lax.scan(cell, jnp.zeros((N, 4)), x.transpose(1, 0, 2))[0] @ p[4]


def lstm(p, x):
    def cell(carry, column):
        h, c = carry
        i, f, g, o = jnp.split(column @ p[0] + h @ p[1], 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), h

    start = (jnp.zeros((N, 4)), jnp.zeros((N, 4)))
    (h, _), _ = jax.lax.scan(cell, start, x.transpose(1, 0, 2))
    return h @ p[2]


def mamba(p, x):
    """A selective state space: decay and input depend on the token; an associative scan."""
    h = rms_norm(x)
    signal = jax.nn.silu(h @ p[0])
    step = jax.nn.softplus(h @ p[1])
    decay = jnp.exp(-step[..., None] * jnp.exp(p[2])[None, None])  # [N, T, D, S]
    into = (step * signal)[..., None] * (h @ p[3])[:, :, None]
    join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
    _, states = jax.lax.associative_scan(join, (decay, into), axis=1)
    y = jnp.einsum("ntds,nts->ntd", states, h @ p[4])
    return (x + (y * jax.nn.silu(h @ p[5])) @ p[6]).mean(1) @ p[7]


def spectrogram(p, x):
    """A waveform's magnitudes in windows, convolved along time."""
    frames = jnp.stack([x[:, i : i + 8] for i in range(0, 16, 4)], 1)
    window = jnp.asarray(np.hanning(10)[1:-1], x.dtype)[None, None]
    magnitudes = jnp.abs(jnp.fft.rfft(frames * window, axis=-1))
    return relu(conv(magnitudes, p[0])).mean(1) @ p[1]


def ode(p, x):
    """Eight steps of Runge-Kutta's midpoint rule."""

    def step(y, _):
        middle = y + 0.05 * jnp.tanh(y @ p[0])
        return y + 0.1 * jnp.tanh(middle @ p[0]), None

    return jax.lax.scan(step, x, None, length=8)[0] @ p[1]


SENDERS, RECEIVERS = np.array([0, 1, 2, 3, 0, 2]), np.array([1, 2, 3, 0, 2, 0])


def over_nodes(aggregate, messages):
    """Aggregates the messages of each graph's edges at their receivers; `[N, E, C]`."""
    return jax.vmap(lambda m: aggregate(m, RECEIVERS, num_segments=4))(messages)


def graph_sum(p, x):
    for w in p[:2]:
        x = relu(x @ w + over_nodes(jax.ops.segment_sum, x[:, SENDERS] @ w))
    return x.sum(1) @ p[2]


def graph_max(p, x):
    x = over_nodes(jax.ops.segment_max, relu(x[:, SENDERS] @ p[0]))
    return x.mean(1) @ p[2]


def graph_attention(p, x):
    h = x @ p[0]
    logits = jax.nn.leaky_relu(h[:, SENDERS] @ p[3] + h[:, RECEIVERS] @ p[4], 0.2)
    top = over_nodes(jax.ops.segment_max, jax.lax.stop_gradient(logits))
    weights = jnp.exp(logits - top[:, RECEIVERS])
    weights = weights / over_nodes(jax.ops.segment_sum, weights)[:, RECEIVERS]
    return over_nodes(jax.ops.segment_sum, weights * h[:, SENDERS]).mean(1) @ p[2]


GRAPH = matrices((3, 4), (4, 4), (4, 3), (4, 1), (4, 1))


def unet(p, x):
    """Depthwise, dilated and transposed convolutions, a skip by concatenation."""
    wide = relu(conv(x, p[0], rhs_dilation=(2, 2)))
    deep = conv(wide, p[1], window_strides=(2, 2), feature_group_count=4)
    deep = relu(deep)
    up = jax.lax.conv_transpose(
        deep, p[2], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return conv(jnp.concatenate([relu(up), wide], -1), p[3]).mean((1, 2))


def vae(p, x):
    """The decoder of the mean, and the divergence's part for each number."""
    mean, spread = jnp.split(relu(x @ p[0]) @ p[1], 2, axis=1)
    return jnp.concatenate([relu(mean @ p[2]) @ p[3], mean**2 - spread], 1)


def experts(p, x):
    """Two of three experts for each example, weighted by their softmax."""
    logits = x @ p[0]
    best, which = jax.lax.top_k(logits, 2)
    weights = (jax.nn.softmax(best, -1)[..., None] * jax.nn.one_hot(which, 3)).sum(1)
    outputs = jnp.stack([relu(x @ w) for w in p[1:4]], 1)
    return (weights[..., None] * outputs).sum(1) @ p[4]


def quantised(p, x):
    """Fake quantisation of weights and activations, straight through."""

    def rounded(a):
        return a + jax.lax.stop_gradient(jnp.round(a * 8) / 8 - a)

    return rounded(relu(rounded(x) @ rounded(p[0]))) @ rounded(p[1])


@jax.custom_vjp
def reversal(x):
    return x * 1.0


reversal.defvjp(lambda x: (x * 1.0, None), lambda _, g: (-0.5 * g,))


def reversed_head(p, x):
    h = relu(x @ p[0])
    return jnp.concatenate([h @ p[1], reversal(h) @ p[2]], 1)


def deep_sets(p, x):
    return relu(relu(x @ p[0]).sum(1) @ p[1]) @ p[2]


def siamese(p, x):
    left, right = (relu(side @ p[0]) @ p[1] for side in (x["left"], x["right"]))
    return jnp.concatenate([jnp.abs(left - right), left * right], 1) @ p[2]


def pooled_by_mask(p, x):
    """Attention pooling that never sees the last place of the first example."""
    mask = jnp.array([[True, True, True, False], [True, True, True, True]])
    logits = jnp.where(mask, (x @ p[0])[..., 0], -jnp.inf)
    weights = jax.nn.softmax(logits, -1)
    return relu((weights[..., None] * x).sum(1) @ p[1]) @ p[2]


def flow(p, x):
    """Two affine couplings, and the log determinant beside the values."""
    total = jnp.zeros((N, 1))
    for w in (p[:2], p[2:4]):
        left, right = jnp.split(x, 2, axis=1)
        scale = jnp.tanh(left @ w[0])
        total = total + scale.sum(1, keepdims=True)
        x = jnp.concatenate([right * jnp.exp(scale) + left @ w[1], left], 1)
    return jnp.concatenate([x, total], 1)


def fourier_operator(p, x):
    """Low frequencies times complex weights, beside a 1x1 convolution."""
    spectrum = jnp.fft.rfft(x, axis=1)[:, :3]
    kernel = jax.lax.complex(p[0], p[1])
    mixed = jnp.einsum("nkc,kcd->nkd", spectrum, kernel)
    x = relu(jnp.fft.irfft(mixed, n=8, axis=1) + x @ p[2])
    return x.mean(1) @ p[3]


def bag(p, x):
    """Rows of a hashed table, summed with the weights that are explained."""
    words = np.array([[1, 5, 9], [2, 2, 7]]) * 7 % 5
    return relu((x[..., None] * p[0][words]).sum(1)) @ p[1]


def branches(p, x):
    """Activations out of `where`."""
    h = x @ p[0]
    h = jnp.where(h > 0, h, 0.1 * h)
    h = jnp.where(h >= 1, 2 * h - 1, h)
    h = h * jnp.where(h < 0, 0.5, 1.0)
    return h @ p[1]


def strongest(p, x):
    """The mean of the two largest places of each channel, and its sorted values."""
    h = x @ p[0]
    top = jax.lax.top_k(h.transpose(0, 2, 1), 2)[0].mean(-1)
    return jnp.concatenate([top @ p[1], jnp.sort(h, 1)[:, :2].reshape(N, -1)], 1)


def controlled(p, x):
    """A branch on the batch, and a loop of known length."""
    h = x @ p[0]
    h = jax.lax.cond(jnp.sum(p[1]) > -100, lambda h: jnp.tanh(h), lambda h: 2 * h, h)
    h = jax.lax.fori_loop(0, 3, lambda _, h: h + jnp.tanh(h @ p[1]), h)
    return h @ p[2]


words, vectors = normal(N, 5, 4), normal(N, 6, seed=3)
images = normal(N, 4, 4, 3, seed=4)

ROWS = {
    "vit": lambda: Row(vit, VIT, images, "finite", cam=("conv_0", -1), grid=(2, 2)),
    "causal_lm": lambda: Row(
        causal,
        matrices(*[(4, 4)] * 4, (4, 8), (8, 4), (4, 3)),
        words,
        "finite",
    ),
    "llama": lambda: Row(
        llama,
        [*matrices(*[(4, 4)] * 3, (4, 8), (4, 8), (8, 4), (4, 3)), jnp.full((1, 4), 1.5)],
        words,
        "finite",
    ),
    "swin": lambda: Row(
        swin,
        matrices(*[(4, 4)] * 8, (4, 3)),
        normal(N, 4, 4, 4, seed=5),
        "finite",
    ),
    "gru": lambda: Row(  # the 1 of 1 - update takes a part, as a bias does
        gru, matrices((3, 8), (4, 8), (3, 4), (4, 4), (4, 3)), normal(N, 4, 3), "finite"
    ),
    "lstm": lambda: Row(lstm, matrices((3, 16), (4, 16), (4, 3)), normal(N, 4, 3)),
    "mamba": lambda: Row(
        mamba,
        matrices((4, 4), (4, 4), (4, 2), (4, 2), (4, 2), (4, 4), (4, 4), (4, 3)),
        words,
        "finite",
    ),
    "spectrogram": lambda: Row(
        spectrogram,
        matrices((3, 5, 4), (4, 3)),
        normal(N, 20),
        baseline=0.1 * normal(N, 20, seed=1),  # a magnitude has no slope at 0
    ),
    "ode_fixed": lambda: Row(ode, matrices((6, 6), (6, 3)), vectors),
    "graph_sum": lambda: Row(graph_sum, GRAPH, normal(N, 4, 3)),
    "graph_max": lambda: Row(graph_max, GRAPH, normal(N, 4, 3)),
    "graph_attention": lambda: Row(graph_attention, GRAPH, normal(N, 4, 3), "finite"),
    "unet": lambda: Row(
        unet,
        matrices((3, 3, 3, 4), (3, 3, 1, 4), (2, 2, 4, 4), (3, 3, 8, 3)),
        images,
        cam=("conv_0", -1),
    ),
    "vae": lambda: Row(vae, matrices((6, 5), (5, 4), (2, 5), (5, 6)), vectors),
    "experts": lambda: Row(
        experts,
        matrices((6, 3), *[(6, 4)] * 3, (4, 3)),
        vectors,
        "finite",
    ),
    "quantised": lambda: Row(quantised, matrices((6, 4), (4, 3)), vectors),
    "reversal": lambda: Row(reversed_head, matrices((6, 4), (4, 2), (4, 2)), vectors),
    "deep_sets": lambda: Row(deep_sets, matrices((3, 4), (4, 4), (4, 3)), normal(N, 4, 3)),
    "siamese": lambda: Row(
        siamese,
        matrices((6, 4), (4, 3), (6, 2)),
        {"left": vectors, "right": normal(N, 6, seed=8)},
    ),
    "masked_pooling": lambda: Row(
        pooled_by_mask,
        matrices((3, 1), (3, 4), (4, 3)),
        normal(N, 4, 3),
        "finite",
    ),
    "flow": lambda: Row(flow, matrices(*[(3, 3)] * 4), vectors, "finite"),
    "fourier_operator": lambda: Row(
        fourier_operator,
        matrices((3, 3, 4), (3, 3, 4), (3, 4), (4, 3)),
        normal(N, 8, 3),
    ),
    "bag": lambda: Row(bag, matrices((5, 4), (4, 3)), normal(N, 3)),
    "branches": lambda: Row(branches, matrices((6, 4), (4, 3)), 2 * vectors, "finite"),
    "strongest": lambda: Row(strongest, matrices((3, 4), (4, 2)), normal(N, 5, 3)),
    "controlled": lambda: Row(
        controlled,
        matrices((6, 4), (4, 4), (4, 3)),
        vectors,
    ),
}
