"""The gate of a CI: whether masks got worse or artifacts slower than an accepted state."""
