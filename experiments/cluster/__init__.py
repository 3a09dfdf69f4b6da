"""Sweeps on Slurm, or in processes, by submitit."""
