"""torchvision's operators beside a PyTorch that its wheel was not built for.

The wheel of torchvision 0.28.0 is built for CUDA. Beside the CPU build of torch 2.13.0 it
cannot be imported, since it describes operators that were not loaded: to declare them is
enough for all that does not call them. To call them as well, two libraries must answer for
what they import. In a folder of their own:

    pip download torchvision==0.28.0 --no-deps && unzip -q torchvision-0.28.0*.whl
    nm -D --undefined-only torchvision/_C.so | grep c10.*cuda     # the names to define
    gcc -shared -fPIC -Wl,-soname,libc10_cuda.so -o libc10_cuda.so names.c
    gcc -shared -fPIC -Wl,-soname,libtorch_cuda.so -o libtorch_cuda.so empty.c

where names.c defines each as a function that aborts, but `device_count`, which returns 0.
"""

import contextlib
import ctypes
import sys
from pathlib import Path
from typing import Any

DECLARED: list[Any] = []
"""What keeps the declarations alive."""


def declare_operators() -> None:
    """Declares the operators that torchvision describes, if its own did not load."""
    import torch

    with contextlib.suppress(RuntimeError):  # they have loaded
        library = torch.library.Library("torchvision", "DEF")
        DECLARED.append(library)
        for name in ("nms", "qnms"):
            library.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


def load_operators(folder: Path) -> Any:
    """torchvision.ops with its compiled part, of the folder that is described above."""
    import torch  # noqa: F401  (the libraries need its symbols)

    folder = folder.resolve()
    for name in ("libc10_cuda.so", "libtorch_cuda.so"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    from torchvision import ops

    return ops
