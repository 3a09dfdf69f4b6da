"""Runs found in folders, and the numbers that they make."""
