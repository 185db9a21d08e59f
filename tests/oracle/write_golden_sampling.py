"""Writes tests/ops/golden/roi.npz and deform_conv.npz with torchvision's C++ operators.

    TORCHVISION_OPS=/path/to/folder python -m tests.oracle.write_golden_sampling

The folder holds torchvision with its operators, see
experiments/bench/torchvision_operators.py. Only what they computed is kept: no test needs
the folder.
"""

import os
from pathlib import Path

import numpy as np

from experiments.bench.torchvision_operators import load_operators

GOLDEN = Path(__file__).parents[1] / "ops" / "golden"


def boxes_of_many_kinds(rng, n=14):
    """Inside, across the border, without area, off the image, and back to front."""
    low = rng.uniform(-20, 100, (n, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 90, (n, 2))], axis=1)
    boxes[:4] = [[0, 0, 0, 0], [20, 30, 20, 30], [900, 0, 990, 70], [8, 16, 40, 32]]
    return boxes.astype(np.float32)


def write(name, arrays):
    np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)


def run(f, features, boxes, seed):
    """Output and gradient of the features, channels last."""
    import torch

    x = torch.from_numpy(features).permute(2, 0, 1)[None].contiguous()
    x.requires_grad_()
    index = torch.zeros(len(boxes), 1)
    out = f(x, torch.cat([index, torch.from_numpy(boxes)], dim=1))
    pull = np.random.default_rng(seed).normal(size=tuple(out.shape)).astype(np.float32)
    out.backward(torch.from_numpy(pull))
    last = lambda t: np.moveaxis(t.detach().numpy(), 1, -1)
    return last(out), last(torch.from_numpy(pull)), last(x.grad)[0]


def write_roi(ops):
    rng = np.random.default_rng(0)
    boxes = boxes_of_many_kinds(rng)
    features = rng.normal(size=(9, 12, 12)).astype(np.float32)
    arrays = {"features": features, "boxes": boxes}
    scale, size = 1 / 8, (2, 3)
    adaptive = boxes[4:]  # no NaN, no box larger than the image
    # torchvision's forward pass leaves the last row and column out: one more of each.
    wider = np.pad(features, ((0, 1), (0, 1), (0, 0)))
    cases = {
        "align": (features[..., :2], boxes, lambda x, b: ops.roi_align(x, b, size, scale, 2, True)),
        "unaligned": (features[..., :2], boxes, lambda x, b: ops.roi_align(x, b, size, scale, 3, False)),
        "adaptive": (features[..., :2], adaptive, lambda x, b: ops.roi_align(x, b, size, scale, 0, True)),
        "pool": (features[..., :2], boxes, lambda x, b: ops.roi_pool(x, b, size, scale)),
        "ps_align": (features, boxes, lambda x, b: ops.ps_roi_align(x, b, size, scale, 2)),
        "ps_adaptive": (features, adaptive, lambda x, b: ops.ps_roi_align(x, b, size, scale, 0)),
        "ps_pool": (wider, boxes, lambda x, b: ops.ps_roi_pool(x, b, size, scale)),
    }  # fmt: skip
    for seed, (name, (x, b, f)) in enumerate(cases.items()):
        out, pull, gradient = run(f, x, b, seed)
        arrays |= {f"{name}_out": out, f"{name}_pull": pull, f"{name}_grad": gradient}
    write("roi", arrays | multilevel(ops, rng))


def multilevel(ops, rng):
    """MultiScaleRoIAlign on three levels, of an image of 64 x 96."""
    import torch

    shapes = {"2": (16, 24), "3": (8, 12), "4": (4, 6)}
    pyramid = {
        k: rng.normal(size=(*s, 2)).astype(np.float32) for k, s in shapes.items()
    }
    low = rng.uniform(0, 40, (10, 2))
    side = np.exp(rng.uniform(np.log(4), np.log(60), (10, 2)))
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    module = ops.MultiScaleRoIAlign(
        list(shapes), 2, 2, canonical_scale=32, canonical_level=3
    )
    x = {k: torch.from_numpy(v).permute(2, 0, 1)[None] for k, v in pyramid.items()}
    out = module(x, [torch.from_numpy(boxes)], [(64, 96)])
    arrays = {f"pyramid_{k}": v for k, v in pyramid.items()}
    arrays["pyramid_boxes"] = boxes
    arrays["pyramid_out"] = np.moveaxis(out.numpy(), 1, -1)
    return arrays


def write_deform_conv(ops):
    import torch

    rng = np.random.default_rng(1)
    arrays = {}
    options = [
        # groups, groups of offsets, stride, padding, dilation, mask
        (1, 1, 1, 1, 1, True),
        (2, 1, 2, 0, 1, False),
        (1, 2, 1, 2, 2, True),
        (2, 2, (2, 1), (1, 0), (1, 2), True),
    ]
    for i, (groups, parts, stride, padding, dilation, masked) in enumerate(options):
        pair = lambda v: (v, v) if isinstance(v, int) else v
        s, p, d = map(pair, (stride, padding, dilation))
        size = (3, 2)
        x = rng.normal(size=(2, 4, 6, 7)).astype(np.float32)
        h, w = (
            (n + 2 * p[e] - d[e] * (size[e] - 1) - 1) // s[e] + 1
            for e, n in enumerate((6, 7))
        )
        offsets = rng.normal(size=(2, parts * 12, h, w)).astype(np.float32)
        mask = rng.random((2, parts * 6, h, w)).astype(np.float32)
        kernel = rng.normal(size=(4, 4 // groups, *size)).astype(np.float32)
        bias = rng.normal(size=4).astype(np.float32)
        names = ("inputs", "offsets", "kernel", "bias", "mask")
        values = (x, offsets, kernel, bias, mask)
        tensors = [torch.from_numpy(v).requires_grad_() for v in values]
        a, b, c, e, m = tensors
        out = ops.deform_conv2d(a, b, c, e, s, p, d, m if masked else None)
        pull = rng.normal(size=tuple(out.shape)).astype(np.float32)
        out.backward(torch.from_numpy(pull))
        arrays |= {f"{name}{i}": v for name, v in zip(names, values, strict=True)}
        arrays |= {
            f"d_{name}{i}": t.grad.numpy()
            for name, t in zip(names, tensors, strict=True)
            if t.grad is not None
        }
        arrays |= {f"out{i}": out.detach().numpy(), f"pull{i}": pull}
    write("deform_conv", arrays)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    operators = load_operators(Path(os.environ["TORCHVISION_OPS"]))
    write_roi(operators)
    write_deform_conv(operators)
