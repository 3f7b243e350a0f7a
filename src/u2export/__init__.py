"""Export U²-Net to edge runtimes and measure what each export costs in mask fidelity and gains in latency."""

from u2export.version import __version__

__all__ = ["__version__"]
