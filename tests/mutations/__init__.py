"""Mutated inputs: what a hostile or clumsy hand makes of files that the project reads, each from a seed."""
