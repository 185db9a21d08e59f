"""Elastic deformation: one smooth random warp, the same for an image and its labels.

Displacements are drawn on a coarse grid that spans the image, and between its nodes they
are interpolated with cubics:

    warped(x) = image(x + u(x)),      u = cubic interpolation of N(0, std^2) on 3 x 3 nodes.

What lies outside the image is its mirror image. The trap is the labels: they are no
quantities, so that of the nearest pixel is taken, where images and weights are
interpolated.

Reference: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", MICCAI 2015, https://arxiv.org/abs/1505.04597 (section 3.1: 3 x 3
nodes, 10 pixels, bicubic); Simard, Steinkraus and Platt, "Best Practices for
Convolutional Neural Networks", ICDAR 2003, https://doi.org/10.1109/ICDAR.2003.1227801.
"""

import jax
import jax.numpy as jnp

from jaxml.export import export
from jaxml.ops.sampling import bilinear_sample
from jaxml.typing import Array, Float, PRNGKeyArray


@export("segmentation.elastic_field", since="0.1")
def elastic_field(
    key: PRNGKeyArray, size: tuple[int, int], *, grid: int = 3, std: float = 10.0
) -> Float[Array, "2 height width"]:
    """Random displacements (down, right) in pixels, smooth over the image.

    Args:
        key: of this image.
        size: (height, width).
        grid: nodes along each side, at least 2; the outermost lie on the rim.
        std: of a node's displacement along each axis, in pixels.

    Raises:
        ValueError: if the grid is too small, or `std` negative.
    """
    if grid < 2 or not std >= 0:
        raise ValueError(
            f"grid must be at least 2 and std not negative, got {grid} and {std}"
        )
    nodes = std * jax.random.normal(key, (2, grid, grid))
    rows, columns = (_cubic_weights(n, grid) for n in size)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("hi,dij,wj->dhw", rows, nodes, columns, precision=highest)


@export("segmentation.warp_image", since="0.1")
def warp_image(
    image: Float[Array, "height width channels"], field: Float[Array, "2 height width"]
) -> Float[Array, "height width channels"]:
    """The image read at every pixel's displaced place, interpolated between pixels.

    >>> image = jnp.arange(3.0).reshape(1, 3, 1)
    >>> warp_image(image, jnp.full((2, 1, 3), 1.0))[0, :, 0].tolist()
    [1.0, 2.0, 1.0]
    """
    y, x = _places(field)
    return bilinear_sample(image, y, x, border="clamp")


@export("segmentation.warp_labels", since="0.1")
def warp_labels(labels: Array, field: Float[Array, "2 height width"]) -> Array:
    """Labels [height, width], of any type, of the pixel nearest to the displaced place.

    Raises:
        ValueError: if the shapes differ.
    """
    if labels.shape != field.shape[1:]:
        raise ValueError(
            f"labels must have the shape of the field {field.shape[1:]}, "
            f"got {labels.shape}"
        )
    y, x = (jnp.round(v).astype(jnp.int32) for v in _places(field))
    return jnp.asarray(labels)[y, x]


def _places(field: Array) -> tuple[Array, Array]:
    """Rows and columns to read at, mirrored into the image."""
    height, width = field.shape[1:]
    y = jnp.arange(height, dtype=field.dtype)[:, None] + field[0]
    x = jnp.arange(width, dtype=field.dtype)[None, :] + field[1]
    return _mirror(y, height), _mirror(x, width)


def _mirror(x: Array, size: int) -> Array:
    """Folds at the first and the last pixel's centre, which are not doubled."""
    period = max(2 * (size - 1), 1)
    x = jnp.abs(x) % period
    return jnp.minimum(jnp.minimum(x, period - x), size - 1.0)


def _cubic_weights(size: int, nodes: int) -> Float[Array, "size nodes"]:
    """Keys' cubic through nodes at the ends and between; the end nodes are repeated."""
    place = jnp.linspace(0.0, nodes - 1.0, size)
    padded = jnp.arange(-1, nodes + 1, dtype=jnp.float32)
    t = jnp.abs(place[:, None] - padded[None, :])
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weights = jnp.where(t < 1, near, jnp.where(t < 2, far, 0.0))
    inner = weights[:, 1:-1]
    return inner.at[:, 0].add(weights[:, 0]).at[:, -1].add(weights[:, -1])
