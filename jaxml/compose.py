"""Methods made from methods, as optax makes transformations from transformations."""

import jax

from jaxml.export import export
from jaxml.method import Batch, Method, Metrics, ModelState, Params
from jaxml.ops.augment import to_float
from jaxml.ops.views import Views
from jaxml.parallel.collectives import sample_keys
from jaxml.typing import Array, Float, PRNGKeyArray


@export("compose.augmented", since="0.1")
def augmented(method: Method, views: Views, axis_name: str | None = None) -> Method:
    """`method`, fed with random views of `batch["image"]`, drawn inside the jitted step.

    Images may be uint8 (the cheapest to move to a device) or float32 in [0, 1]; the
    method sees floats. `predict` sees the image itself, without augmentation.

    Args:
        method: the algorithm; what it needs from the batch, `views` must make.
        views: (key, one image) -> named views, for example {"view1": ..., "view2": ...};
            it is vmapped over the batch, each sample with its own key, which depends on
            its position in the global batch and not on the device it lies on.
        axis_name: mesh axis the batch is split over, or None.
    """

    def expand(key: PRNGKeyArray, batch: Batch, axis_name: str | None) -> Batch:
        images = to_float(batch["image"])
        keys = sample_keys(key, len(images), axis_name)
        return {**batch, "image": images, **jax.vmap(views)(keys, images)}

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
