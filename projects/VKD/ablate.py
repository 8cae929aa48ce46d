#!/usr/bin/env python
"""Train a teacher and its students for each seed (VKD, Porrello et al., ECCV 2020), with a table.

    python projects/VKD/ablate.py --seeds 1 2 3 --jobs 2
    python projects/VKD/ablate.py --study views --rows teacher M=1 M=2 M=8
    python projects/VKD/ablate.py --set generated --study sources

Studies: "terms", which losses teach; "views", how many of the teacher's 8 views the student sees;
"sources", where these views come from; "logits", how logits are compared; "starts", which layers of
the teacher the student starts with. The students of a seed start as that seed's teacher and learn
from it, and are compared with it. All studies share one --output, so that a teacher or student that
several of them have is trained once. How accuracy depends on the views at test:
views.py.

Every run has a folder of its own under --output, with its log. Ctrl-C stops all runs with a
checkpoint; the same command goes on from there, and trains nothing twice. More rows and seeds can
be asked for later. After each run STUDY.md, STUDY.json and STUDY.png are written anew.
"""

import argparse
import os
import sys
from typing import Optional

from vkd_study import REPO, add_study_options, complete, make_study

from kd_search.experiments import carry_out, study_parser


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = study_parser(__doc__)
    add_study_options(parser)
    args = parser.parse_args(argv)
    complete(parser, args)
    return args


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    return carry_out(lambda: make_study(args), jobs=args.jobs, on_train=args.on_train)


if __name__ == "__main__":
    sys.exit(main())
