"""The training engine, under the public names of Dassl.pytorch. It knows no CLIP."""

__version__ = "1.0.0"
