"""A trained run that answers: from Python, over HTTP, from cached histories, and as exported StableHLO."""
