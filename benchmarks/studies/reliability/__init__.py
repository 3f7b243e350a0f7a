"""Inputs, commands, faults, pages and processes of the studies `fuzz`, `kills`, `gate_mutants` and `cluster`."""
