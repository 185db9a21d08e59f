"""Linen modules as pure functions of (params, model_state), the shape of a `Method`."""

from typing import Any

import flax.linen as nn

from jaxml.export import export
from jaxml.method import ModelState, Params
from jaxml.typing import PRNGKeyArray


@export("nn.init_module", since="0.1")
def init_module(
    module: nn.Module, key: PRNGKeyArray, *args: Any, **kwargs: Any
) -> tuple[Params, ModelState]:
    """The module's parameters, and all its other collections as one dict."""
    model_state = dict(module.init(key, *args, **kwargs))
    return model_state.pop("params", {}), model_state


@export("nn.apply_module", since="0.1")
def apply_module(
    module: nn.Module,
    params: Params,
    model_state: ModelState,
    *args: Any,
    train: bool,
    **kwargs: Any,
) -> tuple[Any, ModelState]:
    """Runs the module, and returns its outputs and the model state after it.

    The state changes only when `train` is set, which the module is told as well.
    """
    outputs, updates = module.apply(
        {"params": params, **model_state},
        *args,
        train=train,
        mutable=list(model_state) if train else [],
        **kwargs,
    )
    return outputs, {**model_state, **updates}
