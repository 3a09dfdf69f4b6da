"""Sweeps on Slurm, by submitit."""
