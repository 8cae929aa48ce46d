"""``kd-search init``: a project for a data set, with settings chosen from what is in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import torch

from kd_search.pipeline.choices import Choice, choose_common, choose_networks, choose_training
from kd_search.pipeline.distill import mark_checked
from kd_search.pipeline.networks import NETWORKS
from kd_search.pipeline.own_data import (
    DataSets,
    check_data,
    coco_sets,
    mot_sets,
    release_sets,
    statistics_of,
)
from kd_search.pipeline.project import (
    DISTILLED,
    STUDENT,
    TEACHER,
    Project,
    known_options,
    remove_project,
    write_project,
)
from kd_search.utils.folder_lock import FolderInUseError, alone_in

_MAX_PIXELS = 50_000_000
_PATHS = ("train", "test", "images", "test_images", "queries", "prw", "cuhk_sysu", "mot")


def init_project(folder: Path, options: Mapping[str, Any], *, decode: bool = True) -> Project:
    """Check a data set, choose networks, sizes and schedule, and write the project.

    Prints what was found and chosen. A project of the same options is kept as it is.

    Args:
        folder: of the project.
        options: ``train``, ``test``, ``images``, ``test_images``, ``queries``; or ``prw``,
            ``cuhk_sysu``, or ``mot`` with ``mot_options``; and ``teacher``, ``student``,
            ``teacher_weights``, ``student_weights``, ``seed``. Those that were not given are
            ``None`` or absent.
        decode: decode every image for the check.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used, or the folder holds a project of
            other options. Nothing is left of a new project.
    """
    given = {key: value for key, value in options.items() if value not in (None, [])}
    given.update((key, os.path.abspath(given[key])) for key in _PATHS if key in given)
    project = known_project(folder, given)
    if project is not None:
        print(f"{folder} is a project with these options: its files are kept as they are")
        return project
    try:
        with alone_in(folder):
            return _make(folder, given, decode)
    except FolderInUseError:
        raise
    except BaseException:
        remove_project(folder)
        raise


def known_project(folder: Path, options: Mapping[str, Any]) -> Optional[Project]:
    """The project in a folder; ``None`` if there is none.

    Raises:
        ValueError: it has other options, or the folder holds something else.
    """
    known = known_options(folder)
    if known is None:
        return None
    changed = [key for key in {**known, **options} if known.get(key) != options.get(key)]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{folder} is a project with {key} {known.get(key)}, not {options.get(key)}: edit its "
            "configs/, or name another folder"
        )
    return Project.open(folder)


def _make(folder: Path, given: dict[str, Any], decode: bool) -> Project:
    sets = find_sets(folder, given)
    check_data(*sets.load(clip=False), decode=decode, max_pixels=_MAX_PIXELS)
    train, _ = sets.load(clip=True)
    data = statistics_of(train.dicts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {role: given.get(f"{role}_weights") for role in (TEACHER, STUDENT)}
    for role, path in weights.items():
        if path and "://" not in path:
            if not os.path.isfile(path):
                raise FileNotFoundError(f"--{role}-weights {path}: no such file")
            # The configs are used from other working directories, too.
            weights[role] = os.path.abspath(path)
    names, choices = choose_networks(
        data, device, given.get("teacher"), given.get("student"), weights
    )
    common = [*data_choices(sets), *choose_common(data, device)]
    common.append(Choice("seed", str(given["seed"]), "of the networks", {"SEED": given["seed"]}))
    side = next(choice.keys["INPUT.MIN_SIZE_TEST"] for choice in common if choice.what == "input")
    networks = {
        role: (NETWORKS[name].config, [own, *choose_training(NETWORKS[name], data, side)])
        for (role, name), own in zip(names.items(), choices)
    }
    # Without unlabelled people the queue would hold nothing.
    distillation = distillation_keys(queue="student" if data.unlabelled else "off")
    distillation["DISTILLATION.ID_TABLE.QUEUE_SIZE"] = next(
        c.keys["MODEL.OIM.QUEUE_SIZE"] for c in common if c.what == "identities"
    )
    project = write_project(
        folder,
        given,
        title=f"Person search: {folder.absolute().name}",
        intro="A teacher, a small student, and the same student taught by the teacher.",
        common=common,
        networks=networks,
        distillation=distillation,
    )
    for model in (TEACHER, STUDENT, DISTILLED):
        project.config(model, folder / model)  # raises if it does not merge
    if decode:
        mark_checked(project)
    print("\n".join(project.choices))
    print(f"wrote {folder / 'project.yaml'} and {folder / 'configs'}")
    return project


def find_sets(folder: Path, given: Mapping[str, Any]) -> DataSets:
    """The sets that the options of ``init`` name."""
    folder = folder.absolute()
    for release in ("prw", "cuhk_sysu"):
        if release in given:
            return release_sets(folder, release, given[release])
    if "mot" in given:
        return mot_sets(folder, given["mot"], given.get("mot_options", ()))
    if not {"train", "images"} <= given.keys():
        raise ValueError(
            "name the data: --train FILE --images FOLDER, or one of --prw, --cuhk-sysu and --mot"
        )
    more = {key: given.get(key) for key in ("test", "test_images", "queries")}
    return coco_sets(folder, given["train"], given["images"], **more, seed=given["seed"])


def data_choices(sets: DataSets) -> list[Choice]:
    """The data as choices, for ``configs/data.yaml``."""
    keys = {
        sets.key: sets.entries,
        "DATASETS.TRAIN": [sets.names["train"]],
        "DATASETS.TEST": [sets.names["test"]],
    }
    return [Choice("", "", "", keys), *(Choice(*note) for note in sets.notes)]


def distillation_keys(*, queue: str) -> dict[str, Any]:
    """Settings of a student that is taught by an ID table.

    Args:
        queue: of unlabelled people, ``DISTILLATION.ID_TABLE.QUEUE``.
    """
    return {
        "MODEL.META_ARCHITECTURE": "Distiller",
        "MODEL.OIM.ENABLED": False,
        "DISTILLATION.TERMS": ["IDTableTerm"],
        "DISTILLATION.ID_TABLE.QUEUE": queue,
    }
