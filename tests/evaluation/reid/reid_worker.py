"""One of two processes that evaluate together; run by test_reid_evaluator.py.

Arguments: rank, file to meet at, folder for the evaluator, file for what evaluate() returned.
"""

import json
import sys

import torch
import torch.distributed as dist

from kd_search.evaluation.reid.embeddings import SETTINGS
from kd_search.evaluation.reid.evaluator import ReIDEvaluator
from tests.evaluation.reid import reid_scenes


def main(rank, meeting_file, output_dir, returned_file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2)
    samples = reid_scenes.make_samples()
    name = reid_scenes.register("kd_search_test_reid_two", samples)
    evaluator = ReIDEvaluator(dataset_name=name, output_dir=output_dir, settings=SETTINGS)
    evaluator.reset()
    inputs, outputs = reid_scenes.run_network(samples)
    # Unequal shares, with some on both ranks as a sampler that pads would have it.
    own = slice(0, 25) if rank == 0 else slice(20, None)
    evaluator.process(inputs[own], outputs[own])
    returned = evaluator.evaluate()
    with open(returned_file, "w") as file:
        json.dump(returned, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
