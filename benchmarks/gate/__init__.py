"""The gate of a CI: it says whether masks got worse, or artifacts slower or larger, than an accepted state."""
