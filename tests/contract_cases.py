"""One small instance of every exported method, on which `test_contract.py` tries it.

A new method needs one more function here: it returns the method and a batch that holds
everything `init`, `loss` and `predict` read. Small widths: each is compiled.
"""

from collections.abc import Callable, Mapping

import jax

from jaxml.method import Batch, Method
from jaxml.nn import ConvNet
from jaxml.ssl import SimCLR, SimSiam, simclr, simsiam

SIZE = 6
"""Samples in every batch."""


def views() -> Batch:
    """Small images and two noisy views of each."""
    image, *noise = jax.random.uniform(jax.random.key(0), (3, SIZE, 8, 8, 1))
    view1, view2 = (0.8 * image + 0.2 * extra for extra in noise)
    return {"image": image, "view1": view1, "view2": view2}


def ssl_simclr() -> tuple[Method, Batch]:
    return simclr(SimCLR(ConvNet([4]), [8, 4])), views()


def ssl_simsiam() -> tuple[Method, Batch]:
    return simsiam(SimSiam(ConvNet([4]), dim=8, bottleneck=4)), views()


CASES: Mapping[str, Callable[[], tuple[Method, Batch]]] = {
    "ssl.simclr": ssl_simclr,
    "ssl.simsiam": ssl_simsiam,
}
