"""Installs the engine `dassl` and what the whole project needs.

`clip`, `datasets` and `trainers` are not installed: `clip` and `datasets` are also names of other packages,
which an installed copy would overwrite. They are used from the project's folder: see the README.
"""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="maple-prompt-learning",
    version="0.1.0",
    description="Prompt learning for CLIP: MaPLe and its relatives, on a Dassl-compatible engine",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["dassl", "dassl.*"]),
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=2",
        "open_clip_torch>=2.29",  # the tokenizer's vocabulary, and open_clip's models
        "safetensors",
        "Pillow",
        "yacs",  # configurations
        "PyYAML",
        "scikit-learn",  # macro F1
        "scipy",  # the .mat files of StanfordCars and OxfordFlowers
        "tabulate",
        "tqdm",
        "filelock",  # two runs never write into one folder
        "rich",  # the live view of a sweep
        "Jinja2",  # the report as a page
        "matplotlib",  # figures
    ],
    extras_require={
        "download": [  # what only some sources of datasets need: see docs/fetching_datasets.md
            "gdown",  # Google Drive, where the split files and UCF101's frames are
            "huggingface_hub",  # files on the hub, resumed and with a login where one is needed
            "pyarrow",  # datasets in the hub's own form (parquet); large
        ],
        "tensorboard": ["tensorboard"],
        "cluster": ["submitit"],  # sweeps on Slurm
        "hub": ["pyarrow"],  # for DATASET.NAME hub; the hub's own package is called `datasets`, like ours
        "dev": [
            "pytest>=8",
            "pytest-xdist",  # the tests on all cores
            "pyarrow",
            "gdown",
            "submitit",
            "tensorboard",
            "ruff==0.17.*",
            "mypy==2.4.*",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
