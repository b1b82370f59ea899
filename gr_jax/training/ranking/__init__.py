"""Ranking: predict what a user does with an item; losses and metrics by task."""
