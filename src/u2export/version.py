"""The version of u2export, in one place."""

__version__ = "0.1.0"
