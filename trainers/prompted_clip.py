"""`prompted_clip.PromptedCLIP` under its earlier name."""

from prompted_clip import PromptedCLIP

__all__ = ["PromptedCLIP"]
