"""Makes torchvision importable where its compiled part does not load."""

import pytest

torch = pytest.importorskip("torch")

try:
    # Two operators that its compiled part would define; nothing here calls them.
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(
            _name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
except RuntimeError:  # the compiled part has loaded
    pass
