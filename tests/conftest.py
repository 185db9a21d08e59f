"""Every test runs on eight CPU devices, with strict rank promotion and a shared cache."""

import os
import tempfile
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest

# Tests compile much and compute little: these halve the time of a first run.
EFFORT = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later ones have no such option
    EFFORT += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{EFFORT} {os.environ.get('XLA_FLAGS', '')}".strip()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
cache = Path(tempfile.gettempdir()) / f"jaxml_test_cache_{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
matplotlib.use("agg")
MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Forgets the compiled programs before their pages pass what Linux grants a process.

    Each program maps several pages, and the default grant is 65,530: past it the compiler
    crashes. Programs that took long to compile come back from the cache on disk.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


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
