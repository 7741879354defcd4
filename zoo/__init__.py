"""A zoo of generative and sequence models: configs compose them, one protocol measures and compares them."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load", "pretrained"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch is imported when it is needed
        from zoo import loading

        return getattr(loading, name)
    raise AttributeError(f"zoo has no {name!r}")
