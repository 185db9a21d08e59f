"""jaxml: machine-learning algorithms as pure functions in JAX, one file each.

    import jaxml

    method = jaxml.ssl.simclr(...)      # a folder is imported when it is first named
    for entry in jaxml.catalogue():     # every public name, its paper, its summary
        print(entry.name, entry.summary)

`import jaxml` alone imports nothing but the standard library.
"""

from typing import Any

from jaxml.export import catalogue

__all__ = ["__version__", "catalogue"]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        globals()[name] = version = _version()
        return version
    if name in _folders():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(
        f"jaxml has no attribute {name!r}; it has {', '.join(_folders())}"
    )


def __dir__() -> list[str]:
    return sorted({*__all__, *_folders()})


def _folders() -> list[str]:
    """The public modules and packages at the top of the library."""
    import pkgutil

    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def _version() -> str:
    """The version that pyproject.toml states.

    It is read there in a checkout, where installed metadata may be missing or stale,
    and from the metadata anywhere else.
    """
    import importlib.metadata
    import tomllib
    from pathlib import Path

    path = Path(__file__).parents[1] / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == __name__:
            return project["version"]
    return importlib.metadata.version(__name__)
