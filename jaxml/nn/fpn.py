"""Feature pyramid: strong features at every scale, made from one backbone.

    M_n = conv1x1(C_n) + up(M_{n+1}),      P_n = conv3x3(M_n),

from the coarsest map down, where `up` repeats the nearest pixel until it has the size of
the map that it is added to. Coarser maps than the backbone's come from the last one: P6 by
taking every second pixel of P5 ("pool", Faster R-CNN), or P6 and P7 by convolutions of
stride 2, with a ReLU between, on C5 (RetinaNet) or on P5 (FCOS).

The trap is an odd size: a map of 13 is followed by one of 7, and twice 7 is not 13. The
nearest pixel is that of `floor(i * 7 / 13)`, as torch has it, not of half-pixel centres.

Reference: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017,
https://arxiv.org/abs/1612.03144 (section 3, figure 3; P6 of section 4.1); P6 and P7 of Lin
et al., "Focal Loss for Dense Object Detection", https://arxiv.org/abs/1708.02002
(section 4). Padding and initialisation are torchvision's.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxml.export import export
from jaxml.nn.conv import Conv
from jaxml.typing import Array, Float

UNIFORM = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""torch's `kaiming_uniform_(a=1)`."""

EXTRAS = ("none", "pool", "c5", "p5")


@export("nn.FPN", since="0.1")
class FPN(nn.Module):
    """A feature pyramid over the named maps of a backbone.

    Attributes:
        features: channels of every map.
        extra: "none"; "pool", a P6 of every second pixel; "c5" or "p5", P6 and P7 by
            convolutions of the coarsest map that comes in, or goes out.
        norm: makes a normalisation after every convolution of the pyramid, called with the
            arguments of `BatchNorm`; None leaves their biases, as in the paper.
        kernel_init: of all kernels.
        axis_name: mesh axis over which batch statistics are shared.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    features: int = 256
    extra: str = "pool"
    norm: Any = None
    kernel_init: Initializer = UNIFORM
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Mapping[str, Float[Array, "batch _ _ _"]], *, train: bool
    ) -> dict[str, Float[Array, "batch _ _ features"]]:
        """Returns `pN` for every `cN`, and what `extra` adds.

        Args:
            maps: named `c` and their level, such as `c2` to `c5` of `ResNet.pyramid`;
                each level has half the size, rounded up or down.
            train: told to the norms.

        Raises:
            ValueError: if the names are not consecutive levels, or `extra` is unknown.
        """
        if self.extra not in EXTRAS:
            raise ValueError(f"extra must be one of {EXTRAS}, got {self.extra!r}")
        levels = sorted(int(name[1:]) for name in maps if name[1:].isdigit())
        wanted = [f"c{level}" for level in levels]
        if (
            not levels
            or sorted(maps) != sorted(wanted)
            or levels != list(range(levels[0], levels[-1] + 1))
        ):
            raise ValueError(
                f"maps must be named c2, c3 ... without gaps, got {sorted(maps)}"
            )
        outputs: dict[str, Array] = {}
        above: Array | None = None
        for level in reversed(levels):
            lateral = self._conv(maps[f"c{level}"], 1, f"lateral{level}", train)
            if above is not None:
                lateral += resize_nearest(above, (lateral.shape[1], lateral.shape[2]))
            above = lateral
            outputs[f"p{level}"] = self._conv(lateral, 3, f"output{level}", train)
        outputs = {f"p{level}": outputs[f"p{level}"] for level in levels}
        last = levels[-1]
        if self.extra == "pool":
            outputs[f"p{last + 1}"] = outputs[f"p{last}"][:, ::2, ::2]
        elif self.extra in ("c5", "p5"):
            coarsest = (maps if self.extra == "c5" else outputs)[
                f"{self.extra[0]}{last}"
            ]
            x = self._strided(coarsest, f"extra{last + 1}")
            outputs[f"p{last + 1}"] = x
            outputs[f"p{last + 2}"] = self._strided(nn.relu(x), f"extra{last + 2}")
        return outputs

    def _conv(self, x: Array, size: int, name: str, train: bool) -> Array:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(
            self.features,
            size,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            name=name,
            **kinds,
        )(x)
        if self.norm is None:
            return x
        norm = self.norm(axis_name=self.axis_name, name=f"{name}_norm", **kinds)
        return norm(x, train=train)

    def _strided(self, x: Array, name: str) -> Array:
        return Conv(
            self.features,
            3,
            2,
            use_bias=True,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )(x)


def resize_nearest(
    x: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch height_out width_out channels"]:
    """The pixel at floor(i * size_in / size_out) along each axis, torch's "nearest"."""
    rows, columns = (
        jnp.arange(out) * n // out for out, n in zip(size, x.shape[1:3], strict=True)
    )
    return x[:, rows][:, :, columns]
