"""HSTU attention as a Triton kernel called through jax-triton."""
