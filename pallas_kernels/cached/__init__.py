"""HSTU attention of new tokens to the cached keys and values of a sequence."""
