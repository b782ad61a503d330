"""Nets of other people's packages, random weights, for `first_call --nets keras:ResNet50`.

Each is built at import of its package alone: dm-haiku, keras (on JAX), equimo, vitax.
"""

import importlib.util
import os

NETS = (
    "keras:MobileNetV2", "keras:ResNet50", "keras:EfficientNetB0", "haiku:ResNet18",
    "equimo:vit_tiny_patch16_224", "equimo:convnext_t", "vitax:vit_tiny",
)  # fmt: skip


def _keras(name):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    import jaxviz as jv

    return jv.from_keras(
        getattr(keras.applications, name)(weights=None, classifier_activation=None)
    )


def _haiku(name):
    import haiku as hk
    import jax
    import jax.numpy as jnp

    import jaxviz as jv

    def net(training):
        return hk.transform_with_state(lambda x: getattr(hk.nets, name)(1000)(x, training))

    params, state = jax.jit(net(True).init)(jax.random.key(0), jnp.ones((1, 224, 224, 3)))
    return jv.from_haiku(net(False), params, state)


def _equimo(name):
    import jax
    from equimo.models import convnext, vit

    import jaxviz as jv

    home, size = (convnext, {}) if name.startswith("convnext") else (vit, {"img_size": 224})
    build = getattr(home, name)
    return jv.from_equinox(build(in_channels=3, num_classes=1000, key=jax.random.key(0), **size))


def _vitax(name):
    from flax import nnx

    import jaxviz as jv

    # By its file: the package's own start wants `transformers`, for weights.
    home = importlib.util.find_spec("vitax").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("vit", f"{home}/models/vit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"hidden_size": 192, "mlp_dim": 768, "num_heads": 3, "fsdp": False}
    return jv.from_nnx(module.VisionTransformer(**sizes, rngs=nnx.Rngs(0)))


def build(net):
    """`(apply_fn, params, shape of one input)` of "package:name"."""
    package, name = net.split(":")
    builders = {"keras": _keras, "haiku": _haiku, "equimo": _equimo, "vitax": _vitax}
    apply_fn, params = builders[package](name)
    return apply_fn, params, (3, 224, 224) if package == "equimo" else (224, 224, 3)
