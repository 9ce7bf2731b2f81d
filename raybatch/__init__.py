"""raybatch: batch inference with every input row in the output exactly once."""

from raybatch.version import __version__

__all__ = ["__version__"]
