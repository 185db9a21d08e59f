"""Lets torchvision be imported beside a PyTorch that its extension was not built for."""

import contextlib
import importlib.util

if importlib.util.find_spec("torch"):  # without it, every file here skips itself
    import torch

    with contextlib.suppress(RuntimeError):  # the extension has loaded
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
