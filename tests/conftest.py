"""Every test runs on eight CPU devices, with strict rank promotion and a shared cache."""

import os
import tempfile
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest

# Tests compile much and compute little: LLVM's first level saves a third of the time.
EFFORT = "--xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{EFFORT} {os.environ.get('XLA_FLAGS', '')}".strip()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
cache = Path(tempfile.gettempdir()) / f"jaxml_test_cache_{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
matplotlib.use("agg")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real datasets; tests that need it skip where it is absent."""
    root = os.environ.get("JAXML_DATA_DIR")
    if not root or not Path(root).is_dir():
        pytest.skip("JAXML_DATA_DIR names no folder of datasets")
    return Path(root)
