"""Vision transformer: a picture as a sequence of patches.

    z_0 = [class; patches E] + position
    z'  = z  + attention(norm(z)),    z <- z' + mlp(norm(z'))

and a norm at the end. The class token is optional; without it the features are the mean
of the patches. Attention goes through `attend` alone, one place to put a faster kernel.

The trap: a pre-norm transformer's last stream is not normalised. Features are read after
the final norm, by the class token and by the mean alike.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021,
https://arxiv.org/abs/2010.11929 (equations 1 to 4, table 1); sizes and initialisation of
Touvron et al., https://arxiv.org/abs/2012.12877, and Chen et al. (MoCo v3),
https://arxiv.org/abs/2104.02057 (fixed sine-cosine position embedding).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxml.export import export
from jaxml.nn.activations import gelu
from jaxml.nn.dense import Dense
from jaxml.nn.dropout import Dropout
from jaxml.typing import Array, Float

xavier_uniform = nn.initializers.xavier_uniform()

Tokens = Float[Array, "batch tokens dim"]


@export("nn.sincos_positions", since="0.1")
def sincos_positions(
    height: int, width: int, features: int, *, temperature: float = 10000.0
) -> Float[np.ndarray, "tokens features"]:
    """Fixed embedding of a grid's positions, row by row, float32 in [-1, 1].

    With f = features / 4 frequencies w_i = temperature^(-i / f), position (y, x) becomes
    [sin(x w), cos(x w), sin(y w), cos(y w)].

    Raises:
        ValueError: if `features` is not a multiple of four.

    >>> sincos_positions(2, 2, 4)[0].tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    if features % 4:
        raise ValueError(f"features must be a multiple of four, got {features}")
    frequencies = temperature ** (-np.arange(features // 4) / (features // 4))
    y, x = np.mgrid[:height, :width].reshape(2, -1, 1) * frequencies
    parts = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def attend(
    q: Float[Array, "batch tokens heads features"],
    k: Float[Array, "batch tokens heads features"],
    v: Float[Array, "batch tokens heads features"],
) -> Float[Array, "batch tokens heads features"]:
    """softmax(q k^T / sqrt(features)) v, of each head."""
    plain = jax.nn.dot_product_attention

    def wide(*qkv: Array) -> Array:
        return plain(*(x.astype(jnp.float32) for x in qkv)).astype(q.dtype)

    if q.dtype != jnp.float16:
        return plain(q, k, v)
    # Products of float16 with a float32 sum are not to be had on a CPU.
    return lax.platform_dependent(q, k, v, cpu=wide, default=plain)


class Attention(nn.Module):
    """Multi-head self-attention; one matrix makes q, k and v, in this order."""

    heads: int
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
        width = x.shape[-1]
        dense = partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        # Xavier of three square matrices, not of one wide one.
        square = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        qkv = dense(3 * width, kernel_init=square, name="qkv")(x)
        qkv = qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape)
        y = dense(width, kernel_init=xavier_uniform, name="out")(y)
        return Dropout(self.dropout, axis_name=self.axis_name)(y, train=train)


class Feedforward(nn.Module):
    """Two dense layers with an exact GELU between them."""

    hidden: int
    dropout: float = 0.0
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
        dense = partial(
            Dense,
            kernel_init=xavier_uniform,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        dropout = Dropout(self.dropout, axis_name=self.axis_name)
        y = gelu(dense(self.hidden, name="dense1")(x))
        y = dense(x.shape[-1], name="dense2")(dropout(y, train=train))
        return dropout(y, train=train)


class Block(nn.Module):
    """Attention and feedforward, each normalised before and added after."""

    heads: int
    hidden: int
    dropout: float = 0.0
    drop_path: float = 0.0
    epsilon: float = 1e-6
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        noise = {"dropout": self.dropout, "axis_name": self.axis_name}
        path = Dropout(self.drop_path, per_sample=True, axis_name=self.axis_name)
        y = nn.LayerNorm(self.epsilon, name="norm1", **kinds)(x)
        y = Attention(self.heads, name="attention", **noise, **kinds)(y, train=train)
        x = x + path(y, train=train)
        y = nn.LayerNorm(self.epsilon, name="norm2", **kinds)(x)
        y = Feedforward(self.hidden, name="mlp", **noise, **kinds)(y, train=train)
        return x + path(y, train=train)


@export("nn.VisionTransformer", since="0.1")
class VisionTransformer(nn.Module):
    """A vision transformer as a backbone, a sequence of tokens, or a classifier.

    Attributes:
        image_size: pixels, one number or (height, width).
        patch_size: side of a patch, in pixels.
        width: of the residual stream.
        depth: number of blocks.
        heads: of attention; they divide the width.
        mlp_ratio: hidden width of the feedforward layers, in widths.
        num_classes: size of a linear head; None returns features.
        class_token: put a learned token before the patches.
        pool: "class" reads that token, "mean" the mean of the patches.
        position: "learned", or the fixed "sincos" (zero at the class token).
        dropout: rate after the embedding and after every dense layer of a block.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0.
        epsilon: of the layer norms.
        axis_name: mesh axis the batch is split over; only dropout looks at it.
        dtype: of computation; None takes the widest of input and parameters.
        param_dtype: of the parameters.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    class_token: bool = True
    pool: str = "class"
    position: str = "learned"
    dropout: float = 0.0
    drop_path: float = 0.0
    epsilon: float = 1e-6
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        self._check()
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.patch_embed = Dense(self.width, kernel_init=xavier_uniform, **kinds)
        small = nn.initializers.truncated_normal(0.02)
        if self.class_token:
            self.first = self.param("class", small, (self.width,), self.param_dtype)
        rows, columns = self._grid
        if self.position == "learned":
            shape = (self.class_token + rows * columns, self.width)
            self.positions = self.param("position", small, shape, self.param_dtype)
        else:
            grid = sincos_positions(rows, columns, self.width)
            self.positions = np.pad(grid, ((int(self.class_token), 0), (0, 0)))
        self.embed_dropout = Dropout(self.dropout, axis_name=self.axis_name)
        self.blocks = [
            Block(
                self.heads,
                int(self.mlp_ratio * self.width),
                self.dropout,
                self.drop_path * i / max(self.depth - 1, 1),
                self.epsilon,
                self.axis_name,
                **kinds,
            )
            for i in range(self.depth)
        ]
        self.norm = nn.LayerNorm(self.epsilon, **kinds)
        if self.num_classes is not None:
            self.head = Dense(self.num_classes, **kinds)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Returns the pooled features [batch, width], or the head's logits of them.

        Raises:
            ValueError: if the images are not of `image_size`.
        """
        tokens = self.tokens(images, train=train)
        if self.pool == "class":
            features = tokens[:, 0]
        else:
            features = jnp.mean(tokens[:, int(self.class_token) :], axis=1)
        return features if self.num_classes is None else self.head(features)

    def tokens(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Tokens:
        """Returns all tokens after the final norm: the class token, then row by row."""
        x = self.patch_embed(self._patches(images))
        if self.class_token:
            first = jnp.broadcast_to(self.first, (len(x), 1, self.width))
            x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        x += jnp.asarray(self.positions, x.dtype)[None]
        x = self.embed_dropout(x, train=train)
        for block in self.blocks:
            x = block(x, train=train)
        return self.norm(x)

    @property
    def _grid(self) -> tuple[int, int]:
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size

    def _patches(self, images: Array) -> Float[Array, "batch patches pixels"]:
        """Flat patches, row by row: a matrix product stands for the convolution."""
        rows, columns = self._grid
        side, channels = self.patch_size, images.shape[-1]
        if images.shape[1:3] != (rows * side, columns * side):
            raise ValueError(
                f"images must be {rows * side} x {columns * side} pixels "
                f"({rows} x {columns} patches of {side}), got {images.shape}"
            )
        x = images.reshape(-1, rows, side, columns, side, channels)
        return x.swapaxes(2, 3).reshape(-1, rows * columns, side * side * channels)

    def _check(self) -> None:
        size = self.image_size
        if any(n % self.patch_size for n in np.atleast_1d(size)):
            raise ValueError(
                f"patch_size must divide image_size, got {self.patch_size} and {size}"
            )
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide width, got {self.heads} and {self.width}"
            )
        if self.pool not in ("class", "mean"):
            raise ValueError(f"pool must be class or mean, got {self.pool!r}")
        if self.pool == "class" and not self.class_token:
            raise ValueError("pool must be mean where there is no class token")
        if self.position not in ("learned", "sincos"):
            raise ValueError(
                f"position must be learned or sincos, got {self.position!r}"
            )


@export("nn.vit_tiny", since="0.1")
def vit_tiny(**options: Any) -> VisionTransformer:
    """ViT-Tiny: 192 wide, 12 deep, 3 heads; see `VisionTransformer`."""
    return VisionTransformer(**{"width": 192, "depth": 12, "heads": 3} | options)


@export("nn.vit_small", since="0.1")
def vit_small(**options: Any) -> VisionTransformer:
    """ViT-Small: 384 wide, 12 deep, 6 heads; see `VisionTransformer`."""
    return VisionTransformer(**{"width": 384, "depth": 12, "heads": 6} | options)


@export("nn.vit_base", since="0.1")
def vit_base(**options: Any) -> VisionTransformer:
    """ViT-Base: 768 wide, 12 deep, 12 heads; see `VisionTransformer`."""
    return VisionTransformer(**{"width": 768, "depth": 12, "heads": 12} | options)


@export("nn.vit_large", since="0.1")
def vit_large(**options: Any) -> VisionTransformer:
    """ViT-Large: 1024 wide, 24 deep, 16 heads; see `VisionTransformer`."""
    return VisionTransformer(**{"width": 1024, "depth": 24, "heads": 16} | options)


@export("nn.vit_huge", since="0.1")
def vit_huge(**options: Any) -> VisionTransformer:
    """ViT-Huge: 1280 wide, 32 deep, 16 heads; see `VisionTransformer`."""
    return VisionTransformer(**{"width": 1280, "depth": 32, "heads": 16} | options)
