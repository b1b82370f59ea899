"""Embeddings, HSTU blocks and heads, and the models to compare with. Knows nothing of files, meshes or optimizers."""
