"""Models: HSTU and its rivals, of arrays alone; no files, meshes or optimizers."""
