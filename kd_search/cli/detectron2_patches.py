"""Patches that make Detectron2 0.5 (July 2021) run as pure Python on current libraries.

``kd-search install-detectron2`` applies this table to the source archive. Each patch must match
exactly ``count`` times, so that another archive or an outdated table stops the set-up instead of
installing a partly patched Detectron2.
"""

from __future__ import annotations

from typing import NamedTuple


class Patch(NamedTuple):
    """Replacement of ``old`` by ``new`` in ``file``, which contains ``old`` ``count`` times."""

    file: str
    old: str
    new: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nothing calls
    why: str


_NUMPY = "NumPy 1.24 removed the aliases of Python's own types (np.bool, np.int, np.float, np.str)"
_COMPILED = "the archive has no C++ sources, so no compiled operators"

PATCHES = (
    Patch("detectron2/data/build.py", "dtype=np.int\n", "dtype=int\n", 1, _NUMPY),
    Patch("detectron2/data/build.py", "dtype=np.int)", "dtype=int)", 1, _NUMPY),
    Patch("detectron2/data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)", 1, _NUMPY),
    Patch(
        "detectron2/evaluation/pascal_voc_evaluation.py",
        ".astype(np.bool)",
        ".astype(bool)",
        2,
        _NUMPY,
    ),
    Patch("detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", 2, _NUMPY),
    Patch(
        "detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.float)", "dtype=float)", 2, _NUMPY
    ),
    Patch(
        "detectron2/evaluation/sem_seg_evaluation.py",
        ".astype(np.float)",
        ".astype(float)",
        3,
        _NUMPY,
    ),
    Patch("detectron2/structures/masks.py", ".astype(np.bool)", ".astype(bool)", 1, _NUMPY),
    Patch("detectron2/structures/masks.py", "dtype=np.bool)", "dtype=bool)", 1, _NUMPY),
    Patch("detectron2/utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)", 1, _NUMPY),
    Patch("detectron2/utils/visualizer.py", ".astype(np.bool)", ".astype(bool)", 3, _NUMPY),
    Patch(
        "detectron2/data/transforms/transform.py",
        "interp=Image.LINEAR,",
        "interp=Image.BILINEAR,",
        1,
        "Pillow 10 removed Image.LINEAR, the older name of Image.BILINEAR",
    ),
    Patch(
        "detectron2/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(sorted(self._fallback_candidates), k=1)",
        1,
        "random.sample refuses a set since Python 3.11; sorted, so that the choice is repeatable",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        1,
        "setuptools 82 removed pkg_resources",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        'os.path.join(os.path.dirname(__file__), "configs", config_path)',
        1,
        "setuptools 82 removed pkg_resources; the configs lie beside this module",
    ),
    Patch(
        "detectron2/modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        1,
        "torch warns on every run where the indexing, here the default one, is not named",
    ),
    Patch(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # no caffe2, or no onnx\n    pass\n",
        1,
        "torch no longer ships caffe2; tracing and scripting do not need it",
    ),
    Patch(
        "detectron2/evaluation/coco_evaluation.py",
        "use_fast_impl=True,",
        "use_fast_impl=False,",
        2,
        _COMPILED + ": COCO evaluation falls back to pycocotools",
    ),
    Patch(
        "detectron2/layers/nms.py",
        "    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)",
        "    from detectron2 import _C\n\n    return _C.nms_rotated(boxes, scores, iou_threshold)",
        1,
        _COMPILED + ": rotated NMS says so instead of failing inside torch.ops",
    ),
)

# Imported by detectron2.layers (deformable convolution, rotated boxes), by the fast COCO evaluation
# and by `python -m detectron2.utils.collect_env`.
COMPILED_MODULE_FILE = "detectron2/_C.py"
COMPILED_MODULE_STAND_IN = '''\
"""Stand-in for the compiled operators of Detectron2, which this pure-Python build lacks."""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise RuntimeError(
            f"detectron2._C.{name} is a compiled operator, and this Detectron2 is a pure-Python "
            "build: deformable convolution, rotated boxes and the fast COCO evaluation need a "
            "Detectron2 compiled from its own repository."
        )

    return missing
'''

# Detectron2's own setup.py installs these folders of the archive as packages.
PROJECT_FOLDERS = {
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

# Imports of the patched tree. Detectron2's own list also pins old versions (iopath < 0.1.10) and
# development tools (black == 21.4b2) that conflict with current libraries.
REQUIREMENTS = (
    "Pillow>=7.1",
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "matplotlib",
    "numpy",
    "omegaconf>=2.1",
    "pycocotools>=2.0.2",
    "pydot",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "torch>=1.10",
    "torchvision",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)
