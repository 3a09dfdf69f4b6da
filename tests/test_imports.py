"""What importing a package brings along."""

import subprocess
import sys

import pytest

SLOW = ("open_clip", "sklearn", "timm", "torch._dynamo", "torchvision")


@pytest.mark.parametrize("package", ["prompted_clip", "trainers", "dassl.engine"])
def test_importing_it_loads_nothing_that_takes_seconds(package: str) -> None:
    code = f"import sys, {package}; print([name for name in {SLOW} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
