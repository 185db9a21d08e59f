"""Border weights: what a network must learn between cells that touch.

    w(x) = w_c(x) + w_0 exp(-(d_1(x) + d_2(x))^2 / (2 sigma^2))

d_1 is the distance to the nearest cell, d_2 to the second nearest, both in pixels, and w_c
balances the classes. In a gap a few pixels wide both are small, and the weight is up to
w_0 more; inside a cell and far from all it is w_c.

Reference: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation", MICCAI 2015, https://arxiv.org/abs/1505.04597 (equation 2, section 3:
w_0 = 10, sigma about 5 pixels). As there the second term is for the background; a pixel of
a cell has w_c alone.
"""

import numpy as np

from jaxml.export import export
from jaxml.typing import Array, Float


@export("segmentation.border_weights", since="0.1")
def border_weights(
    cells: Array,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: tuple[float, float] | None = None,
) -> Float[np.ndarray, "height width"]:
    """The weights of one image, on the host, in float32.

    Args:
        cells: True inside cells [height, width], whose parts (joined by their sides) are
            the cells; or integers that number the cells, 0 outside.
        w0: the most that a gap adds.
        sigma: how wide a gap still counts, in pixels.
        class_weights: w_c of background and cells; None gives each half of the image's
            weight, 1 on average.

    Raises:
        ValueError: if `cells` is not a map, or sigma not positive.

    >>> cells = np.array([[True, False, True]])
    >>> border_weights(cells, class_weights=(1.0, 1.0)).round(2).tolist()
    [[1.0, 10.2..., 1.0]]
    """
    from scipy import ndimage

    cells = np.asarray(cells)
    if cells.ndim != 2 or not sigma > 0:
        raise ValueError(
            f"cells must be [height, width] and sigma positive, got {cells.shape} "
            f"and {sigma}"
        )
    regions = ndimage.label(cells)[0] if cells.dtype == bool else cells
    inside = regions != 0
    if class_weights is None:
        share = np.clip(inside.mean(), 1e-6, 1 - 1e-6)
        class_weights = 0.5 / (1 - share), 0.5 / share
    # Farther than this nothing is added to speak of: exp(-18) w_0.
    reach = int(np.ceil(6 * sigma))
    nearest, next_nearest = np.full((2, *cells.shape), np.inf)
    for number, box in enumerate(ndimage.find_objects(regions), 1):
        if box is None:
            continue
        around = tuple(
            slice(max(part.start - reach, 0), part.stop + reach) for part in box
        )
        distance = ndimage.distance_transform_edt(regions[around] != number)
        first, second = nearest[around], next_nearest[around]  # views
        second[:] = np.minimum(second, np.maximum(first, distance))
        first[:] = np.minimum(first, distance)
    gap = w0 * np.exp(-np.square(nearest + next_nearest) / (2 * sigma**2))
    weights = np.where(inside, class_weights[1], class_weights[0] + gap)
    return weights.astype(np.float32)
