"""Vision transformer: a picture as a sequence of patches.

    z_0 = [class; patches E] + position
    z'  = z  + attention(norm(z)),    z <- z' + mlp(norm(z'))

and a norm at the end. The class token is optional; without it the features are the mean
of the patches. `attention=` takes another attention function.

The positions belong to one grid of patches. With `any_size` they are resampled to the
grid of the images at hand (bicubic, antialiased), for crops of several sizes or for
fine-tuning at another resolution.

`scan` compiles one block instead of all, with their parameters stacked, and `remat` keeps
only what goes in and out of a block for the backward pass.

A part of the patches can be hidden behind a mask token (BEiT), or left out altogether
(MAE), see `VisionTransformer.tokens`.

The trap: a pre-norm transformer's last stream is not normalised. Features are read after
the final norm, by the class token and by the mean alike.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021,
https://arxiv.org/abs/2010.11929 (equations 1 to 4, table 1); sizes and initialisation of
Touvron et al., https://arxiv.org/abs/2012.12877, and Chen et al. (MoCo v3),
https://arxiv.org/abs/2104.02057 (fixed sine-cosine position embedding); Darcet et al.,
"Vision Transformers Need Registers", https://arxiv.org/abs/2309.16588 (registers);
Bao et al., "BEiT", https://arxiv.org/abs/2106.08254 (relative positions).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxml.attention import attention, attention_weights
from jaxml.export import export
from jaxml.method import Params
from jaxml.nn.dense import Dense
from jaxml.nn.dropout import Dropout
from jaxml.nn.positions import (
    relative_positions,
    resize_positions,
    sincos_positions,
)
from jaxml.nn.transformer import TransformerBlock
from jaxml.ops.patches import patchify
from jaxml.typing import Array, Bool, Float, Int

xavier_uniform = nn.initializers.xavier_uniform()

Tokens = Float[Array, "batch tokens dim"]


@export("nn.VisionTransformer", since="0.1")
class VisionTransformer(nn.Module):
    """A vision transformer as a backbone, a sequence of tokens, or a classifier.

    Attributes:
        image_size: pixels, one number or (height, width).
        patch_size: side of a patch, in pixels.
        width: of the residual stream.
        depth: number of blocks.
        heads: of attention; they divide the width.
        attention: a function (q, k, v), see `nn.MultiHeadAttention`.
        mlp_ratio: hidden width of the feedforward layers, in widths.
        mlp: their `kind`, "gelu" or "swiglu".
        num_classes: size of a linear head; None returns features.
        class_token: put a learned token before the patches.
        pool: "class" reads that token, "mean" the mean of the patches; "both" is the
            class token and the mean side by side, twice as wide.
        pool_norm: the last norm stands behind the pool, not before it; tokens are then
            as the last block leaves them.
        position: "learned", the fixed "sincos" (zero at the class token), or "none".
        relative_position: a bias of attention by distance, "shared" by all blocks or of
            "each"; None has none.
        class_position: the class token has a learned position of its own.
        registers: learned tokens between the class token and the patches, which have no
            position and which nothing reads.
        dropout: rate after the embedding and after every dense layer of a block.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0.
        layer_scale: where the factors of a block's branches start; None has none.
        any_size: take images of any whole number of patches, and resample positions.
        antialias_positions: how they are resampled, see `resize_positions`.
        remat: compute blocks again in the backward pass instead of keeping all of them.
        scan: loop over the blocks; their parameters are stacked, see `stack_blocks`.
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
    attention: Callable[..., Array] = attention
    layer_scale: float | None = None
    any_size: bool = False
    remat: bool = False
    scan: bool = False
    class_position: bool = True
    registers: int = 0
    mlp: str = "gelu"
    antialias_positions: bool = True
    relative_position: str | None = None
    pool_norm: bool = False

    def setup(self) -> None:
        self._check()
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.patch_embed = Dense(self.width, kernel_init=xavier_uniform, **kinds)
        small = nn.initializers.truncated_normal(0.02)
        if self.class_token:
            self.first = self.param("class", small, (self.width,), self.param_dtype)
        if self.registers:
            shape = (self.registers, self.width)
            self.others = self.param("registers", small, shape, self.param_dtype)
        rows, columns = self._grid
        if self.position == "learned":
            first = self.class_token and self.class_position
            shape = (first + rows * columns, self.width)
            self.positions = self.param("position", small, shape, self.param_dtype)
        elif self.position == "sincos":
            self.positions = sincos_positions(rows, columns, self.width)
        if self.relative_position is not None:
            kind = {"class_token": self.class_token}
            self.places = relative_positions(rows, columns, **kind)
            shared = self.relative_position == "shared"
            shape = (1 if shared else self.depth, self.places.max() + 1, self.heads)
            zeros = nn.initializers.zeros
            self.relative = self.param("relative", zeros, shape, self.param_dtype)
        self.embed_dropout = Dropout(self.dropout, axis_name=self.axis_name)
        block = partial(
            TransformerBlock,
            self.heads,
            int(self.mlp_ratio * self.width),
            self.attention,
            dropout=self.dropout,
            drop_path=self.drop_path,
            layer_scale=self.layer_scale,
            mlp=self.mlp,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            **kinds,
        )
        self.blocks = block() if self.scan else [block() for _ in range(self.depth)]
        self.norm = nn.LayerNorm(self.epsilon, **kinds)
        if self.num_classes is not None:
            self.head = Dense(self.num_classes, **kinds)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch features"]:
        """Returns the pooled features, [batch, width] but for "both", or their logits.

        Raises:
            ValueError: if the images are not of `image_size`, or with `any_size` not
                whole patches.
        """
        tokens = self.tokens(images, train=train)
        mean = jnp.mean(tokens[:, int(self.class_token) + self.registers :], axis=1)
        if self.pool == "mean":
            features = mean
        elif self.pool == "class":
            features = tokens[:, 0]
        else:
            features = jnp.concatenate([tokens[:, 0], mean], axis=1)
        if self.pool_norm:
            features = self.norm(features)
        return features if self.num_classes is None else self.head(features)

    def tokens(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool,
        hidden: Bool[Array, "batch patches"] | None = None,
        mask_token: Float[Array, "dim"] | None = None,
        keep: Int[Array, "batch kept"] | None = None,
    ) -> Tokens:
        """Returns all tokens after the final norm: class, registers, then row by row.

        Args:
            images: as for a call.
            train: whether there is dropout.
            hidden: patches in whose place the mask token stands.
            mask_token: what stands there; it gets their positions.
            keep: the patches that go through the blocks, in this order, with their
                positions; None keeps all.

        Raises:
            ValueError: if the images do not fit, or what a model with relative positions
                keeps is not all.
        """
        grid = self._grid_of(images)
        # A matrix product of flat patches stands for the convolution.
        x = self.patch_embed(patchify(images, self.patch_size))
        if hidden is not None:
            assert mask_token is not None
            x = jnp.where(hidden[..., None], mask_token.astype(x.dtype)[None, None], x)
        first, x = self._located(x, grid)
        if keep is not None:
            if self.relative_position is not None:
                raise ValueError("keep must be None where positions are relative")
            x = jnp.take_along_axis(x, keep[..., None], axis=1)
        x = x if first is None else jnp.concatenate([first, x], axis=1)
        x = self._through_blocks(self.embed_dropout(x, train=train), train)
        return x if self.pool_norm else self.norm(x)

    def _located(self, x: Tokens, grid: tuple[int, int]) -> tuple[Array | None, Array]:
        """The tokens before the patches, and the patches, with their positions."""
        first = [self.first[None]] if self.class_token else []
        first += [self.others] if self.registers else []
        before = jnp.concatenate(first).astype(x.dtype) if first else None
        if self.position != "none":
            positions = jnp.asarray(self.positions)
            if grid != self._grid:
                options = {"antialias": self.antialias_positions}
                positions = resize_positions(positions, self._grid, grid, **options)
            own, positions = jnp.split(
                positions.astype(x.dtype), [len(positions) - x.shape[1]]
            )
            x += positions[None]
            if before is not None:
                before += jnp.pad(own, ((0, len(before) - len(own)), (0, 0)))
        if before is not None:
            before = jnp.broadcast_to(before[None], (len(x), *before.shape))
        return before, x

    def _through_blocks(self, x: Tokens, train: bool) -> Tokens:
        shares = jnp.linspace(0, 1, self.depth, dtype=jnp.float32)
        tables = None  # of biases; the shares are of stochastic depth
        if self.relative_position is not None:
            table = self.relative
            tables = jnp.broadcast_to(table, (self.depth, *table.shape[1:]))

        def through(block: nn.Module, x: Tokens, own: Any) -> tuple[Tokens, None]:
            share, table = own
            options = {}
            if table is not None:
                options["bias"] = jnp.moveaxis(table[self.places], -1, 0)[None]
            return block(x, train=train, share=share, **options), None

        if self.remat:
            through = nn.remat(through, prevent_cse=not self.scan)
        if self.scan:
            kinds = {"params": True, "dropout": True}
            loop = nn.scan(through, {"params": 0}, split_rngs=kinds, length=self.depth)
            return loop(self.blocks, x, (shares, tables))[0]
        for i, block in enumerate(self.blocks):
            table = None if tables is None else tables[i]
            x, _ = through(block, x, (shares[i], table))
        return x

    @property
    def _grid(self) -> tuple[int, int]:
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size

    def _grid_of(self, images: Array) -> tuple[int, int]:
        """Rows and columns of patches, which must be whole."""
        side, (height, width) = self.patch_size, images.shape[1:3]
        rows, columns = grid = (height // side, width // side)
        if not self.any_size and grid != self._grid:
            rows, columns = self._grid
        if (height, width) != (rows * side, columns * side) or 0 in grid:
            raise ValueError(
                f"images must be {rows * side} x {columns * side} pixels "
                f"({rows} x {columns} patches of {side}), got {images.shape}"
            )
        return grid

    def _check(self) -> None:
        size = self.image_size
        if any(n % self.patch_size for n in np.atleast_1d(size)):
            raise ValueError(
                f"patch_size must divide image_size, got {self.patch_size} and {size}"
            )
        width, heads = self.width, self.heads
        if width % heads:
            raise ValueError(f"heads must divide width, got {heads} and {width}")
        if self.pool not in ("class", "mean", "both"):
            raise ValueError(f"pool must be class, mean or both, got {self.pool!r}")
        if self.pool != "mean" and not self.class_token:
            raise ValueError("pool must be mean where there is no class token")
        kind = self.position
        if kind not in ("learned", "sincos", "none"):
            raise ValueError(f"position must be learned, sincos or none, got {kind!r}")
        if self.pool_norm and self.pool == "both":
            raise ValueError("pool must be class or mean with pool_norm, got both")
        self._check_relative()

    def _check_relative(self) -> None:
        kind = self.relative_position
        if kind not in (None, "shared", "each"):
            raise ValueError(f"relative_position must be shared or each, got {kind!r}")
        if kind is not None and (self.any_size or self.registers):
            raise ValueError(
                "relative positions must be of one size without registers, "
                f"got any_size={self.any_size} and {self.registers} registers"
            )


@export("nn.stack_blocks", since="0.1")
def stack_blocks(params: Params) -> Params:
    """Parameters of a `VisionTransformer` as they are with `scan`: blocks stacked."""
    names = sorted(
        (name for name in params if name.startswith("blocks_")),
        key=lambda name: int(name.removeprefix("blocks_")),
    )
    if not names:
        raise ValueError(f"params must have blocks_0, ..., got {', '.join(params)}")
    blocks = [params[name] for name in names]
    others = {name: x for name, x in params.items() if name not in names}
    return {**others, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


@export("nn.unstack_blocks", since="0.1")
def unstack_blocks(params: Params) -> Params:
    """The inverse of `stack_blocks`: one entry per block."""
    if "blocks" not in params:
        raise ValueError(f"params must have blocks, got {', '.join(params)}")
    others = {name: x for name, x in params.items() if name != "blocks"}
    depth = len(jax.tree.leaves(params["blocks"])[0])
    blocks = {
        f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        for i in range(depth)
    }
    return others | blocks


@export("nn.attention_maps", since="0.1")
def attention_maps(
    model: VisionTransformer,
    params: Params,
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "depth batch heads tokens tokens"]:
    """Who looks at whom in every block: the weights of its softmax attention.

    Row `[:, :, :, 0, 1:]` of a model with a class token is what DINO's pictures show.
    """
    maps: list[Array] = []
    attend = model.attention

    def watched(q: Array, k: Array, v: Array, **options: Any) -> Array:
        maps.append(attention_weights(q, k, **options))
        return attend(q, k, v, **options)

    if model.scan:
        params = unstack_blocks(params)
    model = model.clone(attention=watched, scan=False, remat=False)
    model.apply({"params": params}, images, train=False)
    return jnp.stack(maps)


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
