"""The commands that are installed with the package; `scripts/` of the project forwards to them."""
