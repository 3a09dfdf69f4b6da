"""Every key of the engine with its default. Names and defaults are those of Dassl.pytorch.

The comment beside a key, or above it, is its meaning in docs/configuration.md, which
`python -m scripts.configuration` writes.
What belongs to one trainer (`TRAINER.<NAME>`) is added by whoever provides that trainer.
"""

from __future__ import annotations

from .node import Config


def default_config() -> Config:
    """A fresh tree of all keys."""
    cfg = Config()
    cfg.VERSION = 1  # of the configuration's format; not read
    cfg.OUTPUT_DIR = "./output"  # folder of logs, checkpoints and results; also `--output-dir`
    # Folder of the run to continue; "": OUTPUT_DIR, if it holds a checkpoint. Also `--resume`.
    cfg.RESUME = ""
    # Seed of all random numbers. Negative: not seeded, but the few-shot images are of the number without
    # its sign. Also `--seed`.
    cfg.SEED = -1
    cfg.USE_CUDA = True  # takes a GPU where there is one; False: the CPU
    cfg.VERBOSE = True  # prints the dataset's sizes, and which evaluator, backbone and head are built
    cfg.INPUT = _input()
    cfg.DATASET = _dataset()
    cfg.DATALOADER = _dataloader()
    cfg.MODEL = _model()
    cfg.OPTIM = _optim()
    cfg.TRAIN = Config(
        {
            "CHECKPOINT_FREQ": 0,  # epochs between checkpoints; 0: one after the last epoch
            "CHECKPOINTS_KEPT": 0,  # the newest checkpoints that are kept; 0: all. Not a key of upstream
            "PRINT_FREQ": 10,  # batches between lines of the log, 1 or more
            # Whose batches make an epoch, for trainers that take unlabelled images, too: `train_x`, `train_u`
            # or `smaller_one`.
            "COUNT_ITER": "train_x",
        }
    )
    cfg.TEST = Config(
        {
            "EVALUATOR": "Classification",  # a name in EVALUATOR_REGISTRY
            "PER_CLASS_RESULT": False,  # prints the accuracy of each class, too, and their mean
            "COMPUTE_CMAT": False,  # writes the confusion matrix to OUTPUT_DIR/cmat.pt
            # Writes each image's prediction to OUTPUT_DIR/predictions_<split>.csv. Not a key of upstream.
            "SAVE_PREDICTIONS": False,
            # Stores each image's prediction and the scores of its first five classes with the result, in
            # OUTPUT_DIR/predictions.csv.gz, where batches have paths and scores. Not a key of upstream.
            "RECORD_PREDICTIONS": True,
            # Fits a temperature on the val images, and records what it does to the probabilities of the test
            # images. Not a key of upstream.
            "CALIBRATE": False,
            "NO_TEST": False,  # trains without the test at the end
            "SPLIT": "test",  # the part that is tested: `test`, or `val`, which the dataset has to have
            # What is tested after a training: `last_step`, or `best_val`, the epoch with the best accuracy on
            # val.
            "FINAL_MODEL": "last_step",
        }
    )
    cfg.TRAINER = Config({"NAME": ""})  # the method, a name in TRAINER_REGISTRY; also `--trainer`
    return cfg


def _input() -> Config:
    return Config(
        {
            "SIZE": (224, 224),  # height, width in pixels; that of the backbone
            "INTERPOLATION": "bilinear",  # of a resize: `bilinear`, `bicubic` or `nearest`
            # Names in IMAGE_TRANSFORM_REGISTRY and TENSOR_TRANSFORM_REGISTRY, for training; applied in the
            # order of registration. Tests resize, crop, and take `normalize` and `instance_norm` from here.
            "TRANSFORMS": (),
            "NO_TRANSFORM": False,  # images without any transform; the methods of `trainers/` refuse it
            "PIXEL_MEAN": [0.485, 0.456, 0.406],  # `normalize`: means of the channels
            "PIXEL_STD": [0.229, 0.224, 0.225],  # `normalize`: stds of the channels
            "CROP_PADDING": 4,  # `random_crop`: pixels on each side
            "RRCROP_SCALE": (0.08, 1.0),  # `random_resized_crop`: least and largest share of the image's area
            "CUTOUT_N": 1,  # `cutout`: number of squares
            "CUTOUT_LEN": 16,  # `cutout`: side of a square in pixels
            "GN_MEAN": 0.0,  # `gaussian_noise`: mean
            "GN_STD": 0.15,  # `gaussian_noise`: std
            # `randaugment`, `randaugment_fixmatch`, `randaugment2`: operations on an image.
            "RANDAUGMENT_N": 2,
            "RANDAUGMENT_M": 10,  # `randaugment`: magnitude, 0 to 30
            "COLORJITTER_B": 0.4,  # `colorjitter`: brightness, changed by a factor of up to 1 ± this
            "COLORJITTER_C": 0.4,  # `colorjitter`: contrast, likewise
            "COLORJITTER_S": 0.4,  # `colorjitter`: saturation, likewise
            "COLORJITTER_H": 0.1,  # `colorjitter`: hue, shifted by up to ± this, 0 to 0.5
            "RGS_P": 0.2,  # `randomgrayscale`: probability
            "GB_P": 0.5,  # `gaussian_blur`: probability
            "GB_K": 21,  # `gaussian_blur`: size of the kernel in pixels, odd
        }
    )


def _dataset() -> Config:
    return Config(
        {
            "ROOT": "",  # folder that holds the datasets
            "NAME": "",  # a name in DATASET_REGISTRY
            "SOURCE_DOMAINS": (),  # domains to train on, where there are any; also `--source-domains`
            "TARGET_DOMAINS": (),  # domains to test on, where there are any; also `--target-domains`
            # Labelled images in all. Not read here: for upstream's SSL datasets.
            "NUM_LABELED": -1,
            "NUM_SHOTS": -1,  # training images per class; -1: all
            # Share of validation images. Not read here: for upstream's SSL datasets.
            "VAL_PERCENT": 0.1,
            "STL10_FOLD": -1,  # fold of STL-10, 0 to 9; negative: none. Not read here: for upstream's STL10
            # Kind of corruption. Not read here: for upstream's CIFAR-10-C and CIFAR-100-C.
            "CIFAR_C_TYPE": "",
            # Strength of the corruption, 1 to 5. Not read here: for upstream's CIFAR-10-C and CIFAR-100-C.
            "CIFAR_C_LEVEL": 1,
            # Labelled images are unlabelled ones, too. Not read here: for upstream's SSL datasets.
            "ALL_AS_UNLABELED": False,
        }
    )


def _dataloader() -> Config:
    # A name in LOADER_REGISTRY, which a plugin may add to. Not a key of upstream.
    loader = {"LOADER": "build_data_loader"}
    train = {
        # `RandomSampler`, `SequentialSampler`, `RandomDomainSampler`, `SeqDomainSampler` or
        # `RandomClassSampler`.
        "SAMPLER": "RandomSampler",
        "BATCH_SIZE": 32,  # images in a batch
        "N_DOMAIN": 0,  # `RandomDomainSampler`: domains in a batch; 0: all
        "N_INS": 16,  # `RandomClassSampler`: images per class in a batch
        # Drops the last batch of an epoch where it is smaller, unless it is the only one. Not a key of
        # upstream.
        "DROP_LAST": True,
        **loader,
    }
    return Config(
        {
            # Worker processes of each loader; 0: images are read by the process itself. The random crops of a
            # seed depend on it.
            "NUM_WORKERS": 4,
            # Memory for decoded training images, in GB of 2**30 bytes; 0: none. 4 GB hold 7,600 photos of
            # 500 × 375 pixels; 16 shots of ImageNet are twice as many. Not a key of upstream.
            "CACHE_GB": 4.0,
            # Folder for resized and cropped test images, for all runs to come; "": none. 1 GB holds 7,000 of
            # 224 × 224 pixels. Not a key of upstream.
            "TEST_CACHE": "",
            # The most that the folder TEST_CACHE may take, in GB of 2**30 bytes. Not a key of upstream.
            "TEST_CACHE_GB": 40.0,
            # Fixed augmented views of each training image, which are trained on. What the image encoder
            # computes of them before the first block that learns is computed once: its states there, or the
            # features where it learns nothing. 0: a new augmentation each epoch. Not a key of upstream.
            "VIEWS": 0,
            # The most that states, features or pixels of fixed views may take, in GB of 2**30 bytes; more is
            # refused. 8 GB hold the states of 14,000 views in float32 and 224 × 224 pixels by ViT-B/16. Not a
            # key of upstream.
            "VIEWS_GB": 8.0,
            # Folder for what is computed of fixed views, for all runs to come; "": it is kept in memory
            # alone. Not a key of upstream.
            "FEATURES_DIR": "",
            "K_TRANSFORMS": 1,  # views of a training image per sample; above 1 for methods that take several
            "RETURN_IMG0": False,  # batches also hold `img0`, the image resized but not augmented
            "TRAIN_X": train,
            "TRAIN_U": {
                "SAME_AS_X": True,  # unlabelled images are loaded with the settings of TRAIN_X
                **train,
            },
            "TEST": {
                "SAMPLER": "SequentialSampler",  # order of val and test images
                "BATCH_SIZE": 32,  # images in a batch of val and test
                **loader,
            },
        }
    )


def _model() -> Config:
    return Config(
        {
            # A checkpoint whose tensors learning starts from; "": none. For the methods of `trainers/` it has
            # to fit the run, as one that is tested; upstream's trainers take what fits in name and shape.
            "INIT_WEIGHTS": "",
            "BACKBONE": {
                # For the methods of `trainers/` the CLIP: one of OpenAI's nine, such as `ViT-B/16`,
                # `open_clip:ARCHITECTURE/TAG`, `open_clip:local-dir:FOLDER`, or `ViT-Shapes/8`; see
                # docs/backbones.md. For trainers of upstream a name in BACKBONE_REGISTRY. Also `--backbone`.
                "NAME": "",
                "PRETRAINED": True,  # starts from ImageNet's weights. Read by upstream's `SimpleNet` alone
            },
            "HEAD": {
                # A head between backbone and classifier: `mlp`, or another name in HEAD_REGISTRY; "": none.
                # HEAD is read by upstream's `SimpleNet` alone. Also `--head`.
                "NAME": "",
                "HIDDEN_LAYERS": (),  # width of each layer; empty: no head
                "ACTIVATION": "relu",  # `relu` or `leaky_relu`
                "BN": True,  # batch norm in each layer
                "DROPOUT": 0.0,  # probability of dropout in each layer
            },
        }
    )


def _optim() -> Config:
    return Config(
        {
            "NAME": "adam",  # `adam`, `amsgrad`, `sgd`, `rmsprop`, `radam` or `adamw`
            "LR": 0.0003,  # learning rate
            "WEIGHT_DECAY": 5e-4,  # weight decay
            "MOMENTUM": 0.9,  # momentum of `sgd` and `rmsprop`
            "SGD_DAMPNING": 0,  # `sgd`: dampening of the momentum
            "SGD_NESTEROV": False,  # `sgd`: Nesterov momentum
            "RMSPROP_ALPHA": 0.99,  # `rmsprop`: smoothing constant
            "ADAM_BETA1": 0.9,  # the Adam family: decay of the mean of gradients
            "ADAM_BETA2": 0.999,  # the Adam family: decay of the mean of squared gradients
            "EPS": 1e-8,  # the Adam family: added to the denominator. Not a key of upstream
            "STAGED_LR": False,  # NEW_LAYERS learn at LR, all others at LR * BASE_LR_MULT
            "NEW_LAYERS": (),  # names of the model's children, for STAGED_LR
            "BASE_LR_MULT": 0.1,  # factor of the learning rate of all other layers, for STAGED_LR
            "LR_SCHEDULER": "single_step",  # `single_step`, `multi_step` or `cosine`
            # Takes a step of the schedule after each `epoch` or each `iteration`; `iteration` goes with
            # `cosine` and without warm-up. Not a key of upstream.
            "SCHEDULE_BY": "epoch",
            "LR_MIN": 0.0,  # `cosine`: learning rate at the end. Not a key of upstream
            # `multi_step`: epochs after which the rate is multiplied by GAMMA. `single_step`: the last number
            # is the epochs from one such step to the next; not positive: MAX_EPOCH.
            "STEPSIZE": (-1,),
            "GAMMA": 0.1,  # `single_step`, `multi_step`: factor of the learning rate
            "MAX_EPOCH": 10,  # number of epochs
            # Number of training steps, in place of MAX_EPOCH; the last epoch is cut. 0: MAX_EPOCH epochs. Not
            # a key of upstream.
            "MAX_ITER": 0,
            # Training steps for each of DATASET.NUM_SHOTS, in place of MAX_ITER. 0: MAX_ITER. Not a key of
            # upstream.
            "ITER_PER_SHOT": 0,
            "WARMUP_EPOCH": -1,  # epochs of warm-up; not positive: none
            "WARMUP_TYPE": "linear",  # `linear` or `constant`
            "WARMUP_CONS_LR": 1e-5,  # `constant`: learning rate of the warm-up
            "WARMUP_MIN_LR": 1e-5,  # `linear`: learning rate of its first epoch
            "WARMUP_RECOUNT": True,  # the schedule starts at 0 after the warm-up
        }
    )
