"""Receptive fields: which input pixels one output pixel can see.

Along each axis the unit at index o sees an interval of the input that moves with it,

    [start + jump o,  start + jump o + size - 1].

From the input upwards (bottom-up), a layer with kernel k, stride s, dilation d and padding p
in front makes

    size += (k - 1) d jump,    start -= p jump,    jump *= s,

and from one output pixel down (top-down) an interval of length r needs (r - 1) s +
(k - 1) d + 1 inputs of the layer. The two agree. Branches that meet see the union of their
intervals. A transposed convolution divides the jump, which becomes a fraction: then the
units take turns, and each phase has an interval of its own.

The trap is that this is what *can* be seen. What counts is far smaller: the gradient of a
central unit falls off like a Gaussian whose width grows as the square root of the depth
(`effective_receptive_field`), and padding lets units at the border see less.

Reference: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks", NeurIPS 2016, https://arxiv.org/abs/1701.04128 (section 2); Araujo et al.,
"Computing Receptive Fields of Convolutional Neural Networks", Distill 2019,
https://distill.pub/2019/computing-receptive-fields/.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxml.export import export
from jaxml.ops.field_rules import follow
from jaxml.ops.field_views import View
from jaxml.typing import Array, Float, PRNGKeyArray


@export("ops.Window", since="0.1")
class Window(NamedTuple):
    """A convolution or pooling along one axis.

    Attributes:
        kernel: number of taps.
        stride: inputs from one output to the next.
        dilation: inputs from one tap to the next.
        padding: inputs added in front.
        upsampling: of a transposed convolution, the zeros' distance: its stride.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    upsampling: int = 1


@export("ops.ReceptiveField", since="0.1")
class ReceptiveField(NamedTuple):
    """What the units see along one axis, in inputs.

    Attributes:
        size: of the interval, at most.
        jump: from the interval of one unit to its neighbour's, on average.
        intervals: first and last input of the units from index 0 on, until they repeat;
            negative inputs are padding, and None is a unit that sees nothing.
    """

    size: int
    jump: Fraction
    intervals: tuple[tuple[int, int] | None, ...]

    def interval(self, index: int) -> tuple[int, int] | None:
        """First and last input that the unit at `index` sees, padding included."""
        step = int(self.jump * len(self.intervals))
        return View(0, step, self.intervals).interval(index)


@export("ops.receptive_field", since="0.1")
def receptive_field(layers: Sequence[Window]) -> list[ReceptiveField]:
    """The fields behind each layer of a stack, bottom-up; the last is that of the output.

    Raises:
        ValueError: if there is no layer, or a number in one is out of range.

    >>> layers = [Window(3, padding=1), Window(2, stride=2), Window(3, padding=1)]
    >>> [(field.size, int(field.jump)) for field in receptive_field(layers)]
    [(3, 1), (4, 2), (8, 2)]
    """
    _check(layers)
    view, fields = View(0), []
    for layer in layers:
        view = view.window(*layer)
        fields.append(_field(view))
    return fields


@export("ops.top_down_receptive_field", since="0.1")
def top_down_receptive_field(
    layers: Sequence[Window], index: int = 0
) -> tuple[int, int] | None:
    """First and last input that the output at `index` sees, going down layer by layer.

    Raises:
        ValueError: as `receptive_field`.

    >>> top_down_receptive_field([Window(3), Window(3, stride=2)], 1)
    (2, 6)
    """
    _check(layers)
    seen = {index}
    for kernel, stride, dilation, padding, upsampling in reversed(layers):
        taps = range(0, kernel * dilation, dilation)
        places = {i * stride - padding + tap for i in seen for tap in taps}
        seen = {place // upsampling for place in places if place % upsampling == 0}
    return (min(seen), max(seen)) if seen else None


def _check(layers: Sequence[Window]) -> None:
    if not layers:
        raise ValueError("layers must hold at least one window, got none")
    for i, layer in enumerate(layers):
        *counts, _, upsampling = layer
        if min(*counts, upsampling) < 1:
            raise ValueError(
                f"kernel, stride, dilation and upsampling must be at least 1, got {layer} "
                f"as layer {i}"
            )


def _field(view: View) -> ReceptiveField:
    sizes = [last - first + 1 for first, last in filter(None, view.intervals)]
    return ReceptiveField(max(sizes, default=0), view.jump, view.intervals)


@export("ops.receptive_field_of", since="0.1")
def receptive_field_of(
    module: Any, variables: Any, example: Any, **options: Any
) -> Any:
    """The receptive fields of a linen module's outputs, read off its jaxpr.

    Branches, several outputs, pyramids, nearest upsampling, patch embeddings and pooling are
    followed; an axis that is summed over, or mixed by a dense layer or by attention, is seen
    as a whole.

    Args:
        module: anything with `apply(variables, images, **options)`.
        variables: of the module; shapes are enough.
        example: [batch, *spatial, channels], one, two or three spatial axes; shape is enough.
        options: passed on, such as `train=False`.

    Returns:
        For every output a tuple with a `ReceptiveField` for each spatial axis; a field with
        jump 0 sees the whole axis, the same from everywhere.

    Raises:
        NotImplementedError: names the primitive through which a field cannot be followed.
        ValueError: if an output does not depend on the input.
    """
    shape = jnp.shape(example)
    closed = jax.make_jaxpr(lambda v, x: module.apply(v, x, **options))(
        variables, example
    )
    spatial = range(1, len(shape) - 1)
    views = follow(closed, len(jax.tree.leaves(variables)), spatial, len(shape))
    out = jax.eval_shape(lambda v, x: module.apply(v, x, **options), variables, example)

    def fields(view: Any) -> tuple[ReceptiveField, ...]:
        if view is None:
            raise ValueError("an output does not depend on the input")
        ends = [(0, shape[i] - 1) for i in spatial]
        whole = [ReceptiveField(end[1] + 1, Fraction(0), (end,)) for end in ends]
        for seen in view.axes:
            if seen is not None and seen.axis not in view.whole:
                whole[seen.axis - 1] = _field(seen)
        return tuple(whole)

    return jax.tree.unflatten(jax.tree.structure(out), [fields(view) for view in views])


@export("ops.effective_receptive_field", since="0.1")
def effective_receptive_field(
    function: Callable[[Array], Array],
    inputs: Float[Array, "batch *spatial channels"],
    key: PRNGKeyArray,
) -> Float[Array, "*spatial"]:
    """How much each input pixel counts for the central output: the root of mean squares.

    The gradient of the central unit, all channels weighted at random, over a batch.

    Args:
        function: images to feature maps [batch, *spatial, channels].
        inputs: the images.
        key: of the weights of the channels.

    Returns:
        Not negative, with sum 1.

    Raises:
        ValueError: if the feature maps lack the spatial axes, or nothing counts.
    """
    out, pull = jax.vjp(function, inputs)
    if out.ndim != inputs.ndim:
        raise ValueError(
            f"feature maps must have {inputs.ndim} axes, got shape {out.shape}"
        )
    center = tuple(n // 2 for n in out.shape[1:-1])
    weights = jax.random.normal(key, (out.shape[0], out.shape[-1]), out.dtype)
    index = (slice(None), *center)
    (gradient,) = pull(jnp.zeros_like(out).at[index].set(weights))
    energy = np.asarray(jnp.sqrt(jnp.mean(jnp.square(gradient), axis=(0, -1))))
    if not energy.sum() > 0:
        raise ValueError("no input counts: the gradient of the central unit is zero")
    return jnp.asarray(energy / energy.sum())
