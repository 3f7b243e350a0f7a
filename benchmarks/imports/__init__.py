"""Figures that were not measured by this toolkit: files of other tools, kits for phones, published numbers."""
