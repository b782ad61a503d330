"""Random changes of training images that keep their class."""

import jax
import jax.numpy as jnp

from jaxviz.calls.arrays import images
from jaxviz.calls.options import whole
from jaxviz.calls.public import public


@public(images=images, padding=whole(0))
def pad_crop_flip(key: jax.Array, images: jax.Array, *, padding: int = 4) -> jax.Array:
    """Shifts each image by up to `padding` pixels each way and mirrors half of them.

    Each image is padded with zeros, cut back to its size at a random place, and mirrored left to
    right with probability 1/2. For normalised images zero is the mean colour.

    Args:
      key: PRNG key.
      images: `[N, H, W, C]`.
      padding: Largest shift, in pixels, >= 0.

    Returns:
      The shape and dtype of `images`.

    Raises:
      ValueError: `images` has not four axes, or `padding` is negative.

    Example:
      >>> pad_crop_flip(jax.random.key(0), jnp.ones((2, 8, 8, 3)), padding=0).min().item()
      1.0

    Reference:
      He et al. 2015, arXiv:1512.03385, section 4.2 (padding 4).
    """
    if images.ndim != 4 or padding < 0:
        raise ValueError(
            "pad_crop_flip: images must be [N, H, W, C] and padding at least 0; got "
            f"{images.shape}, padding={padding}. Pass a batch of images."
        )
    shift_key, flip_key = jax.random.split(key)
    num_images, height, width, channels = images.shape
    corners = jax.random.randint(shift_key, (num_images, 2), 0, 2 * padding + 1)
    flips = jax.random.bernoulli(flip_key, shape=(num_images,))
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(image, corner, flip):
        cut = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))
        return jnp.where(flip, cut[:, ::-1], cut)

    return jax.vmap(one)(padded, corners, flips)
