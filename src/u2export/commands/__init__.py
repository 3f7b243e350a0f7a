"""The sub-commands, one module for each group; `u2export.cli` joins them."""
