"""Methods made from methods, as optax makes transformations from transformations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxml.export import export, export_constant
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.ops.augment import to_float
from jaxml.parallel.collectives import in_micro_batch, micro_batch, sample_keys
from jaxml.typing import Array, Float, PRNGKeyArray


@export("compose.augmented", since="0.1")
def augmented(
    method: Method,
    views: Callable[..., dict[str, Array]],
    axis_name: str | None = None,
    *,
    inputs: Sequence[str] = ("image",),
) -> Method:
    """`method`, fed with random views of `batch["image"]`, drawn inside the jitted step.

    Images may be uint8 (the cheapest to move to a device) or float32 in [0, 1]; the
    method sees floats. `predict` sees the image itself, without augmentation.

    Args:
        method: the algorithm; what it needs from the batch, `views` must make.
        views: (key, one image) -> named views, for example {"view1": ..., "view2": ...};
            it is vmapped over the batch, each sample with its own key, which depends on
            its position in the global batch and not on the device it lies on.
        axis_name: mesh axis the batch is split over, or None.
        inputs: what of the batch a view is made of, the image first: with
            ("image", "label") `views` is given (key, one image, its label), so that both
            can be turned alike.
    """

    def expand(key: PRNGKeyArray, batch: Batch, axis_name: str | None) -> Batch:
        images = to_float(batch["image"])
        keys = sample_keys(key, len(images), axis_name)
        others = [batch[name] for name in inputs[1:]]
        return {**batch, "image": images, **jax.vmap(views)(keys, images, *others)}

    def init(key: PRNGKeyArray, batch: Batch) -> tuple[Params, ModelState]:
        return method.init(key, expand(key, batch, None))

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        view_key, key = jax.random.split(key)
        batch = expand(view_key, batch, axis_name)
        return method.loss(params, model_state, batch, key)

    def predict(params: Params, model_state: ModelState, batch: Batch) -> Array:
        batch = {**batch, "image": to_float(batch["image"])}
        return method.predict(params, model_state, batch)

    return method._replace(init=init, loss=loss, predict=predict)


@export("compose.Merge", since="0.1")
class Merge(NamedTuple):
    """How one array of the model state, changed by k micro-batches, becomes one again.

    Every micro-batch starts from the same `old` array and makes its own `new` one. Only
    what `take` keeps of it is stored until all are there.

    Attributes:
        take: (old, new, samples) -> part, for each micro-batch; `samples` is their
            number in the micro-batch, over all devices.
        give: (old, parts [k, ...]) -> the array after the step.
    """

    take: Callable[[Array, Array, int], Array]
    give: Callable[[Array, Array], Array]


def _float(old: Array, new: Array, samples: int) -> Array:
    del old, samples
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        raise TypeError(f"`average` merges floating-point state, got {new.dtype}")
    return new


def _mean(old: Array, parts: Array) -> Array:
    wide = jnp.promote_types(parts.dtype, jnp.float32)
    return jnp.mean(jnp.asarray(parts, wide), axis=0).astype(old.dtype)


average = export_constant("compose.average", Merge(_float, _mean), since="0.1")
"""For moving averages (batch statistics, a centre): they move once, by the mean."""

newest_first = export_constant(
    "compose.newest_first",
    Merge(
        # Micro-batch j holds every k-th sample: the parts are put back like a deck.
        lambda old, new, samples: new[:samples],
        lambda old, parts: jnp.concatenate(
            [jnp.moveaxis(parts, 0, 1).reshape(-1, *old.shape[1:]), old]
        )[: len(old)],
    ),
    since="0.1",
)
"""For a queue [size, ...] that gets one row per sample, in the order of the batch, at its
front: it gets the rows of all micro-batches in the order of the whole batch."""

BATCH_STATS: Mapping[str, Merge] = {"batch_stats": average}


@export("compose.accumulated", since="0.1")
def accumulated(
    method: Method,
    k: int,
    axis_name: str | None = None,
    *,
    merge: Mapping[str, Merge] | None = None,
    recompute: bool = True,
) -> Method:
    """`method`, its batch taken in k micro-batches: the same step in less memory.

    The loss, its gradient and the metrics are means over the micro-batches, so with a
    loss that is a mean over samples a step is that of the whole batch. Devices exchange
    gradients once per step, not once per micro-batch. Random keys from `sample_keys`
    (augmentation, dropout) are those of the whole batch; micro-batch j holds the samples
    j, j + k, j + 2k ..., so it is the same on any number of devices.

    All micro-batches see the model state as it was before the step. What they change in
    it is merged into **one** change per step by the rule of its name: batch statistics
    move once, by the average over the micro-batches (as `BatchNorm(num_groups=k)` does);
    a queue or a centre needs its rule in `merge`. `after_update` runs once, as always.

    The traps: what a loss compares within its batch it now compares within the
    micro-batch. Batch norm normalises by it, and a contrastive loss has the negatives of
    the micro-batch only, however large the batch: accumulation is no way to more of them
    (a queue is). A method that jits parts of itself hides from them which micro-batch it
    is. And samples count equally if all micro-batches have equally many, as devices.

    Args:
        method: the algorithm. Its batch holds nothing but arrays of samples.
        k: the number of micro-batches; divides the batch of every device.
        axis_name: mesh axis the batch is split over, or None.
        merge: for every name in the model state's path the rule by which it is merged,
            the innermost name first; `batch_stats` are known.
        recompute: True runs each micro-batch again for its gradient, after all have been
            run (4/3 of the arithmetic). False takes each gradient at once, before the
            gradient of what follows the loss is known: it is multiplied in afterwards.
            In exact arithmetic that is the same, but a loss scale for float16 then
            comes too late.

    Raises:
        ValueError: if k is below 1; in `loss`, if k does not divide the batch, or if the
            loss changes an array of the model state for which there is no rule.

        >>> method = accumulated(moco, 4, "data", merge={"queue": newest_first})
    """
    if k < 1:
        raise ValueError(f"the number of micro-batches must be at least 1, got {k}")
    rules = {**BATCH_STATS, **(merge or {})}

    def one(
        params: Params, model_state: ModelState, batch: Batch, index: Array, key: Any
    ) -> tuple[Array, tuple[dict[int, Array], Metrics]]:
        """Loss of one micro-batch, and what it wants changed in the model state."""
        with micro_batch(index, k):
            value, (after, metrics) = method.loss(params, model_state, batch, key)
        samples = _num_samples(batch) * (lax.axis_size(axis_name) if axis_name else 1)
        return value, (_changes(model_state, after, rules, samples), metrics)

    def after_all(params: Params, model_state: ModelState, batches: Batch, key: Any):
        def body(_: None, xs: tuple[Batch, Array]):
            return None, step(params, model_state, *xs, key)

        step = jax.checkpoint(one, prevent_cse=False) if recompute else one
        _, (values, aux) = lax.scan(body, None, (batches, jnp.arange(k)))
        return jnp.mean(values), aux

    def at_once(params: Params, model_state: ModelState, batches: Batch, key: Any):
        gradient = jax.value_and_grad(one, has_aux=True)

        def body(total: Params, xs: tuple[Batch, Array]):
            outputs, grads = gradient(params, model_state, *xs, key)
            return jax.tree.map(jnp.add, total, grads), outputs

        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, (values, aux) = lax.scan(body, zeros, (batches, jnp.arange(k)))
        return (jnp.mean(values), aux), jax.tree.map(lambda g: g / k, grads)

    def later(grads: Params, cotangents: tuple[Array, Any]):
        scale, _ = cotangents
        return (
            jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads),
            None,
            None,
            None,
        )

    run = after_all
    if not recompute:
        run = jax.custom_vjp(after_all)
        run.defvjp(at_once, later)

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[ModelState, Metrics]]:
        batches = jax.tree.map(lambda x: _every_kth(x, k), batch)
        value, (changes, metrics) = run(
            _own(params, axis_name), model_state, batches, key
        )
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        return value, (_merged(model_state, changes, rules), metrics)

    return method._replace(loss=loss) if k > 1 else method


def _own(params: Params, axis_name: str | None) -> Params:
    """The device's own copy, whose gradient stays its own until the end of the step."""
    # An axis of `vmap` has no copies: only those of `shard_map` are manual.
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if axis_name not in manual or in_micro_batch():
        return params
    return jax.tree.map(lambda x: lax.pcast(x, axis_name, to="varying"), params)


def _num_samples(batch: Batch) -> int:
    return len(jax.tree.leaves(batch)[0])


def _every_kth(x: Array, k: int) -> Array:
    """[n, ...] -> [k, n / k, ...]."""
    if jnp.ndim(x) == 0 or len(x) % k:
        raise ValueError(
            "the number of micro-batches must divide the batch of a device, "
            f"got {k} and an array of shape {jnp.shape(x)}"
        )
    return jnp.moveaxis(x.reshape(len(x) // k, k, *x.shape[1:]), 1, 0)


def _changes(
    before: ModelState, after: ModelState, rules: Mapping[str, Merge], samples: int
) -> dict[int, Array]:
    """What is to be kept of the arrays that a loss has replaced, by their number."""
    wanted: Any = jax.tree.structure(before)
    found: Any = jax.tree.structure(after)
    if found != wanted:
        raise ValueError(
            f"a loss must keep the structure of the model state {wanted}, got {found}"
        )
    leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {
        i: _rule(path, rules).take(old, new, samples)
        for i, ((path, old), new) in enumerate(leaves)
        if new is not old
    }


def _merged(
    model_state: ModelState, changes: dict[int, Array], rules: Mapping[str, Merge]
) -> ModelState:
    leaves, structure = jax.tree.flatten_with_path(model_state)
    return jax.tree.unflatten(
        structure,
        [
            _rule(path, rules).give(old, changes[i]) if i in changes else old
            for i, (path, old) in enumerate(leaves)
        ],
    )


def _rule(path: Any, rules: Mapping[str, Merge]) -> Merge:
    for entry in reversed(path):
        name = str(getattr(entry, "key", getattr(entry, "name", "")))
        if name in rules:
            return rules[name]
    raise ValueError(
        "what a loss changes in the model state must have a rule in `merge`, "
        f"got {jax.tree_util.keystr(path)} and rules for {', '.join(rules)}"
    )
