"""An environment for processes in which the packages of the export to ONNX are not installed."""

import os
from pathlib import Path


def without_onnx(folder: Path, environment=os.environ) -> dict[str, str]:
    """The environment with a module in a folder that hides onnx. The export takes most of the time
    of a tiny pipeline."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['onnx'] = None\n")
    paths = [str(folder), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
