"""Raw logs -> a dataset on disk -> sequences and tokens -> packed rows, batch by batch."""
