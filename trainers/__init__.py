"""The methods, one file each. A file that is dropped into this folder is imported, and registers itself."""

import importlib
import pkgutil

from .clip_trainer import CLIPPromptTrainer
from .cliplora import CLIPLoRA
from .cocoop import CoCoOp
from .coop import CoOp
from .coprompt import CoPrompt
from .ivlp import IVLP
from .kgcoop import KgCoOp
from .maple import MaPLe
from .mma import MMA
from .mmrl import MMRL
from .mmrlpp import MMRLpp
from .pretrained import load
from .prograd import ProGrad
from .promptsrc import MaPLeSRC, PromptSRC
from .tcp import TCP
from .twostagefs import TwoStageFS
from .vpt import VPT
from .zsclip import ZeroshotCLIP, ZeroshotCLIP2

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "IVLP",
    "MMA",
    "MMRL",
    "TCP",
    "VPT",
    "CLIPLoRA",
    "CLIPPromptTrainer",
    "CoCoOp",
    "CoOp",
    "CoPrompt",
    "KgCoOp",
    "MMRLpp",
    "MaPLe",
    "MaPLeSRC",
    "ProGrad",
    "PromptSRC",
    "TwoStageFS",
    "ZeroshotCLIP",
    "ZeroshotCLIP2",
    "load",
]
