"""Masks judged on a cluster of Dask workers: the same code and the same report as on one machine."""
