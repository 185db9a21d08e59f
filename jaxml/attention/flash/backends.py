"""The kernels by name, and what each says against a call.

`mosaic_gpu` is ours for Hopper, `pallas_tpu` ours for TPUs, `cudnn` is NVIDIA's. None
of them is loaded before a call asks for it: Pallas takes its time to import.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxml.attention.flash import tables
from jaxml.attention.flash.cudnn import CUDNN, is_present
from jaxml.attention.flash.rule import CHUNKED, Kernels
from jaxml.attention.spec import Context, Operands, Spec
from jaxml.kernels.devices import capability, device_kind, gpu_interpreter

MOST_DIM = tables.DIMS[-1]


class Call(NamedTuple):
    """What is known of a call before any number.

    Attributes:
        spec: window, scale, soft cap, dropout.
        dtype: of query, key and value.
        dim: of query and key.
        value_dim: of value.
        bias: shape, if any.
        has_mask: a dense mask.
        has_segments: segments.
        aligned: whether the first query stands at the first key.
        wants_lse: whether lse is used.
    """

    spec: Spec
    dtype: Any
    dim: int
    value_dim: int
    bias: tuple[int, ...] | None
    has_mask: bool
    has_segments: bool
    aligned: bool
    wants_lse: bool

    @classmethod
    def of(
        cls,
        spec: Spec,
        operands: Operands,
        context: Context,
        aligned: bool,
        wants_lse: bool,
    ) -> "Call":
        """The description of prepared arguments."""
        bias = operands.bias
        return cls(
            spec,
            jnp.dtype(operands.query.dtype),
            operands.query.shape[3],
            operands.value.shape[3],
            None if bias is None else bias.shape,
            context.mask is not None,
            context.query_segments is not None,
            aligned or (spec.left is None and spec.right is None),
            wants_lse,
        )


USUAL = Call(
    Spec(1.0), jnp.dtype(jnp.bfloat16), 128, 128, None, False, False, True, False
)


def objection(name: str, call: Call, interpret: bool) -> str | None:
    """Why a kernel cannot take a call, or None."""
    return {
        "mosaic_gpu": _against_mosaic,
        "pallas_tpu": _against_pallas,
        "cudnn": _against_cudnn,
    }[name](call, interpret)


def _against_mosaic(call: Call, interpret: bool) -> str | None:
    if call.dtype not in (jnp.bfloat16, jnp.float16):
        return f"takes bfloat16 and float16, not {call.dtype}"
    if interpret and gpu_interpreter() is None:
        return "its interpreter needs jax 0.12"
    here = capability()
    if here not in (None, "9.0"):
        return f"is for Hopper, of compute capability 9.0, not {here}"
    return _against_kernels(call)


def _against_pallas(call: Call, interpret: bool) -> str | None:
    del interpret
    if call.dtype not in (jnp.bfloat16, jnp.float32):
        return f"takes bfloat16 and float32, not {call.dtype}"
    return _against_kernels(call)


def _against_kernels(call: Call) -> str | None:
    if max(call.dim, call.value_dim) > MOST_DIM:
        return f"takes dims up to {MOST_DIM}, not {call.dim} and {call.value_dim}"
    if call.spec.dropout_rate:
        return "has no dropout"
    return None


def _against_cudnn(call: Call, interpret: bool) -> str | None:
    del interpret
    spec = call.spec
    reasons = {
        "is not there when this program is traced": not is_present(),
        f"takes bfloat16 and float16, not {call.dtype}": call.dtype
        not in (jnp.bfloat16, jnp.float16),
        f"takes dims up to {MOST_DIM} in multiples of 8": call.dim % 8 != 0
        or call.dim != call.value_dim
        or call.dim > MOST_DIM,
        "has no segments": call.has_segments,
        "is slow with a mask": call.has_mask,
        "would repeat a bias in memory": call.bias is not None and 1 in call.bias[2:],
        "has no soft cap": spec.soft_cap is not None,
        "has no dropout that is the same for all backends": spec.dropout_rate > 0,
        "has a window only to the left": spec.right not in (None, 0)
        or (spec.left is not None and spec.right is None),
        "aligns the first query with the first key": not call.aligned,
        "gives no gradient to lse": call.wants_lse,
    }
    return next((why for why, so in reasons.items() if so), None)


def not_chosen(name: str, call: Call) -> str | None:
    """Why a kernel that can take a call is not taken unasked, or None."""
    if name == "cudnn":
        return None
    if name == "pallas_tpu":
        return "only by name: not measured yet"
    device = device_kind()
    if not tables.tuned(device):
        return f"only by name: not measured yet on {device or 'this platform'}"
    if _against_cudnn(call, False) is not None:
        return None
    row = tables.entry(call.dim, call.value_dim, call.spec.right == 0, device)
    if row.speed is None or row.cudnn is None or row.speed >= row.cudnn:
        return None
    return f"measured at {row.speed:.0f} TFLOP/s where cuDNN makes {row.cudnn:.0f}"


@functools.cache
def kernels(name: str, interpret: bool = False) -> Kernels:
    """The passes of a backend."""
    if name == "cudnn":
        return CUDNN
    if name == "chunked":
        return CHUNKED
    return {"mosaic_gpu": _mosaic, "pallas_tpu": _pallas}[name](interpret)


@functools.cache
def by_platform(gpu: str, tpu: str) -> Kernels:
    """One program for all platforms: the named kernels there, `chunked` elsewhere."""
    named = {"cuda": kernels(gpu), "tpu": kernels(tpu)}

    def forward(*args: Any) -> Any:
        spec, rest = args[0], args[1:]
        runs = {n: functools.partial(k.forward, spec) for n, k in named.items()}
        default = functools.partial(CHUNKED.forward, spec)
        return lax.platform_dependent(*rest, default=default, **runs)

    def backward(*args: Any) -> Any:
        spec, rest = args[0], args[1:]
        runs = {n: functools.partial(k.backward, spec) for n, k in named.items()}
        default = functools.partial(CHUNKED.backward, spec)
        return lax.platform_dependent(*rest, default=default, **runs)

    return Kernels(forward, backward)


def _pallas(interpret: bool) -> Kernels:
    from jaxml.attention.flash import tpu, tpu_backward

    return Kernels(
        functools.partial(tpu.forward, interpret=interpret),
        functools.partial(tpu_backward.backward, interpret=interpret),
    )


def _mosaic(interpret: bool) -> Kernels:
    from jaxml.attention.flash import gpu_backward, gpu_forward

    how = gpu_interpreter() if interpret else None

    def cut(spec: Spec, operands: Operands) -> tables.Entry:
        dims = operands.query.shape[3], operands.value.shape[3]
        return tables.entry(*dims, spec.right == 0, device_kind())

    def forward(spec: Spec, operands: Operands, context: Context) -> Any:
        config = cut(spec, operands).forward
        return gpu_forward.forward(
            spec, operands, context, config=config, interpret=how
        )

    def backward(spec: Spec, operands: Operands, *rest: Any) -> Any:
        config = cut(spec, operands).backward
        return gpu_backward.backward(
            spec, operands, *rest, config=config, interpret=how
        )

    return Kernels(forward, backward)
