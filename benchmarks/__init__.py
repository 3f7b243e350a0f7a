"""Fidelity and latency of artifacts, and the reports made of them."""
