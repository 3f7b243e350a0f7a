"""Inputs, commands and processes of the studies `fuzz` and `kills`."""
