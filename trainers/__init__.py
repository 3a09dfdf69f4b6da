"""The methods, one file each. A file that is dropped into this folder is imported, and registers itself."""

import importlib
import pkgutil

from .clap import CLAP
from .clip_trainer import CLIPPromptTrainer
from .clipadapter import CLIPAdapter
from .cliplora import CLIPLoRA
from .cocoop import CoCoOp
from .coop import CoOp
from .coprompt import CoPrompt
from .ivlp import IVLP
from .kgcoop import KgCoOp
from .lpplusplus import LPPlusPlus
from .maple import MaPLe
from .mma import MMA
from .mmrl import MMRL
from .mmrlpp import MMRLpp
from .pretrained import load
from .prograd import ProGrad
from .promptsrc import MaPLeSRC, PromptSRC
from .taskres import TaskRes
from .tcp import TCP
from .tipadapter import TipAdapter
from .twostagefs import TwoStageFS
from .vpt import VPT
from .zsclip import ZeroshotCLIP, ZeroshotCLIP2
from .zslinearprobe import ZSLinearProbe

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CLAP",
    "IVLP",
    "MMA",
    "MMRL",
    "TCP",
    "VPT",
    "CLIPAdapter",
    "CLIPLoRA",
    "CLIPPromptTrainer",
    "CoCoOp",
    "CoOp",
    "CoPrompt",
    "KgCoOp",
    "LPPlusPlus",
    "MMRLpp",
    "MaPLe",
    "MaPLeSRC",
    "ProGrad",
    "PromptSRC",
    "TaskRes",
    "TipAdapter",
    "TwoStageFS",
    "ZSLinearProbe",
    "ZeroshotCLIP",
    "ZeroshotCLIP2",
    "load",
]
