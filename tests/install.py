"""Builds the wheel, and uses it in a fresh environment beside other packages that know CLIP.

Those are OpenAI's `clip`, Hugging Face's `datasets`, `transformers` and `peft`.

    python tests/install.py        (make test-install)

It needs the package index. What is large, as torch, is shared with the environment that runs this file.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# In one process, from a folder that holds none of them.
PROGRAM = """
import sys
import clip, datasets                                        # OpenAI's and Hugging Face's
import dassl, prompted_clip, trainers
from pathlib import Path
import torch
from PIL import Image
from prompted_clip import PromptedCLIP, load
from trainers import load as load_trained
from trainers.maple import MaPLe, MultiModalPromptLearner

environment = sys.prefix
for module in (clip, datasets, dassl, prompted_clip, trainers):
    assert module.__file__.startswith(environment), f"{module.__name__} is {module.__file__}"
assert hasattr(datasets, "load_dataset"), "datasets is not Hugging Face's"
assert clip.load is not prompted_clip.load, "clip is not OpenAI's"
sentence = "a photo of a cat."
assert torch.equal(clip.tokenize(sentence).long(), prompted_clip.tokenize(sentence).long())

model, preprocess = load("ViT-Shapes/8", device="cpu")
names = ["red circle", "blue square"]
learner = MultiModalPromptLearner(model.requires_grad_(False), names, 2, "a photo of a")
classifier = PromptedCLIP(model, learner)
image = preprocess(Image.new("RGB", (64, 64), "red"))[None]
loss = torch.nn.functional.cross_entropy(classifier(image), torch.tensor([0]))
loss.backward()
assert all(each.grad is not None for each in (learner.ctx, learner.proj.weight))

depth = {"TRAINER.MAPLE.PROMPT_DEPTH": 4, "DATALOADER.TRAIN_X.BATCH_SIZE": 2}
photos = Path("photos")
for name in names:
    (photos / name).mkdir(parents=True)
    for number in range(6):
        colour = (200 + 9 * number, 0, 0) if name.startswith("red") else (0, 0, 200 + 9 * number)
        Image.new("RGB", (64, 64), colour).save(photos / name / f"{number}.png")
trained = MaPLe.from_clip("ViT-Shapes/8", names, device="cpu", settings=depth).fit(photos, shots=2, epochs=2)
found = trained.predict(photos)
assert len(found) == 12
trained.save_pretrained("saved")
again = load_trained("saved", device="cpu").predict(photos)
assert [each.probabilities for each in again] == [each.probabilities for each in found]
assert trained.predict(photos, classnames=["green star"])[0].name == "green star"
print(f"{MaPLe.__name__}: {[round(each, 3) for each in classifier(image).softmax(dim=-1)[0].tolist()]}")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
        (wheel,) = (folder / "dist").glob("*.whl")
        python = environment(folder / "environment")
        install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*install, wheel, "datasets")
        # OpenAI's clip imports pkg_resources, when it is built and when it is used.
        run(*install, "setuptools<70", "wheel")
        run(*install, "--no-build-isolation", "openai-clip")
        run(python, "-c", PROGRAM, cwd=folder)
        run(python.with_name(f"maple-classify{python.suffix}"), "saved", "photos", "--top", "1", cwd=folder)
        run(*install, "peft", "transformers")
        run(python, ROOT / "tests" / "peft_check.py", cwd=folder)


def environment(folder: Path) -> Path:
    """Makes a virtual environment that also sees the packages of this one, but none of its editable ones."""
    venv.create(folder, with_pip=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(sysconfig.get_path("scripts", "venv", paths)) / Path(sys.executable).name


def run(*command: object, cwd: Path = ROOT) -> None:
    print("$", *(str(word) if "\n" not in str(word) else "PROGRAM" for word in command), flush=True)
    if code := subprocess.run([str(word) for word in command], cwd=cwd, check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
