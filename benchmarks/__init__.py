"""Times and memory of the suite against the plain way; `python -m benchmarks.run` prints the tables."""
