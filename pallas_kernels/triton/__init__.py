"""HSTU attention on the Triton backend of Pallas: NVIDIA GPUs since Ampere."""
