"""Columns of events -> token sequences -> packed rows, batch by batch."""
