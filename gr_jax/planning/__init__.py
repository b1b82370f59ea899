"""Needs of a training step before it is run: memory, FLOPs, bytes moved, time."""
