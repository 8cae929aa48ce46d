"""What ablate.py trains, and views.py looks at again: a teacher and its students for each seed."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vkd_rows import STUDIES, student_opts

from kd_search.experiments import (
    TEACHER,
    Row,
    Run,
    Study,
    TableLayout,
    add_run_options,
    build_run_config,
    check_run_options,
    choose_rows,
    schedule,
)

REPO = Path(__file__).resolve().parent.parent.parent
CONFIGS = "projects/VKD/configs"


@dataclass(frozen=True)
class Networks:
    """Config files of a student and its teacher, relative to the checkout."""

    student: str
    teacher: str


SETS = {
    name: Networks(f"{CONFIGS}/{folder}/student_{net}.yaml", f"{CONFIGS}/{folder}/teacher_{net}.yaml")
    for name, folder, net in (
        ("market", "market1501", "r18w50"),
        ("market_r18", "market1501", "r18"),
        ("generated", "generated", "r18w50"),
    )
}


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    raise NotImplementedError
