"""One of two processes that evaluate together; run by test_evaluator_two_processes.py.

Arguments: rank, file to meet at, folder for the evaluator, file for what evaluate() returned.
"""

import json
import sys

import torch
import torch.distributed as dist

from kd_search.evaluation import PersonSearchEvaluator
from tests.evaluation.search import fake_model


def main(rank, meeting_file, output_dir, returned_file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    records = fake_model.make_dataset()
    name = fake_model.register("kd_search_test_two_processes", records)
    evaluator = PersonSearchEvaluator(dataset_name=name, output_dir=output_dir)
    evaluator.reset()
    # Unequal shares, with an image on both ranks as a sampler that pads would have it.
    own = records[:5] if rank == 0 else records[4:]
    evaluator.process(*fake_model.run_model(own))
    returned = evaluator.evaluate()
    with open(returned_file, "w") as file:
        json.dump(returned, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
