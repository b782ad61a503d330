"""Writes real_weights.npz: the small networks, trained by `jaxviz.training`, in few bytes.

Run with $JAXVIZ_DATA set. Trained for two epochs, then of each kernel of over 100,000 numbers all
but the largest tenth set to zero, and kernels rounded to 255 steps: networks that still classify
(the accuracy is printed), at a twentieth of the bytes. Keys are `net/layer/kernel` (int8,
times `net/layer/kernel_step`), `net/layer/bias` and so on, `net/images` (uint8) and `net/labels`.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz import data, models, training

FILE = pathlib.Path(__file__).parent / "real_weights.npz"
NETS = {"mnist_a": "mnist", "mnist_b": "mnist", "mnist_c": "mnist", "cifar": "cifar10"}


def pruned(kernel):
    """The largest tenth of a large kernel; a small one as it is."""
    if kernel.size <= 100_000:
        return kernel
    return jnp.where(jnp.abs(kernel) >= jnp.quantile(jnp.abs(kernel), 0.9), kernel, 0)


def rounded(kernel):
    """In whole steps, -127 to 127 of them."""
    step = np.float32(np.abs(kernel).max() / 127)
    return np.round(kernel / step).astype(np.int8), step


def kernels(change, variables):
    named = lambda path, a: change(a) if path[-1].key == "kernel" else a
    return jax.tree_util.tree_map_with_path(named, variables)


def main():
    out = {}
    for name, dataset in NETS.items():
        train, test = (data.load(dataset, split, download=False) for split in ("train", "test"))
        train = train._replace(images=train.images[:8000], labels=train.labels[:8000])
        net, start = models.nets[name](), {"key": jax.random.key(0), "optimizer": optax.adam(1e-3)}
        variables = training.fit(net, train, num_epochs=2, **start).variables
        variables = kernels(pruned, variables)
        for path, a in jax.tree_util.tree_leaves_with_path(variables):
            key = "/".join([name, *(part.key for part in path[1:])])
            out[key] = np.asarray(a)
            if path[-1].key == "kernel":
                out[key], out[f"{key}_step"] = rounded(np.asarray(a))
        variables = kernels(lambda k: np.multiply(*rounded(np.asarray(k))), variables)
        logits = jax.jit(models.apply_fn(net))(variables, jnp.asarray(test.images[:2000]))
        print(name, "accuracy", (np.argmax(logits, 1) == test.labels[:2000]).mean(), flush=True)
        out[f"{name}/images"] = np.uint8(np.round(255 * np.asarray(test.images[:2])))
        out[f"{name}/labels"] = np.asarray(test.labels[:2])
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
