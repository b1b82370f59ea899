"""HSTU attention on the Mosaic GPU backend of Pallas: Hopper GPUs."""
