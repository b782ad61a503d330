#!/usr/bin/env bash
# Keras on JAX: model.predict, which changes nothing, deletes weights that were read before it.
#
# Versions: keras 3.15.1, jax 0.10.2 (Python 3.11, CPU); seen with jax 0.12.0.1 (Python 3.13), too.
# `variable.value` hands out the JAX array itself. The compiled steps of `predict`, `evaluate`,
# `predict_on_batch`, `test_on_batch` and `fit` are given the model's arrays for good (donated), and the
# variables get new ones with the same numbers: an array read before cannot be read any more. A plain
# call, `model(x)`, leaves it. Whoever keeps weights beside the model (to compare, to average, to explain
# it by a pure function) has to copy them when they are read: `jnp.array(variable.value)`.
# Output seen: "call: readable, predict: deleted, evaluate: deleted, fit: deleted; a copy: readable".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q keras==3.15.1 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu KERAS_BACKEND=jax KERAS_HOME="$folder/home" "$folder/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import keras
import numpy as np

x, y = np.ones((8, 3), np.float32), np.zeros((8, 2), np.float32)


def after(run, keep=lambda array: array):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    held = keep(model.layers[0].kernel.value)
    run(model)
    try:
        return "readable" if np.asarray(held).shape == (3, 2) else "of another shape"
    except RuntimeError as error:
        return "deleted" if "has been deleted" in str(error) else str(error)


predict = lambda model: model.predict(x, verbose=0)
found = {
    "call": after(lambda model: model(x)),
    "predict": after(predict),
    "evaluate": after(lambda model: model.evaluate(x, y, verbose=0)),
    "fit": after(lambda model: model.fit(x, y, verbose=0)),
}
said = ", ".join(f"{name}: {state}" for name, state in found.items())
said += f"; a copy: {after(predict, keep=jnp.array)}"
print(said)
wanted = "call: readable, predict: deleted, evaluate: deleted, fit: deleted; a copy: readable"
assert said == wanted, said
PY
