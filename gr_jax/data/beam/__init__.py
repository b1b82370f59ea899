"""The same prepared dataset, made by many machines with Apache Beam (extra `[beam]`)."""
