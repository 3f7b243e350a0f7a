"""Figures that u2export did not measure itself: files of other tools, kits for phones, and published figures."""
