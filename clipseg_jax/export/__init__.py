"""Models as files that run without this library."""

from typing import Any

__all__ = ["export_model"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command is ready for Ctrl-C before JAX is imported.
    if name == "export_model":
        from clipseg_jax.export import model

        return model.export_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
