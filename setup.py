"""Packaging of kd_search, with ranges that current Detectron2 environments already satisfy.

Two requirements are left out, so that ``pip install -e .`` in an existing Detectron2 environment
changes nothing else:

* Detectron2. It is not on the package index under its own name; ``tools/install_detectron2.py``
  builds one if none imports, and upstream's instructions give a compiled one.
* OpenCV. Several packages (opencv-python, -headless, -contrib, a system package) provide the same
  ``cv2``, and installing a second one overwrites the first. ``pip install -e .[opencv]`` adds one.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def _version() -> str:
    text = (HERE / "kd_search" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def _long_description() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="kd_search",
    version=_version(),
    description="Knowledge distillation for end-to-end person search on Detectron2",
    long_description=_long_description(),
    long_description_content_type="text/markdown",
    author="The kd_search authors",
    license="Apache-2.0",
    packages=find_packages(include=["kd_search", "kd_search.*"]),
    package_data={"kd_search": ["py.typed"]},
    entry_points={"console_scripts": ["kd-search = kd_search.cli:main"]},
    python_requires=">=3.9",
    install_requires=[
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7",
        "matplotlib",
        "numpy>=1.21",
        "Pillow>=7.1",
        "pydantic>=2",
        "PyYAML>=5.1",
        "scipy>=1.7",
        "tabulate",
        "termcolor>=1.1",
        "torch>=2.6",
        "torchvision>=0.21",
        "tqdm>4.29.0",
        "yacs>=0.1.8",
    ],
    extras_require={
        "opencv": ["opencv-python-headless"],
        "dev": [
            "hypothesis",
            "mypy",
            "pre-commit",
            "pytest>=7",
            "pytest-cov>=7",
            "pytest-xdist>=3",
            "ruff",
            "types-PyYAML",
        ],
    },
)
