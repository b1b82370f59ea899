"""A raw log -> typed columns of events, users, items and features."""
