"""Fine-tuning: all of a pretrained network learns to classify, from few or many labels.

    logits = W a + b,    a = h, the backbone's features, or the layer of the projection
                         head that SimCLR v2 keeps: relu(norm(first layer of the head))

The head's first layers go on to be part of the encoder ("fine-tuning from a middle layer
of the projection head"); its widths here are the first of those it was pretrained with.
`taken_over` puts the pretrained arrays in their places, and `layerwise_decay` makes early
layers, which are general, move less than late ones:

    rate of depth d of D = rate * decay^(D - d).

The trap is a name that does not match: the layer then starts at random, and fine-tuning
trains from scratch without a word. `taken_over` therefore refuses what it cannot place.

Reference: Chen, Kornblith, Swersky, Norouzi and Hinton, "Big Self-Supervised Models are
Strong Semi-Supervised Learners", NeurIPS 2020, https://arxiv.org/abs/2006.10029 (section
3); Bao, Dong, Piao and Wei, "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022,
https://arxiv.org/abs/2106.08254 (layer-wise decay, appendix H).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.nn.dense import Dense
from jaxml.nn.functional import apply_module, init_module
from jaxml.nn.mlp import Mlp
from jaxml.typing import Array, Float, Int, PRNGKeyArray

Path = tuple[str, ...]
STEM = {"patch_embed", "class", "position", "word", "type", "embed_norm"}


@export("ssl.FineTuned", since="0.1")
class FineTuned(nn.Module):
    """A backbone, what is kept of the projection head, and a linear classifier.

    Attributes:
        backbone: module taking (images, train), or (tokens, train), to features
            [batch, features].
        num_classes: of the classifier.
        head: widths of the head's layers that are kept, its first ones; none for version
            1, one in version 2.
        axis_name: mesh axis over which the head shares batch statistics; give the
            backbone the same.
    """

    backbone: nn.Module
    num_classes: int
    head: Sequence[int] = ()
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"]
        | Int[Array, "batch length"],
        *,
        train: bool,
    ) -> Float[Array, "batch classes"]:
        """Returns logits."""
        x = self.backbone(images, train=train)
        if self.head:  # under the name it has in `SimCLR`
            head = Mlp(
                self.head, normalize_last=True, axis_name=self.axis_name, name="Mlp_0"
            )
            x = nn.relu(head(x, train=train))
        small = nn.initializers.normal(0.01)
        return Dense(self.num_classes, kernel_init=small, name="classifier")(x)


@export("ssl.fine_tune", since="0.1")
def fine_tune(
    model: FineTuned, pretrained: tuple[Params, ModelState] | None = None
) -> Method:
    """Classification of `view` (an augmented `image`) as `label`.

    `predict` returns logits [batch, classes] of `image`. Metrics: the loss, and the share
    of the batch that is classified right (`accuracy`).

    Args:
        model: the network.
        pretrained: parameters and model state of a `SimCLR`, or of any network whose
            parts have the same names; None starts at random.
    """

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        fresh = init_module(model, key, batch["view"], train=True)
        return fresh if pretrained is None else taken_over(fresh, pretrained)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        rngs = {"dropout": key}  # the view is drawn before
        logits, model_state = apply_module(
            model, params, model_state, batch["view"], train=True, rngs=rngs
        )
        logits, labels = logits.astype(jnp.float32), batch["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        is_right = jnp.argmax(logits, axis=-1) == labels
        value = jnp.mean(losses)
        accuracy = jnp.mean(is_right, dtype=jnp.float32)
        return value, (model_state, {"loss": value, "accuracy": accuracy})

    def predict(
        params: Params, model_state: ModelState, batch: Batch
    ) -> Float[Array, "batch classes"]:
        logits, _ = apply_module(
            model, params, model_state, batch["image"], train=False
        )
        return logits

    return Method(init, loss, predict)


@export("ssl.taken_over", since="0.1")
def taken_over(fresh: Any, pretrained: Any) -> Any:
    """`fresh` with every array that `pretrained` has under the same path, copied.

    Args:
        fresh: nested dicts of arrays, such as (params, model_state).
        pretrained: likewise; what has no place in `fresh` is left out.

    Raises:
        ValueError: if an array has another shape than the one it is to replace, or if
            nothing but what `pretrained` has no name for at the top is left at random.
    """
    source = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree.leaves_with_path(pretrained)
    }
    missing = []

    def place(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path)
        if name not in source:
            missing.append(name)
            return leaf
        if jnp.shape(source[name]) != leaf.shape:
            raise ValueError(
                f"{name} must have the shape {leaf.shape}, got "
                f"{jnp.shape(source[name])}"
            )
        return jnp.array(source[name], leaf.dtype, copy=True)

    placed = jax.tree.map_with_path(place, fresh)
    lost = [name for name in missing if "classifier" not in name]
    if lost:
        raise ValueError(
            "all but the classifier must be pretrained, got nothing for "
            + ", ".join(lost)
        )
    return placed


@export("ssl.layerwise_decay", since="0.1")
def layerwise_decay(
    optimizer: optax.GradientTransformation,
    decay: float,
    depth: Callable[[Path], int] | Mapping[str, int],
) -> optax.GradientTransformation:
    """`optimizer`, whose updates shrink by `decay` for every layer below the deepest.

    Args:
        optimizer: its whole update is scaled, weight decay included.
        decay: 0.65 to 0.9 for transformers.
        depth: path of an array -> its depth, the input's being 0; or regular expressions
            of such paths ("backbone/stage_(0|1)") -> depth, of which the first that is
            found in it counts.

    Raises:
        ValueError: if the decay is not in (0, 1], or an array has no depth.

        layerwise_decay(optax.adamw(1e-3), 0.75, {"stem": 0, "backbone": 1, "": 2})
        layerwise_decay(optax.adamw(1e-3), 0.65, transformer_depth(12))
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay}")

    def depth_of(path: Any) -> int:
        names = tuple(str(getattr(entry, "key", entry)) for entry in path)
        if not isinstance(depth, Mapping):
            return depth(names)
        joined = "/".join(names)
        for pattern, number in depth.items():
            if re.search(pattern, joined):
                return number
        raise ValueError(f"every array must have a depth, got none for {joined}")

    def scaled(updates: Any) -> Any:
        depths = jax.tree.map_with_path(lambda path, _: depth_of(path), updates)
        deepest = max(jax.tree.leaves(depths))
        return jax.tree.map(lambda u, d: u * decay ** (deepest - d), updates, depths)

    def init(params: Params) -> Any:
        return optimizer.init(params)

    def update(
        updates: Any, state: Any, params: Params | None = None
    ) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        return scaled(updates), state

    return optax.GradientTransformation(init, update)


@export("ssl.transformer_depth", since="0.1")
def transformer_depth(num_blocks: int) -> Callable[[Path], int]:
    """The depths of `nn.VisionTransformer` and `BertEncoder`, for `layerwise_decay`.

    What embeds patches or tokens is 0, block i is i + 1, and all behind the blocks num_blocks + 1.

    Raises:
        ValueError: if there is no block; when asked for a block there is none of.

    >>> depth = transformer_depth(12)
    >>> [depth(path) for path in (("class",), ("blocks_3", "norm1"), ("head", "bias"))]
    [0, 4, 13]
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")

    def depth(path: Path) -> int:
        joined = "/".join(path)
        if found := re.search(r"blocks_(\d+)", joined):
            if int(found[1]) >= num_blocks:
                raise ValueError(f"there must be {num_blocks} blocks, got {joined}")
            return int(found[1]) + 1
        is_stem = not STEM.isdisjoint(path)
        return 0 if is_stem else num_blocks + 1

    return depth
