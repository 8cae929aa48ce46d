#!/usr/bin/env python
"""Train a teacher and its students for each seed (VKD, Porrello et al., ECCV 2020), with a table.

    python projects/VKD/ablate.py --seeds 1 2 3 --jobs 2
    python projects/VKD/ablate.py --study views --rows teacher M=1 M=2 M=8
    python projects/VKD/ablate.py --set generated --study sources
    python projects/VKD/ablate.py --set market_cross --study cross

Studies: "terms", which losses teach; "views", how many of the teacher's 8 views the student sees;
"sources", where these views come from; "logits", how logits are compared; "starts", which layers of
the student are initialised from the teacher. The students of a seed start from that seed's teacher,
learn from it, and are compared with it. In "cross" they start from their own stage 1, and learn
from nobody, from that, or from another network. All studies share one --output, so that a teacher
or student that several of them have is trained once. views.py measures how accuracy depends on the
views at test.
"""

import argparse
import sys
from typing import Optional

from vkd_study import make_study, study_parser

from kd_search.experiments import study_command


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    return study_parser(__doc__).parse_args(argv)


main = study_command(parse_args, make_study, __file__)

if __name__ == "__main__":
    sys.exit(main())
