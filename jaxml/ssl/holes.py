"""Holes: what is hidden of an image that is to be inpainted.

In the middle, in rectangles, or in blots of any shape; True is hidden. A hole that is
always in one place lets an encoder learn its border, so features are better of random ones.
The blots are where a smooth random field is highest,

    hole = {places whose rank in the field is below share * height * width}.

The trap is a share that is left to chance: the loss is a mean over what is hidden.

Reference: Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
https://arxiv.org/abs/1604.07379 (section 3.3). Deviations: random regions are level sets
of smooth noise, not shapes from annotated pictures; how large and how many the random
blocks are is not in the paper.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export
from jaxml.typing import Array, Bool, Float, PRNGKeyArray

Hole = Bool[Array, "height width 1"]


@export("ssl.central_hole", since="0.1")
def central_hole(height: int, width: int, share: float = 0.25) -> Hole:
    """The middle of an image; True is hidden.

    Args:
        height, width: of the image.
        share: of its area; sides are rounded to pixels.

    Raises:
        ValueError: unless the share is in (0, 1).

    >>> central_hole(4, 4)[..., 0].sum().item()
    4
    """
    _check_share(share)
    rows, columns = (
        abs(jnp.arange(n) - (n - 1) / 2) < round(n * share**0.5) / 2
        for n in (height, width)
    )
    return (rows[:, None] & columns[None])[..., None]


@export("ssl.random_blocks", since="0.1")
def random_blocks(
    key: PRNGKeyArray,
    height: int,
    width: int,
    share: float = 0.25,
    *,
    side: tuple[float, float] = (0.15, 0.3),
    tries: int = 8,
) -> Hole:
    """Rectangles at random places, which may overlap, up to a share of the area.

    A rectangle that would go beyond the share is left out, the first one never.

    Args:
        key: of this image.
        height, width: of the image.
        share: of its area.
        side: least and largest side, as parts of height and width.
        tries: number of rectangles.

    Raises:
        ValueError: unless the shares are in (0, 1), and the first rectangle within.
    """
    _check_share(share)
    low, high = side
    if not 0 < low <= high <= share**0.5 or tries < 1:
        raise ValueError(
            "sides must ascend within (0, sqrt(share)] and one rectangle be tried, got "
            f"{side} of share {share} and {tries}"
        )
    size = jnp.array([height, width])
    size_key, place_key = jax.random.split(key)
    part = jax.random.uniform(size_key, (tries, 2), minval=low, maxval=high)
    sides = jnp.maximum(jnp.floor(part * size[None]), 1)
    places = jnp.floor(
        jax.random.uniform(place_key, (tries, 2)) * (size[None] - sides + 1)
    )

    def add(
        hole: jax.Array, block: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        (top, left), (high, wide) = block
        row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
        inside = (row >= top) & (row < top + high)
        more = hole | (inside & (column >= left) & (column < left + wide))
        fits = (jnp.sum(more) <= share * height * width) | ~jnp.any(hole)
        return jnp.where(fits, more, hole), None

    hole, _ = lax.scan(add, jnp.zeros((height, width), bool), (places, sides))
    return hole[..., None]


@export("ssl.random_region", since="0.1")
def random_region(
    key: PRNGKeyArray,
    height: int,
    width: int,
    share: float = 0.25,
    *,
    coarse: int = 4,
) -> Hole:
    """Blots of any shape that cover a share of the area, to the pixel.

    Noise on a coarse grid is interpolated; where it is highest, is the region.

    Args:
        key: of this image.
        height, width: of the image.
        share: of its area.
        coarse: points a side of the grid; the more, the more and smaller blots.

    Raises:
        ValueError: unless the share is in (0, 1), and the grid has 2 points at least.
    """
    _check_share(share)
    if coarse < 2:
        raise ValueError(f"the grid must have 2 points a side, got {coarse}")
    noise = jax.random.normal(key, (coarse, coarse))
    level = jax.image.resize(noise, (height, width), "cubic").reshape(-1)
    # By rank, not by a threshold: equal levels would leave the share to chance.
    rank = jnp.argsort(jnp.argsort(-level))
    return (rank < round(share * height * width)).reshape(height, width, 1)


@export("ssl.hole_views", since="0.1")
def hole_views(
    region: Literal["central", "blocks", "region"] = "region", share: float = 0.25
) -> Any:
    """(key, image) -> {"view": image, "hole": what of it is hidden}.

    Raises:
        ValueError: if the region is unknown.
    """
    if region not in ("central", "blocks", "region"):
        raise ValueError(
            f"region must be 'central', 'blocks' or 'region', got {region!r}"
        )

    def views(key: PRNGKeyArray, image: Array) -> dict[str, Array]:
        height, width = image.shape[:2]
        if region == "central":
            hole = central_hole(height, width, share)
        elif region == "blocks":
            hole = random_blocks(key, height, width, share)
        else:
            hole = random_region(key, height, width, share)
        return {"view": image, "hole": hole}

    return views


@export("ssl.cover", since="0.1")
def cover(
    images: Float[Array, "*batch height width channels"],
    hole: Bool[Array, "*batch height width 1"],
    fill: float = 0.5,
) -> Float[Array, "*batch height width channels"]:
    """Images whose hole is filled with one value."""
    return jnp.where(hole, jnp.asarray(fill, images.dtype), images)


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
