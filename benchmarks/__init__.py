"""Measurements that anyone can repeat: `python -m benchmarks.<name>`. Their figures lie in `results/`."""
