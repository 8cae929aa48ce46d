"""Command line and config of a run, with one-line errors of bad input."""

import contextlib
import logging
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from kd_search.config import get_cfg, import_modules
from kd_search.config.files import merge_config_file, merge_overrides
from kd_search.config.ranges import check_ranges
from kd_search.config.shipped import find_config_file
from kd_search.data import get_id_map, register_person_search_coco
from kd_search.data.builtin import release_files
from kd_search.data.person_search.mot import (
    MOTFiles,
    parse_motchallenge_entry,
    register_motchallenge,
)
from kd_search.data.person_search.register import SplitFiles, locate_split, register_split
from kd_search.data.reid import (
    get_reid_id_map,
    register_named_crops,
    register_named_parts,
)
from kd_search.engine.finished_run import CONFIG_FILE, resolve_paths, write_run_record
from kd_search.engine.parallel import hold_together
from kd_search.engine.task import (
    check_num_classes,
    check_task,
    has_id_branch,
    is_reid_network,
    train_task,
)
from kd_search.utils.arguments import add_import_argument

logger = logging.getLogger(__name__)

#: Fields of splits that are paths.
_FILES = ("json_file", "image_root", "query_info", "root")


def setup(args: Namespace) -> CfgNode:
    """Return the frozen config of a run, after Detectron2's set-up (logs, ``config.yaml``).

    Reserves the folders of the run for this process until it ends, see :func:`run_folders`. A
    training also leaves ``run.json``, see :mod:`kd_search.engine.finished_run`; the evaluation of
    one has its ``log.txt`` and ``config.yaml`` in ``OUTPUT_DIR/inference``.

    Args:
        args: of :func:`argument_parser`, or of Detectron2's ``default_argument_parser``. Optional:
            ``imports``, and ``paths_from`` of :func:`build_config`.

    Raises:
        FileNotFoundError, ValueError: see :func:`build_config`.
        FolderInUseError, OSError: a folder of the run is in use, or not writable.
    """
    imports = getattr(args, "imports", ())
    import_modules(imports)
    cfg = build_config(
        args.config_file,
        args.opts or (),
        eval_only=args.eval_only,
        paths_from=getattr(args, "paths_from", None),
    )
    if args.eval_only and not (cfg.MODEL.WEIGHTS or args.resume):
        raise ValueError("--eval-only has nothing to evaluate: set MODEL.WEIGHTS, or add --resume")
    messages = hold_together(run_folders(cfg, eval_only=args.eval_only))
    logged = cfg
    if args.eval_only and comm.all_gather(_is_output_of_training(cfg))[0]:
        # Detectron2's set-up writes config.yaml beside the log: that of a training stays.
        logged = cfg.clone()
        logged.defrost()
        logged.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "inference")
    # Before Detectron2's set-up, so that its messages are in the log file as well.
    setup_logger(logged.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="kd_search")
    default_setup(logged, _with_path(args))
    if not args.eval_only and comm.is_main_process():
        write_run_record(cfg.OUTPUT_DIR, imports)
    for message in messages:
        logger.warning(message)
    return cfg


def _is_output_of_training(cfg: CfgNode) -> bool:
    return os.path.isfile(os.path.join(cfg.OUTPUT_DIR, CONFIG_FILE))


def _with_path(args: Namespace) -> Namespace:
    # Detectron2 opens the file again, for the log.
    path = find_config_file(args.config_file) if args.config_file else ""
    return Namespace(**{**vars(args), "config_file": path})


def argument_parser(epilog: Optional[str] = None) -> ArgumentParser:
    """Detectron2's ``default_argument_parser`` with ``--import MODULE``."""
    parser = default_argument_parser(epilog)
    add_import_argument(parser)
    return parser


def run_folders(cfg: CfgNode, *, eval_only: bool) -> list[str]:
    """Folders that only one run at a time may write to: ``OUTPUT_DIR`` if it trains, and the
    folders of the results of ``DATASETS.TEST``."""
    results = [os.path.join(cfg.OUTPUT_DIR, "inference", name) for name in cfg.DATASETS.TEST]
    return results if eval_only else [cfg.OUTPUT_DIR, *results]


def build_config(
    config_file: str = "",
    opts: Sequence[str] = (),
    *,
    eval_only: bool = False,
    paths_from: Optional[str] = None,
) -> CfgNode:
    """Merge defaults, a config file and overrides, and resolve values of data and machine.

    - Registers ``DATASETS.PERSON_SEARCH_COCO``, ``PERSON_SEARCH_MOT`` and
      ``PERSON_SEARCH_RELEASES``, and the crops of person search sets ("<set>_crops") and the
      parts of re-ID sets ("<set>_fit", "<set>_val") in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
    - Replaces 0 in ``MODEL.OIM.NUM_IDS``, or ``MODEL.REID_NETWORK.NUM_IDS`` of a re-ID network, by
      the number of identities of ``DATASETS.TRAIN``.
    - Compares the number of classes with that of plain detection sets.
    - Sets ``MODEL.DEVICE`` to "cpu" if no GPU is available.
    - For the evaluation of a distilled student, sets its architecture, without a teacher.

    Args:
        config_file: YAML, may be empty; or the name of a shipped config, see
            :mod:`kd_search.model_zoo`.
        opts: alternating keys and values.
        eval_only: without training.
        paths_from: folder that relative paths in the config file count from where they exist
            there; by default, and for the overrides, the working directory.

    Returns:
        the frozen config.

    Raises:
        FileNotFoundError: the config file, or a required training set, does not exist.
        ValueError: a key is unknown, a value has the wrong type or is out of range, or a set is
            invalid.
    """
    cfg = get_cfg()
    if config_file:
        merge_config_file(cfg, config_file)
        if paths_from is not None:
            resolve_paths(cfg, paths_from)
    merge_overrides(cfg, opts)
    check_ranges(cfg, num_ranks=comm.get_world_size(), eval_only=eval_only)
    register_own_data(cfg)
    named = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    register_named_crops(named)
    register_named_parts(named)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU is available: MODEL.DEVICE is cpu")
        cfg.MODEL.DEVICE = "cpu"
    if eval_only and cfg.MODEL.META_ARCHITECTURE == "Distiller":
        cfg.MODEL.META_ARCHITECTURE = cfg.DISTILLATION.STUDENT_META_ARCH
    _check_tasks(cfg, eval_only)
    if cfg.MODEL.OIM.NUM_IDS == 0 and has_id_branch(cfg):
        cfg.MODEL.OIM.NUM_IDS = _count_identities(cfg, "MODEL.OIM.NUM_IDS", eval_only)
    if cfg.MODEL.REID_NETWORK.NUM_IDS == 0 and is_reid_network(cfg):
        number = _count_identities(cfg, "MODEL.REID_NETWORK.NUM_IDS", eval_only)
        cfg.MODEL.REID_NETWORK.NUM_IDS = number
    _check_classes(cfg, eval_only)
    cfg.freeze()
    return cfg


def register_own_data(cfg: CfgNode) -> None:
    """Register the sets of ``DATASETS.PERSON_SEARCH_COCO`` and ``PERSON_SEARCH_MOT``.

    Raises:
        ValueError: an entry is invalid, or its name is that of other files.
    """
    for entry in cfg.DATASETS.PERSON_SEARCH_COCO:
        if not 3 <= len(entry) <= 4 or not all(isinstance(part, str) for part in entry):
            raise ValueError(
                f"DATASETS.PERSON_SEARCH_COCO: {entry} must be [name, annotations.json, image "
                "folder] and, for a test set, the query file"
            )
        name, *files = entry
        if name not in DatasetCatalog.list():
            register_person_search_coco(name, *files)
        elif not _same_files(locate_split(name), SplitFiles(*files)):
            raise ValueError(f"DATASETS.PERSON_SEARCH_COCO: the name {name} is taken")
    for entry in cfg.DATASETS.PERSON_SEARCH_MOT:
        try:
            name, root, options = parse_motchallenge_entry(entry)
        except ValueError as error:
            raise ValueError(f"DATASETS.PERSON_SEARCH_MOT: {entry}: {error}") from None
        if name not in DatasetCatalog.list():
            register_motchallenge(name, root, **options)
        elif not _same_files(locate_split(name), MOTFiles(root, **options)):
            raise ValueError(f"DATASETS.PERSON_SEARCH_MOT: the name {name} is taken")
    for entry in cfg.DATASETS.PERSON_SEARCH_RELEASES:
        if len(entry) != 4 or not all(isinstance(part, str) for part in entry):
            raise ValueError(
                f"DATASETS.PERSON_SEARCH_RELEASES: {entry} must be [name, prw or cuhk_sysu, "
                "folder, train or test]"
            )
        locate = partial(release_files, *entry)
        if entry[0] not in DatasetCatalog.list():
            register_split(entry[0], locate)
        elif not _same_files(locate_split(entry[0]), locate()):
            raise ValueError(f"DATASETS.PERSON_SEARCH_RELEASES: the name {entry[0]} is taken")


def _same_files(one: Any, other: Any) -> bool:
    """Whether two splits have the same files, by relative or absolute paths."""
    if type(one) is not type(other):
        return False
    fields = (asdict(files) for files in (one, other))
    a, b = (
        {k: os.path.realpath(v) if k in _FILES and v else v for k, v in f.items()} for f in fields
    )
    return a == b


def _check_tasks(cfg: CfgNode, eval_only: bool) -> None:
    if not eval_only:
        # Scripts may register theirs later.
        train_task([name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog.list()])
        check_task(cfg, cfg.DATASETS.TRAIN)
    check_task(cfg, cfg.DATASETS.TEST)


def _check_classes(cfg: CfgNode, eval_only: bool) -> None:
    if not eval_only:
        check_num_classes(cfg, cfg.DATASETS.TRAIN)
    # A missing test set raises an error when it is used.
    with contextlib.suppress(FileNotFoundError):
        check_num_classes(cfg, cfg.DATASETS.TEST)


def _count_identities(cfg: CfgNode, key: str, eval_only: bool) -> int:
    get_map = get_reid_id_map if is_reid_network(cfg) else get_id_map
    try:
        count = len(get_map(cfg.DATASETS.TRAIN))
    except (FileNotFoundError, ValueError) as error:
        if not eval_only:
            raise
        # Inference uses no identities; Detectron2 skips weights of another shape.
        logger.warning("%s is 1: evaluation requires no identities (%s)", key, error)
        return 1
    if count == 0:
        raise ValueError(
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has no person with an identity, which "
            f"{key} requires"
        )
    logger.info("%s is %d, from %s", key, count, tuple(cfg.DATASETS.TRAIN))
    return count
