"""The training engine, under the public names of Dassl.pytorch. It knows no CLIP."""

__version__ = "0.1.0"
