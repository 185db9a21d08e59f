"""Attention by whoever has it for a GPU: calls that all are given, and their answers.

Every library is a function of query, key and value, [batch, tokens, heads, dim]; one that
is not installed, or does not know what a call asks for, is a reason instead.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.attention import attention, linear_attention

Attend = Callable[..., Any]
KINDS = (
    "causal",
    "full",
    "bias",
    "mask",
    "linear",
    "shared",
    "documents",
    "window",
)
WINDOW = 1024
DOCUMENTS = 16


class Case(NamedTuple):
    """A call: its sizes, and its kind, one of `KINDS`; all but three are causal."""

    kind: str
    batch: int
    length: int
    heads: int
    kv_heads: int
    dim: int

    def __str__(self) -> str:
        keys = "" if self.heads == self.kv_heads else f", {self.kv_heads} of keys"
        sizes = f"{self.batch} x {self.length}, {self.heads} heads of {self.dim}"
        return f"{self.kind}, {sizes}{keys}"

    @property
    def is_causal(self) -> bool:
        """Whether no query sees a later key."""
        return self.kind not in ("full", "bias", "mask")

    def documents(self) -> np.ndarray:
        """The number of the document that each token is of."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, DOCUMENTS, (self.batch, self.length))
        return np.sort(ids, axis=1).astype(np.int32)

    def options(self) -> dict[str, Any]:
        """As `attention` takes them."""
        rng = np.random.default_rng(1)
        pairs = (1, self.heads, self.length, self.length)
        made: dict[str, Callable[[], dict[str, Any]]] = {
            "documents": lambda: {"segment_ids": jnp.asarray(self.documents())},
            "window": lambda: {"local_window_size": (WINDOW - 1, 0)},
            "bias": lambda: {"bias": jnp.asarray(rng.normal(size=pairs), jnp.bfloat16)},
            "mask": lambda: {
                "mask": jnp.asarray(rng.integers(10, size=pairs, dtype=np.uint8) > 0)
            },
        }
        return {"is_causal": self.is_causal, **made.get(self.kind, dict)()}

    def flops(self, gradient: bool) -> float:
        """Of the products that are needed: two forward, five more backward."""
        tokens = self.batch * self.heads * self.length
        if self.kind == "linear":  # into the state and out of it; three times backward
            return 4 * tokens * self.dim**2 * (4 if gradient else 1)
        seen = self.length / (1 + self.is_causal)
        if self.kind == "documents":
            ids = self.documents()
            seen *= (
                np.mean([np.mean(np.bincount(row)[row]) for row in ids]) / self.length
            )
        if self.kind == "window":
            seen = min(seen, WINDOW)
        return 4 * tokens * seen * self.dim * (3.5 if gradient else 1)


class Library(NamedTuple):
    """A way to answer a case.

    Attributes:
        name: in the table.
        attend: (query, key, value) -> output; None if it cannot.
        refusal: why it cannot.
        stand_in: what runs in its place in a dry run without a GPU, if anything does.
        is_torch: whether its arrays are PyTorch's.
    """

    name: str
    attend: Attend | None = None
    refusal: str = ""
    stand_in: Attend | None = None
    is_torch: bool = False


class RefusalError(Exception):
    """A library does not know what a case asks for."""


def libraries(case: Case, peers: bool) -> Iterator[Library]:
    """All that answer cases of this kind, ours first; or why they do not."""
    own = OURS_LINEAR if case.kind == "linear" else OURS
    others = PEERS_LINEAR if case.kind == "linear" else PEERS
    for name, make in (own | others if peers else own).items():
        try:
            yield make(case)
        except RefusalError as reason:
            yield Library(name, refusal=str(reason))
        except ImportError as error:
            yield Library(name, refusal=f"not installed: {error.name}")


def takes(case: Case, *kinds: str, dims: tuple[int, ...] = ()) -> None:
    """Refuses other kinds and dims."""
    if case.kind not in kinds:
        raise RefusalError(f"does not know {case.kind}")
    if dims and case.dim not in dims:
        raise RefusalError(f"takes dims {dims}, not {case.dim}")


def kernel() -> str:
    """Ours by name: the kernel, or in a dry run the program that has it on a GPU."""
    return "mosaic_gpu" if jax.default_backend() == "gpu" else "flash"


# jaxml's own: the kernel, what is chosen unasked, and tiles in plain JAX.


def _jaxml(case: Case) -> Library:
    run = partial(attention, implementation=kernel(), **case.options())
    return Library("jaxml", run, stand_in=run)


def _unasked(case: Case) -> Library:
    run = partial(attention, **case.options())
    return Library("jaxml unasked", run, stand_in=run)


def _chunked(case: Case) -> Library:
    run = partial(attention, implementation="chunked", **case.options())
    return Library("chunked", run, stand_in=run)


def _linear(implementation: str | None, name: str, case: Case) -> Library:
    run = partial(
        linear_attention,
        feature_map=lambda x: x,
        normalize=False,
        is_causal=True,
        implementation=implementation or kernel(),
    )
    return Library(name, run, stand_in=run)


# Others'.


def _dense(case: Case) -> dict[str, Any]:
    """Options for those who know documents as a mask alone."""
    options = case.options()
    ids = options.pop("segment_ids", None)
    if ids is not None:
        options["mask"] = ids[:, None, :, None] == ids[:, None, None, :]
    return options


def _cudnn(case: Case) -> Library:
    run = partial(jax.nn.dot_product_attention, **_dense(case))
    stand_in = partial(run, implementation="xla")
    return Library("cudnn", partial(run, implementation="cudnn"), stand_in=stand_in)


def _jax_mosaic(case: Case) -> Library:
    """JAX's example of a Hopper kernel: float16, no gradient where it is causal."""
    takes(case, "full", "causal", "shared")
    from jax.experimental.pallas.ops.gpu.attention_mgpu import TuningConfig
    from jax.experimental.pallas.ops.gpu.attention_mgpu import attention as attend

    config = TuningConfig(
        block_q=64,
        block_kv={64: 256, 128: 128}.get(case.dim, 64),
        max_concurrent_steps=2,
        causal=case.is_causal,
        block_q_dkv=64,
        block_kv_dkv=64,
        block_q_dq=64,
        block_kv_dq=64,
    )

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scaled = q * case.dim**-0.5
        half = (x.astype(jnp.float16) for x in (scaled, k, v))
        return attend(*half, config).astype(q.dtype)

    return Library("jax mosaic", run)


def _jax_triton(case: Case) -> Library:
    """JAX's deprecated kernel."""
    takes(case, "full", "causal", "documents")
    if case.heads != case.kv_heads:
        raise RefusalError("does not know shared keys")
    from jax.experimental.pallas.ops.gpu.attention import mha

    ids = case.options().get("segment_ids")
    scale = case.dim**-0.5
    run = partial(mha, segment_ids=ids, sm_scale=scale, causal=case.is_causal)
    return Library("jax triton", run)


def _tokamax(case: Case) -> Library:
    import tokamax

    run = partial(
        tokamax.dot_product_attention, implementation="mosaic", **_dense(case)
    )
    return Library("tokamax", run)


def _jla(case: Case) -> Library:
    takes(case, "causal", "shared", "documents", "window", dims=(64, 128))
    from jla.ops.mosaic_gpu.attention import flash_attention

    window = WINDOW if case.kind == "window" else None
    ids = case.options().get("segment_ids")
    run = partial(flash_attention, segment_ids=ids, sliding_window=window)
    return Library("jax-linear-attention", run)


def _torch(name: str, backend: str, case: Case) -> Library:
    takes(case, "full", "causal", "shared")
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run(backend: str, q: Any, k: Any, v: Any) -> Any:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(getattr(SDPBackend, backend)):
            out = torch.nn.functional.scaled_dot_product_attention(
                *heads_first,
                is_causal=case.is_causal,
                enable_gqa=case.heads != case.kv_heads,
            )
        return out.transpose(1, 2)

    return Library(name, partial(run, backend), "", partial(run, "MATH"), is_torch=True)


def _jla_linear(case: Case) -> Library:
    """Its gated attention, with gates that are open."""
    from jla.ops import linear_attention as gated

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        gates = jnp.zeros(q.shape[:3], jnp.float32)
        return gated("simple_gla", q, k, v, g=gates, scale=1.0)[0]

    return Library("jax-linear-attention", run)


def _fla_linear(case: Case) -> Library:
    from fla.ops.linear_attn import chunk_linear_attn

    def run(q: Any, k: Any, v: Any) -> Any:
        return chunk_linear_attn(q, k, v, scale=1.0, normalize=False)[0]

    return Library("flash-linear-attention", run, is_torch=True)


OURS = {"jaxml": _jaxml, "jaxml unasked": _unasked}
PEERS = {
    "chunked": _chunked,
    "cudnn": _cudnn,
    "jax mosaic": _jax_mosaic,
    "jax triton": _jax_triton,
    "tokamax": _tokamax,
    "jax-linear-attention": _jla,
    "torch cudnn": partial(_torch, "torch cudnn", "CUDNN_ATTENTION"),
    "torch flash": partial(_torch, "torch flash", "FLASH_ATTENTION"),
}
OURS_LINEAR = {
    "jaxml": partial(_linear, None, "jaxml"),
    "chunked": partial(_linear, "chunked", "chunked"),
}
PEERS_LINEAR = {
    "jax-linear-attention": _jla_linear,
    "flash-linear-attention": _fla_linear,
}
