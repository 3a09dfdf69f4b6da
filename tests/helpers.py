"""The recorded cases, and the script that makes the weights they were recorded with."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


def _golden_script() -> Any:
    spec = importlib.util.spec_from_file_location("make_state_dict", GOLDEN / "make_state_dict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden_script = _golden_script()
