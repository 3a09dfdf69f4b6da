"""`prompted_clip.prompt_learner` under its earlier name."""

from prompted_clip.prompt_learner import (
    IndependentPromptLearner,
    PromptLearner,
    TemplateEnsemble,
    at_least_float32,
    class_sentences,
    initial_context,
    noise,
    tokenize_classes,
)

__all__ = [
    "IndependentPromptLearner",
    "PromptLearner",
    "TemplateEnsemble",
    "at_least_float32",
    "class_sentences",
    "initial_context",
    "noise",
    "tokenize_classes",
]
