"""Trained models that answer: in Python, over HTTP, from cached histories, and as an export."""

CACHE_MB = 256.0  # memory for cached histories, MiB; here since an export is served without `load`
