"""Mutated inputs, and kills: what clumsy or hostile hands make of files that the project reads.

Each case has a number, its seed. The commands are `make mutations` and `make kills`.
"""
