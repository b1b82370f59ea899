"""Benchmarks of HSTU attention: `python -m pallas_kernels.bench`."""
