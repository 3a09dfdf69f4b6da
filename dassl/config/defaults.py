"""Every key of the engine with its default. Names and defaults are those of Dassl.pytorch.

What belongs to one trainer (`TRAINER.<NAME>`) is added by whoever provides that trainer.
"""

from __future__ import annotations

from .node import Config


def default_config() -> Config:
    """A fresh tree of all keys."""
    cfg = Config()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"
    cfg.RESUME = ""  # folder of the run to continue
    cfg.SEED = -1  # negative: not seeded
    cfg.USE_CUDA = True
    cfg.VERBOSE = True
    cfg.INPUT = _input()
    cfg.DATASET = _dataset()
    cfg.DATALOADER = _dataloader()
    cfg.MODEL = _model()
    cfg.OPTIM = _optim()
    cfg.TRAIN = Config(
        {
            "CHECKPOINT_FREQ": 0,  # epochs; 0: only after the last one
            "CHECKPOINTS_KEPT": 0,  # the newest ones; 0: all. Not a key of upstream
            "PRINT_FREQ": 10,  # batches
            "COUNT_ITER": "train_x",  # whose batches make an epoch: train_x, train_u, smaller_one, ...
        }
    )
    cfg.TEST = Config(
        {
            "EVALUATOR": "Classification",
            "PER_CLASS_RESULT": False,
            "COMPUTE_CMAT": False,  # writes the confusion matrix to OUTPUT_DIR/cmat.pt
            "SAVE_PREDICTIONS": False,  # to OUTPUT_DIR/predictions_<split>.csv; not a key of upstream
            "NO_TEST": False,
            "SPLIT": "test",  # or val
            "FINAL_MODEL": "last_step",  # or best_val
        }
    )
    cfg.TRAINER = Config({"NAME": ""})
    return cfg


def _input() -> Config:
    return Config(
        {
            "SIZE": (224, 224),  # height, width in pixels
            "INTERPOLATION": "bilinear",
            "TRANSFORMS": (),  # names of transforms, in order
            "NO_TRANSFORM": False,
            "PIXEL_MEAN": [0.485, 0.456, 0.406],
            "PIXEL_STD": [0.229, 0.224, 0.225],
            "CROP_PADDING": 4,
            "RRCROP_SCALE": (0.08, 1.0),
            "CUTOUT_N": 1,
            "CUTOUT_LEN": 16,
            "GN_MEAN": 0.0,
            "GN_STD": 0.15,
            "RANDAUGMENT_N": 2,
            "RANDAUGMENT_M": 10,
            "COLORJITTER_B": 0.4,
            "COLORJITTER_C": 0.4,
            "COLORJITTER_S": 0.4,
            "COLORJITTER_H": 0.1,
            "RGS_P": 0.2,
            "GB_P": 0.5,
            "GB_K": 21,
        }
    )


def _dataset() -> Config:
    return Config(
        {
            "ROOT": "",
            "NAME": "",
            "SOURCE_DOMAINS": (),
            "TARGET_DOMAINS": (),
            "NUM_LABELED": -1,
            "NUM_SHOTS": -1,  # samples per class; negative: all
            "VAL_PERCENT": 0.1,
            "STL10_FOLD": -1,
            "CIFAR_C_TYPE": "",
            "CIFAR_C_LEVEL": 1,
            "ALL_AS_UNLABELED": False,
        }
    )


def _dataloader() -> Config:
    loader = {"LOADER": "build_data_loader"}  # a name in LOADER_REGISTRY; not a key of upstream
    train = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16, **loader}
    return Config(
        {
            "NUM_WORKERS": 4,
            # Memory for decoded training images, in 2**30 bytes; 0: none. Not a key of upstream. 4 hold 7,600
            # photos of 500 × 375 pixels; 16 shots of ImageNet are twice as many.
            "CACHE_GB": 4.0,
            # Folder for resized and cropped test images, for all runs to come; "": none. 1 GB holds 7,000 of
            # 224 × 224 pixels; all in the folder take no more than TEST_CACHE_GB. Not keys of upstream.
            "TEST_CACHE": "",
            "TEST_CACHE_GB": 40.0,
            "K_TRANSFORMS": 1,  # views of an image per sample
            "RETURN_IMG0": False,
            "TRAIN_X": train,
            "TRAIN_U": {"SAME_AS_X": True, **train},
            "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32, **loader},
        }
    )


def _model() -> Config:
    return Config(
        {
            "INIT_WEIGHTS": "",
            "BACKBONE": {"NAME": "", "PRETRAINED": True},
            "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
        }
    )


def _optim() -> Config:
    return Config(
        {
            "NAME": "adam",
            "LR": 0.0003,
            "WEIGHT_DECAY": 5e-4,
            "MOMENTUM": 0.9,
            "SGD_DAMPNING": 0,
            "SGD_NESTEROV": False,
            "RMSPROP_ALPHA": 0.99,
            "ADAM_BETA1": 0.9,
            "ADAM_BETA2": 0.999,
            "EPS": 1e-8,  # of the Adam family; not a key of upstream
            "STAGED_LR": False,  # NEW_LAYERS learn at LR, all others at LR * BASE_LR_MULT
            "NEW_LAYERS": (),
            "BASE_LR_MULT": 0.1,
            "LR_SCHEDULER": "single_step",
            "STEPSIZE": (-1,),  # epochs; single_step: the last one counts, not positive means MAX_EPOCH
            "GAMMA": 0.1,
            "MAX_EPOCH": 10,
            "WARMUP_EPOCH": -1,  # not positive: no warm-up
            "WARMUP_TYPE": "linear",  # or constant
            "WARMUP_CONS_LR": 1e-5,
            "WARMUP_MIN_LR": 1e-5,
            "WARMUP_RECOUNT": True,  # the schedule starts at 0 after the warm-up
        }
    )
