"""A small learning problem that every part of the training code is tried on."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxml.method import Method


def regression() -> Method:
    """Least squares, with a running mean of its inputs as model state."""

    def init(key, batch):
        del key
        zeros = jnp.zeros(batch["x"].shape[1:])
        return {"w": zeros, "b": jnp.zeros(())}, {"mean": zeros}

    def loss(params, model_state, batch, key):
        del key
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        value = jnp.mean(jnp.square(error))
        mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(batch["x"], axis=0)
        return value, ({"mean": mean}, {"loss": value})

    def predict(params, model_state, batch):
        return batch["x"] @ params["w"] + params["b"]

    return Method(init, loss, predict)


class Batches:
    """An endless, seekable stream: batch i depends on i alone."""

    def __iter__(self):
        return Stream()


class Stream:
    def __init__(self):
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng(self.position)
        self.position += 1
        x = rng.normal(size=(8, 3)).astype(np.float32)
        return {"x": x, "y": x @ np.float32([1, -2, 3]) + 1}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


@pytest.fixture
def method():
    return regression()


@pytest.fixture
def batches():
    return Batches()


@pytest.fixture
def plain_batches():
    """The same batches from an iterator that cannot seek."""

    class Plain:
        def __iter__(self):
            return itertools.islice(Stream(), 10_000)

    return Plain()
