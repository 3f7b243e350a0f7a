"""Export U²-Net to edge runtimes and measure what each export costs in mask fidelity and gains in latency."""

__version__ = "0.1.0"
