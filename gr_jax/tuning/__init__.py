"""Many trainings, judged by validation: sweeps of a config, and the search of a run without one."""

BUDGET = "1x"  # trainings of a search, unless another number is asked for
