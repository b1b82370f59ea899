"""Retrieval: predict the next item; losses over the catalogue and leave-one-out metrics."""
