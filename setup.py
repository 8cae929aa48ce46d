"""Packaging of kd_search, with ranges that current Detectron2 environments already satisfy.

Two requirements are left out, so that ``pip install -e .`` in an existing Detectron2 environment
changes nothing else:

* Detectron2. It is not on the package index under its own name; ``tools/install_detectron2.py``
  builds one if none imports, and upstream's instructions give a compiled one.
* OpenCV. Several packages (opencv-python, -headless, -contrib, a system package) provide the same
  ``cv2``, and installing a second one overwrites the first. ``pip install -e .[opencv]`` adds one.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def _version() -> str:
    text = (HERE / "kd_search" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def _long_description() -> str:
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


class BuildWithConfigs(build_py):
    """Copy ``configs/`` and ``projects/*/configs/`` into ``kd_search/model_zoo/`` of the build.

    They keep their places relative to each other, since ``_BASE_`` names other files by these.
    Those of a project with a ``train_net.py`` need its package, which is not in the wheel.
    """

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):  # the files of the checkout are used
            return
        target = Path(self.build_lib) / "kd_search" / "model_zoo"
        folders = ("configs", "projects")
        for folder in folders:  # those of an earlier build
            shutil.rmtree(target / folder, ignore_errors=True)
        projects = (HERE / "projects").glob("*/configs")
        own = [path for path in projects if not path.with_name("train_net.py").exists()]
        sources = [HERE / "configs", *own]
        for path in sorted(path for source in sources for path in source.rglob("*.yaml")):
            copy = target / path.relative_to(HERE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


setup(
    name="kd_search",
    version=_version(),
    description="Knowledge distillation for end-to-end person search on Detectron2",
    long_description=_long_description(),
    long_description_content_type="text/markdown",
    author="The kd_search authors",
    license="Apache-2.0",
    keywords=[
        "person search",
        "person re-identification",
        "knowledge distillation",
        "object detection",
        "detectron2",
        "pytorch",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    # The project has no public address yet: these are Detectron2 and the papers of the methods.
    project_urls={
        "Detectron2": "https://github.com/facebookresearch/detectron2",
        "ID table (BMVC 2019)": "https://arxiv.org/abs/1909.01058",
        "DKD (AAAI 2021)": "https://arxiv.org/abs/2012.11187",
        "Global knowledge (ECCV 2022)": "https://arxiv.org/abs/2210.09022",
        "VKD (ECCV 2020)": "https://arxiv.org/abs/2007.04174",
    },
    packages=find_packages(include=["kd_search", "kd_search.*"]),
    package_data={"kd_search": ["py.typed"], "kd_search.server": ["static/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["kd-search = kd_search.cli:main"]},
    python_requires=">=3.9",
    install_requires=[
        # cloudpickle, omegaconf, pycocotools: Detectron2 imports them.
        "cloudpickle",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7",
        "matplotlib",
        "numpy>=1.21",
        "omegaconf>=2.1",
        "Pillow>=7.1",
        "pycocotools>=2.0.2",
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
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.2"],
        "wandb": ["wandb>=0.16"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings-python>=1.10"],
        # Galleries (docs/gallery.md): videos, and a faster exact search.
        "video": ["av>=12"],
        "search": ["faiss-cpu>=1.8"],
        # Galleries in a database (PostgreSQL 13 or later with pgvector 0.8 or later).
        "postgres": ["psycopg[binary]>=3.1"],
        # kd-search serve (docs/serve.md).
        "serve": ["fastapi>=0.110", "onnxruntime>=1.18", "uvicorn>=0.30"],
        # Backbones of timm (docs/backbones.md).
        "timm": ["timm>=1.0"],
        "dev": [
            "hypothesis",
            "ipykernel",
            "mypy",
            "nbclient",
            "nbformat",
            "pre-commit",
            "pytest>=7",
            "pytest-cov>=7",
            "pytest-xdist>=3",
            "ruff",
            "types-PyYAML",
        ],
    },
)
