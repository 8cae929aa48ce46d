"""However a run is stopped, killed and resumed, metrics.json has the same evaluations."""

import os
import signal

import pytest
import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventStorage, get_event_storage

from kd_search.engine.writers import MetricsWriter
from tests.engine.toy import ToyTrainer, in_another_process, read_metrics, toy_cfg, trained

MAX_ITER, EVAL_PERIOD = 25, 5


class Evaluated(ToyTrainer):
    """Its evaluation depends on the weights alone; ``kill`` = (place, iteration) ends the process.

    Places: "write" before the losses are written, "checkpoint" before it is, "evaluation" in the
    middle of it, "results" before they are written, "later" after all of that.
    """

    kill = ("", -1)
    number = signal.SIGKILL
    evaluations = 0

    def at(self, place):
        if self.kill == (place, self.iter):
            os.kill(os.getpid(), self.number)

    def build_hooks(self):
        found = super().build_hooks()
        trainer = self

        class Killer(HookBase):
            def __init__(self, place):
                self.after_step = lambda: trainer.at(place)
                # The final evaluation and its results come after the loop.
                if place in ("results", "later"):
                    self.after_train = lambda: trainer.at(place)

        places = {
            "ProgressHook": "write",
            "PeriodicCheckpointer": "checkpoint",
            "ResultsHook": "results",
        }
        result = []
        for hook in found:
            result += [Killer(places[name])] if (name := type(hook).__name__) in places else []
            result.append(hook)
        return [*result, Killer("later")]

    def test(self, cfg, model, evaluators=None):
        type(self).evaluations += 1
        self.at("evaluation")
        total = float(sum(p.detach().double().sum() for p in model.parameters()))
        return {"person_search": {"mAP": total, "top1": total / 2}}


def cfg_of(folder):
    period = ("TEST.EVAL_PERIOD", EVAL_PERIOD, "SOLVER.CHECKPOINT_PERIOD", EVAL_PERIOD)
    return toy_cfg(folder, "SOLVER.MAX_ITER", MAX_ITER, "DATASETS.TEST", "('some_set',)", *period)


def train(folder, cls=Evaluated):
    return trained(cls, cfg_of(folder))


def read(folder):
    lines = read_metrics(folder)
    losses = [line["iteration"] for line in lines if "total_loss" in line]
    results = [
        (line["iteration"], line["person_search/mAP"], line["person_search/top1"])
        for line in lines
        if "person_search/mAP" in line
    ]
    return losses, results


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    train(folder)
    losses, results = read(folder)
    assert losses == [4, 9, 14, 19, 24]
    assert [iteration for iteration, *_ in results] == [4, 9, 14, 19, 25]
    assert len({value for _, value, _ in results}) == 5
    return losses, results


@pytest.mark.parametrize("iteration", [14, 19, 25])
@pytest.mark.parametrize("place", ["write", "checkpoint", "evaluation", "results", "later"])
def test_a_killed_run_ends_with_the_same_evaluations(tmp_path, straight, place, iteration):
    if iteration == MAX_ITER and place in ("write", "checkpoint"):
        iteration -= 1  # the loop has come to its end when the final evaluation starts

    class Killed(Evaluated):
        kill = (place, iteration)

    status = in_another_process(lambda: train(tmp_path, Killed))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    resumed = train(tmp_path)
    assert resumed.start_iter > 0
    assert read(tmp_path) == straight


def test_it_may_be_killed_again_in_the_evaluation_that_is_made_up(tmp_path, straight):
    class Killed(Evaluated):
        kill = ("evaluation", 14)

    for _ in range(2):
        assert os.WIFSIGNALED(in_another_process(lambda: train(tmp_path, Killed)))
    train(tmp_path)
    assert read(tmp_path) == straight


@pytest.mark.parametrize("place", ["write", "checkpoint", "evaluation", "later"])
def test_a_run_that_is_told_to_stop_ends_with_the_same_evaluations(tmp_path, straight, place):
    class Stopped(Evaluated):
        kill, number = (place, 14), signal.SIGTERM

    with pytest.raises(SystemExit):
        train(tmp_path, Stopped)
    train(tmp_path)
    assert read(tmp_path) == straight


def test_results_that_are_in_the_file_are_not_computed_again(tmp_path, straight, monkeypatch):
    class Killed(Evaluated):
        kill = ("later", 14)

    in_another_process(lambda: train(tmp_path, Killed))
    monkeypatch.setattr(Evaluated, "evaluations", 0)
    resumed = train(tmp_path)
    assert resumed.start_iter == 15 and Evaluated.evaluations == 2
    # Hooks that read results receive those of the evaluation that was not repeated.
    history = resumed.storage.history("person_search/mAP").values()
    assert [(int(i), v) for v, i in history] == [(i, v) for i, v, _ in straight[1] if i >= 14]


def test_a_finished_run_that_is_resumed_evaluates_under_the_same_iteration(tmp_path, straight):
    for _ in range(3):
        train(tmp_path)
    assert read(tmp_path) == straight


class BestCheckpointer(HookBase):
    """As that of Detectron2's main branch, for versions without it; higher is better."""

    def __init__(self, eval_period, checkpointer, val_metric):
        self._period, self._checkpointer, self._metric = eval_period, checkpointer, val_metric
        self.best_metric = self.best_iter = None

    def _check(self):
        value, iteration = self.trainer.storage.latest().get(self._metric, (None, -1))
        if value is not None and (self.best_metric is None or value > self.best_metric):
            self.best_metric, self.best_iter = value, iteration
            self._checkpointer.save("model_best", iteration=iteration)

    def after_step(self):
        finished = self.trainer.iter + 1
        if finished % self._period == 0 and finished != self.trainer.max_iter:
            self._check()

    def after_train(self):
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()


@pytest.mark.parametrize("place", ["evaluation", "results", "later"])
def test_the_best_checkpoint_is_that_of_all_evaluations(tmp_path, place, monkeypatch):
    if not hasattr(hooks, "BestCheckpointer"):
        monkeypatch.setattr(hooks, "BestCheckpointer", BestCheckpointer, raising=False)

    class Peak(Evaluated):
        def test(self, cfg, model, evaluators=None):
            super().test(cfg, model)
            return {"person_search": {"mAP": 50.0 if self.iter == 14 else float(self.iter)}}

    class Killed(Peak):
        kill = (place, 14)

    in_another_process(lambda: train(tmp_path, Killed))
    resumed = train(tmp_path, Peak)
    assert resumed.start_iter == 15
    (best,) = [hook for hook in resumed._hooks if type(hook).__name__ == "BestCheckpointer"]
    assert (best.best_metric, best.best_iter) == (50.0, 14)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 14


def test_what_comes_later_in_an_iteration_is_written_too_and_nothing_twice(tmp_path):
    with EventStorage(7) as storage:
        writer = MetricsWriter(str(tmp_path / "metrics.json"))
        get_event_storage().put_scalar("loss", 1.5)
        writer.write()
        writer.write()
        storage.put_scalar("mAP", 40.0, smoothing_hint=False)
        writer.write()
        storage.iter = 8
        storage.put_scalar("loss", 0.5)
        writer.write()
        writer.close()
    assert read_metrics(tmp_path) == [
        {"iteration": 7, "loss": 1.5},
        {"iteration": 7, "mAP": 40.0},
        {"iteration": 8, "loss": 1.0},
    ]
