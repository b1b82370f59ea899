"""Sweeps: many trainings of one config, to find its best settings by validation."""
