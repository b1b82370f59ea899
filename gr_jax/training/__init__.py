"""Losses, metrics, the training step, its sharding, and the checkpoints of a run."""
