"""Runs that a protocol asks for, and running them on this machine."""
