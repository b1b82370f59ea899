"""Many trainings, judged by validation: sweeps of a config, and the search of a run without one."""
