"""What scripts/benchmark.py measures: a module per section, each with rows()."""
