"""Claims: NMF of 10 classes x 5 seeds at once takes a tenth of scikit-learn's one after the other;
8 TopK autoencoders at once a third of torch's one after the other; CRAFT of a class a third of
Xplique's algorithm, whose factorisation is scikit-learn's.

Run: `python -m benchmarks.concepts [nmf] [autoencoders] [craft] [--tiny] [--torch FOLDER]`, the
folder one of packages where torch is another environment's. One JSON line a claim: medians of turns
of both sides in one process, on the same threads; the first call, which compiles, is told apart.
"""

import argparse
import json
import os
import sys
import time

import jax
import numpy as np
import optax

from jaxviz import concepts


def timed(function):
    """Seconds and processor seconds of a call, and what it returned."""
    time.sleep(0.2)  # OpenBLAS' threads of the call before keep cores busy for a tenth of a second
    start, busy = time.perf_counter(), time.process_time()
    found = jax.block_until_ready(function())
    return time.perf_counter() - start, time.process_time() - busy, found


def beside(ours, theirs, repeats):
    """Medians of both, in turns, and the seconds of our first call, which compiles.

    Processor seconds are of all threads: what others do on the machine changes them least.
    """
    first, *_ = timed(ours)
    turns = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    middle = lambda side, number: float(np.median([turn[side][number] for turn in turns]))
    one, other = middle(0, 0), middle(1, 0)
    told = {"ours_s": one, "theirs_s": other, "ratio": other / one, "first_call_s": first}
    busy = {"ours_cpu_s": middle(0, 1), "theirs_cpu_s": middle(1, 1)}
    busy["cpu_ratio"] = busy["theirs_cpu_s"] / busy["ours_cpu_s"]
    return told | busy, turns[-1][0][2], turns[-1][1][2]


def told(claim, numbers, **more):
    told = {"claim": claim, **numbers, **more, "jax": jax.__version__, "cores": os.cpu_count()}
    print(
        json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in told.items()})
    )


def activations(classes, rows, channels, parts, seed=0):
    """Like values of a late layer: mixtures of sparse parts, sparse noise, never negative."""
    rng = np.random.default_rng(seed)
    atoms = rng.gamma(0.3, size=(classes, parts, channels))
    codes = rng.gamma(0.3, size=(classes, rows, parts))
    clean = codes @ atoms
    noise = rng.normal(size=clean.shape) * 0.5 * clean.std()
    return np.maximum(clean + noise, 0).astype(np.float32)


def nmf(tiny, repeats):
    """10 classes x 5 seeds at once, beside scikit-learn's one after the other."""
    import warnings

    from sklearn.decomposition import NMF

    classes, rows, channels, count, seeds = (2, 60, 32, 4, 2) if tiny else (10, 1_000, 512, 10, 5)
    a = activations(classes, rows, channels, count)
    warnings.filterwarnings("ignore", message="Maximum number of iterations")

    def theirs():
        models = [NMF(count, init="random", random_state=seed) for seed in range(seeds)]
        return [[(m.fit_transform(one), m.components_) for m in models] for one in a]

    def off(one, codes, atoms):  # float64: both sides differ in the eighth digit
        one, codes, atoms = map(np.float64, (one, codes, atoms))
        return np.linalg.norm(one - codes @ atoms) / np.linalg.norm(one)

    ours = lambda: concepts.nmf(a, count, key=jax.random.key(0), num_seeds=seeds)
    numbers, found, fitted = beside(ours, theirs, repeats)
    errors = np.array([[off(one, *f) for f in each] for one, each in zip(a, fitted, strict=True)])
    best = np.array(list(map(off, a, found.codes, found.dictionary.atoms)))
    told(
        f"NMF of {classes} classes x {seeds} seeds, {rows} x {channels}, {count} concepts",
        numbers,
        our_error=float(np.mean(found.errors)),
        their_error=float(errors.mean()),
        our_best_above_their_best=float((best / errors.min(1)).max()) - 1,
    )


def autoencoders(tiny, repeats):
    """8 TopK autoencoders at once, beside torch's one after the other: 2 sparsities x 4 seeds."""
    sizes = [(256, 16, 32, 5, 32)]
    if not tiny:  # of a small net's layer; and where products alone are what costs
        sizes = [(16_384, 64, 256, 1_000, 128), (16_384, 128, 512, 200, 256)]
    for size in sizes:
        _autoencoders(*size, repeats)


def _autoencoders(rows, channels, units, steps, batch, repeats):
    import torch

    sizes, seeds = (4, 8), 4
    a = activations(1, rows, channels, channels)[0]
    optimizer = optax.adam(3e-4)
    options = {
        **{"num_units": units, "keep": sizes, "num_seeds": seeds, "num_steps": steps},
        **{"batch_size": batch, "optimizer": optimizer, "auxiliary_weight": 0.0},
    }
    few = {"validation": a[:256]}  # what is measured at the end is no part of the claim
    ours = lambda: concepts.sparse_autoencoder(a, key=jax.random.key(0), **options, **few)
    values = torch.tensor((a - a.mean(0)) / (a - a.mean(0)).std())

    def one(keep, seed):
        torch.manual_seed(seed)
        atoms = torch.randn(units, channels)
        atoms = (0.1 * atoms / atoms.norm(dim=1, keepdim=True)).requires_grad_()
        encoder = atoms.detach().T.clone().requires_grad_()
        inner, bias = (torch.zeros(n, requires_grad=True) for n in (units, channels))
        adam = torch.optim.Adam([atoms, encoder, inner, bias], lr=3e-4)
        for _ in range(steps):
            x = values[torch.randint(len(values), (batch,))]
            norm = atoms.norm(dim=1)
            pre = torch.relu(((x - bias) @ encoder + inner) * norm)
            best = pre.topk(keep, dim=1)
            codes = torch.zeros_like(pre).scatter(1, best.indices, best.values)
            loss = ((codes @ (atoms / norm[:, None]) + bias - x) ** 2).sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        return loss.item()

    theirs = lambda: np.array([one(keep, seed) for keep in sizes for seed in range(seeds)])
    numbers, found, losses = beside(ours, theirs, repeats)
    told(
        f"8 TopK autoencoders, {channels} channels, {units} units, {steps} steps of {batch}",
        numbers,
        our_loss=float(found.history.loss[:, -1].mean()),
        their_loss=float(losses.mean()),
        torch=torch.__version__,
    )


def craft(tiny, repeats):
    """Factorisation and importance of one class's crops, from the layer's values to both."""
    import warnings

    from sklearn.decomposition import NMF

    warnings.filterwarnings("ignore", message="Maximum number of iterations")
    rows, channels, places, count, images, designs = (
        (60, 32, 2, 4, 4, 4) if tiny else (2_000, 512, 7, 20, 100, 32)
    )
    a = activations(1, rows, channels, count)[0]
    codes = np.random.default_rng(1).gamma(0.3, size=(images, places, places, count))
    x = (codes @ np.random.default_rng(2).gamma(0.3, size=(count, channels))).astype(np.float32)
    w = np.random.default_rng(3).normal(size=(channels, 10)).astype(np.float32)
    net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
    key = jax.random.key(0)

    def ours():
        found = concepts.nmf(a, count, key=key, num_seeds=1)
        options = {"layer": "relu_0", "dictionary": found.dictionary, "key": key}
        shares = concepts.concept_importance(net, w, x, 0, num_designs=designs, **options)
        return shares, found.errors

    def theirs():
        """Xplique 1.3.3's `craft.py` (fit, transform, estimate_importance), its net in NumPy."""
        from scipy.stats import qmc

        model = NMF(count, alpha_W=1e-2)
        fitted = model.fit_transform(a)
        error = np.linalg.norm(a - fitted @ model.components_) / np.linalg.norm(a)
        u = model.transform(x.reshape(-1, channels)).reshape(images, -1, count)
        points = qmc.Halton(2 * count, seed=0).random(designs).astype(np.float32)
        one, other = points[:, :count], points[:, count:]
        mixed = [np.where(np.arange(count) == k, other, one) for k in range(count)]
        masks = np.concatenate([one, other, *mixed])
        shares = []
        for image in u:  # [places, count]: each mask for all places, the net from the layer on
            moved = (image[None] * masks[:, None]) @ model.components_
            scores = moved.mean(1) @ w[:, 0]
            f = scores.reshape(count + 2, designs)
            shares.append(((f[0] - f[2:]) ** 2).mean(1) / (2 * f[0].var() + 1e-12))
        return np.array(shares), error

    numbers, found, (_, error) = beside(ours, theirs, repeats)
    told(
        f"CRAFT from the values of {rows} crops and {images} images, {count} concepts",
        numbers,
        peer="Xplique's algorithm by scikit-learn and NumPy",
        our_error=float(np.min(found[1])),
        their_error=float(error),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("claims", nargs="*", default=["nmf", "autoencoders", "craft"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch", help="a folder of packages")
    given = parser.parse_args()
    if given.torch:
        sys.path.append(given.torch)
    for claim in given.claims:
        {"nmf": nmf, "autoencoders": autoencoders, "craft": craft}[claim](given.tiny, given.repeats)


if __name__ == "__main__":
    main()
