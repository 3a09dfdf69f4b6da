"""Import paths of OpenAI's package, and earlier ones of this project: the same objects as `prompted_clip`."""

import pytest

import clip.frozen
import prompted_clip
import trainers.prompt_learner
import trainers.prompted_clip
from prompted_clip import factory, model, prompt_learner, resnet, simple_tokenizer


def test_clip_hands_on_the_same_objects() -> None:
    for name in ("Prompts", "available_models", "build_model", "load", "load_model", "tokenize"):
        assert getattr(clip, name) is getattr(prompted_clip, name), name
    for name in ("_MODELS", "_download", "_transform", "available_models", "build_model", "load", "tokenize"):
        assert getattr(clip.clip, name) is getattr(factory, name), name
    for name in ("CLIP", "ResidualAttentionBlock", "Transformer", "VisionTransformer", "convert_weights"):
        assert getattr(clip.model, name) is getattr(model, name), name
    assert clip.model.build_model is factory.build_model
    assert clip.model.ModifiedResNet is resnet.ModifiedResNet
    assert clip.frozen.twice_differentiable is prompted_clip.allow_double_backward
    assert clip.simple_tokenizer.SimpleTokenizer is simple_tokenizer.SimpleTokenizer


def test_an_earlier_name_says_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="Sentences is SharedPrefixText now"):
        assert clip.Sentences is prompted_clip.SharedPrefixText
    with pytest.raises(AttributeError):
        _ = clip.nothing


def test_learners_stay_importable_from_trainers() -> None:
    for name in ("PromptLearner", "class_sentences", "initial_context", "noise", "tokenize_classes"):
        assert getattr(trainers.prompt_learner, name) is getattr(prompt_learner, name), name
    assert trainers.prompted_clip.PromptedCLIP is prompted_clip.PromptedCLIP
