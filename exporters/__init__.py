"""One module per target runtime; a new target is one module and one line in the table here."""

from u2export.exporters.base import Artifact, Exporter, Runner

EXPORTERS: dict[str, Exporter] = {e.name: e for e in ()}

__all__ = ["EXPORTERS", "Artifact", "Exporter", "Runner"]
