"""merino-edge: find, train, export and measure a small language model for one particular board.

The functions of `merino_edge.api` are here by their names; they are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "MerinoEdgeError",
    "bench_models",
    "deploy_model",
    "export_model",
    "generate_text",
    "profile_device",
    "search_architecture",
    "train_model",
]

if TYPE_CHECKING:
    from merino_edge.api import (
        MerinoEdgeError,
        bench_models,
        deploy_model,
        export_model,
        generate_text,
        profile_device,
        search_architecture,
        train_model,
    )
else:

    def __getattr__(name: str) -> object:
        """Import what is asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from merino_edge import api

        return getattr(api, name)
