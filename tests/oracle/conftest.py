"""Lets torchvision be imported beside a PyTorch that its extension was not built for."""

import importlib.util

from experiments.bench.torchvision_operators import declare_operators

if importlib.util.find_spec("torch"):  # without it, every file here skips itself
    declare_operators()
