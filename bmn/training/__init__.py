"""The state of a training, and checkpoints: saving, reading, resuming."""
