"""Checkpoints: saving, reading, resuming."""
