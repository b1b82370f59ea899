"""Embedding tables: look up the entries of a batch, update them, exchange them over a mesh."""
