"""Core ML: the exporter, the package as a file, and its evaluation without a Mac."""
