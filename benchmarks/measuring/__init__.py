"""Measuring: artifacts are opened in worker processes, their masks are judged, and their rows are timed in turns."""
