"""`prompted_clip.allow_double_backward` under its earlier name."""

from prompted_clip import allow_double_backward as twice_differentiable

__all__ = ["twice_differentiable"]
