"""What a training step will need, before it is run: memory, FLOPs, bytes moved, time."""
