"""The evaluator on two real processes that talk over gloo."""

import json
import os
import sys
from pathlib import Path

from kd_search.evaluation import PersonSearchEvaluator
from tests.evaluation.search import fake_model
from tests.forked import Forked

REPO = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("gather_worker.py")


def test_two_processes_give_the_result_of_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    processes = [
        Forked(
            [
                *(sys.executable, WORKER, rank, tmp_path / "meeting"),
                *(tmp_path / f"out{rank}", tmp_path / f"returned{rank}.json"),
            ],
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()

    records = fake_model.make_dataset()
    name = fake_model.register("kd_search_test_two_processes", records)
    alone = PersonSearchEvaluator(dataset_name=name)
    alone.process(*fake_model.run_model(records))
    first, second = (json.loads((tmp_path / f"returned{rank}.json").read_text()) for rank in (0, 1))
    assert first == json.loads(json.dumps(alone.evaluate()))
    assert second == {}
    assert len(list((tmp_path / "out0").iterdir())) == 2
    assert not (tmp_path / "out1").exists()
