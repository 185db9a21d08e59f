"""CIE Lab: lightness L apart from the colours a (green to red) and b (blue to yellow).

    sRGB -> linear RGB -> XYZ / white of D65 -> f,    f(t) = t^(1/3), linear near zero
    L = 116 f(Y) - 16,    a = 500 (f(X) - f(Y)),    b = 200 (f(Y) - f(Z))

L is in [0, 100]; of sRGB, a is in [-87, 99] and b in [-108, 95]. Distances in Lab are
about what an eye sees as difference. The trap is the gradient of roots and powers at
black: both curves have a linear piece there, and neither branch may be evaluated outside
of its own range.

Reference: International Commission on Illumination, "Colorimetry", CIE 15, 1976, in the
form of https://www.w3.org/TR/css-color-4/ (section 9, with the white point D65); sRGB as in
IEC 61966-2-1.
"""

import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.typing import Array, Float

_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_TO_XYZ = _TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)  # white is (1, 1, 1)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)
_DELTA = 6 / 29


@export("ops.rgb_to_lab", since="0.1")
def rgb_to_lab(
    image: Float[Array, "*batch height width 3"],
) -> Float[Array, "*batch height width 3"]:
    """Lab of sRGB, which is in [0, 1].

    >>> rgb_to_lab(jnp.ones((1, 1, 3))).round(3).tolist()
    [[[100.0, 0.0, 0.0]]]
    """
    x = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    is_dark = x <= 0.04045
    base = (jnp.where(is_dark, 1.0, x) + 0.055) / 1.055
    linear = jnp.where(is_dark, x / 12.92, base**2.4)
    t = jnp.matmul(linear, _TO_XYZ.T.astype(x.dtype), precision="highest")
    is_small = t <= _DELTA**3
    root = jnp.cbrt(jnp.where(is_small, 1.0, t))
    fx, fy, fz = jnp.moveaxis(
        jnp.where(is_small, t / (3 * _DELTA**2) + 4 / 29, root), -1, 0
    )
    lab = [116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]
    return jnp.stack(lab, axis=-1).astype(image.dtype)


@export("ops.lab_to_rgb", since="0.1")
def lab_to_rgb(
    lab: Float[Array, "*batch height width 3"],
) -> Float[Array, "*batch height width 3"]:
    """Colours of Lab as sRGB, clamped to [0, 1] where a colour lies outside of it.

    >>> lab_to_rgb(jnp.array([[[100.0, 0.0, 0.0]]])).round(3).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    wide = lab.astype(jnp.promote_types(lab.dtype, jnp.float32))
    lightness, a, b = jnp.moveaxis(wide, -1, 0)
    fy = (lightness + 16) / 116
    f = jnp.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    t = jnp.where(f <= _DELTA, 3 * _DELTA**2 * (f - 4 / 29), f**3)
    linear = jnp.matmul(t, _FROM_XYZ.T.astype(wide.dtype), precision="highest")
    is_dark = linear <= 0.0031308
    power = 1.055 * jnp.where(is_dark, 1.0, linear) ** (1 / 2.4) - 0.055
    rgb = jnp.where(is_dark, 12.92 * linear, power)
    return jnp.clip(rgb, 0, 1).astype(lab.dtype)
