#!/usr/bin/env python
"""Train students with both halves of Munjal et al. (BMVC 2019), several seeds each, with a table.

    python projects/PersonSearchKD/ablate.py --rows none table --seeds 1 2 3
    python projects/PersonSearchKD/ablate.py --set r18w50 \\
        --candidates projects/PersonSearchKD/candidates.yaml

On PRW-c6, a MobileNetV2 with a 256-channel pyramid teaches, in each set, a student: MobileNetV2
with a 64-channel pyramid, half-width ResNet-18 without ImageNet weights, or the same network again.

Rows: the student alone; with the teacher's ID table; with its detector (Chen et al., NIPS 2017);
with both; with PKD and DDPS, two later methods (projects/Rivals); with the table and PKD. The
teacher is trained first and its table computed; the sets of PRW-c6 share the folder --output, and
in it the teacher.
"""

import os
import sys
from typing import Optional

from person_search_study import REPO, add_rivals_path, make_study, parse_args

from kd_search.experiments import run_study


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv, __doc__)
    os.chdir(REPO)
    add_rivals_path()
    return run_study(make_study, args)


if __name__ == "__main__":
    sys.exit(main())
