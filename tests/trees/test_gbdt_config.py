"""What gradient boosting refuses."""

import jax
import numpy as np
import pytest

from jaxml.trees import cart
from jaxml.trees.gbdt import Config, fit

BAD = {
    "num_classes must be given": Config("logistic"),
    "num_classes must be 2": Config("logistic", 1),
    "needs two classes": Config("exponential", 3),
    "criterion must be 'squared_error'": Config(tree=cart.Config()),
    "num_rounds and learning_rate": Config(learning_rate=0.0),
    "subsample must be": Config(subsample=0.0),
    "patience must come": Config(patience=2),
    "below 2": Config("logistic", 2),
    "must not be negative": Config("poisson"),
    "must hold both|both classes": Config("exponential", 2),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_is_refused(message):
    y = np.full(4, {"below 2": 2, "must not be negative": -1}.get(message, 1))
    with pytest.raises(ValueError, match=message):
        fit(np.ones((4, 2)), y, BAD[message], jax.random.key(0))


def test_objectives_have_the_usual_hessians():
    margin, label = np.zeros((1, 3), np.float32), np.zeros(1, np.float32)
    _, h = Config("logistic", 3).objective().derivatives(margin, label)
    np.testing.assert_allclose(h, 2 / 9, rtol=1e-6)
    g, h = Config("exponential", 2).objective().derivatives(margin[:, :1], label + 1)
    assert (float(g[0, 0]), float(h[0, 0])) == (-1.0, 1.0)
