"""Trainers in the style of those written for MaPLe's own CLIP: the plugin of tests/test_clip_legacy.py.

They take CLIP apart, give prompts to it in the old ways, freeze by name, and register the whole model.
None of them knows this project's way to put prompts into CLIP.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, tokenized_prompts, deep_prompts=None):
        x = (prompts + self.positional_embedding.type(self.dtype)).permute(1, 0, 2)
        if deep_prompts is None:
            x = self.transformer(x)
        else:
            x = self.transformer([x, deep_prompts, 0])[0]
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(x.shape[0]), tokenized_prompts.argmax(dim=-1)] @ self.text_projection


class PromptLearner(nn.Module):
    """A learned context; CoOp's and IVLP's."""

    def __init__(self, classnames, clip_model, n_ctx, words="a photo of a"):
        super().__init__()
        dtype = clip_model.dtype
        sentences = [f"{words} {name.replace('_', ' ')}." for name in classnames]
        self.tokenized_prompts = torch.cat([clip.tokenize(sentence) for sentence in sentences])
        with torch.no_grad():
            start = clip_model.token_embedding(clip.tokenize(words)).type(dtype)
            embedding = clip_model.token_embedding(self.tokenized_prompts).type(dtype)
        self.ctx = nn.Parameter(start[0, 1 : 1 + n_ctx].clone())
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class MultiModalPromptLearner(PromptLearner):
    def __init__(self, classnames, clip_model, n_ctx, depth):
        super().__init__(classnames, clip_model, n_ctx)
        text_width, image_width = clip_model.ln_final.weight.shape[0], clip_model.visual.proj.shape[0]
        self.proj = nn.Linear(text_width, image_width).to(clip_model.dtype)
        self.compound_prompts_text = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(n_ctx, text_width)) for _ in range(depth - 1)
        )
        one = nn.Linear(text_width, image_width)
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(one) for _ in range(depth - 1))

    def forward(self):
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        deep_image = [layer(tokens) for layer, tokens in pairs]
        return super().forward(), self.proj(self.ctx), self.compound_prompts_text, deep_image


class CustomCLIP(nn.Module):
    """Of whatever prompts are parameters of the encoders: IVLP; with none of those, CoOp."""

    def __init__(self, prompt_learner, clip_model):
        super().__init__()
        if prompt_learner is not None:
            self.prompt_learner = prompt_learner
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def features(self, image):
        text = self.text_encoder(self.prompt_learner(), self.prompt_learner.tokenized_prompts)
        return self.image_encoder(image), text

    def forward(self, image, label=None):
        image_features, text_features = self.features(image.type(self.dtype))
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits if label is None else F.cross_entropy(logits, label)


class CustomMaPLe(CustomCLIP):
    def features(self, image):
        prompts, shared_ctx, deep_text, deep_image = self.prompt_learner()
        text = self.text_encoder(prompts, self.prompt_learner.tokenized_prompts, deep_text)
        return self.image_encoder(image, shared_ctx, deep_image), text


class CustomVPT(CustomCLIP):
    def __init__(self, classnames, clip_model):
        super().__init__(None, clip_model)
        sentences = [f"a photo of a {name.replace('_', ' ')}." for name in classnames]
        with torch.no_grad():
            self.fixed = clip_model.encode_text(torch.cat([clip.tokenize(text) for text in sentences]))

    def features(self, image):
        return self.image_encoder(image), self.fixed.to(image.device)


def freeze(model):
    for name, param in model.named_parameters():
        if "prompt_learner" not in name:
            param.requires_grad_("VPT" in name)


def design_of_maple(n_ctx):
    zeros = dict.fromkeys(["vision_depth", "language_depth", "vision_ctx", "language_ctx"], 0)
    return {"trainer": "MaPLe", **zeros, "maple_length": n_ctx}


@TRAINER_REGISTRY.register()
class OldMaPLe(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.MAPLE.PREC in ["fp16", "fp32"]

    def build_model(self):
        own = self.cfg.TRAINER.MAPLE
        archive = torch.jit.load(self.cfg.MODEL.BACKBONE.PATH, map_location="cpu").eval()
        clip_model = clip.build_model(archive.state_dict(), design_of_maple(own.N_CTX))
        if own.PREC == "fp32":
            clip_model.float()
        classnames = self.dm.dataset.classnames
        learner = MultiModalPromptLearner(classnames, clip_model, own.N_CTX, own.PROMPT_DEPTH)
        self.model = CustomMaPLe(learner, clip_model)
        freeze(self.model)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("MultiModalPromptLearner", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        loss = self.model(image, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)
