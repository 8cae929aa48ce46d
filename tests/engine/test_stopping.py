"""A run that is told to stop, or killed, goes on later to the same end."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from kd_search.engine.signals import StopSignals
from tests.engine.toy import ToyTrainer, start_script, toy_cfg, wait_for_lines


def same_end(folder: Path, other: Path) -> bool:
    a, b = (torch.load(f / "model_final.pth", weights_only=True) for f in (folder, other))
    assert a["iteration"] == b["iteration"] == 7
    momenta = [x["optimizer"]["state"][0]["momentum_buffer"] for x in (a, b)]
    return torch.equal(*momenta) and all(
        torch.equal(a["model"][k], b["model"][k]) for k in a["model"]
    )


def test_killed_process_resumes_from_its_last_checkpoint_to_the_same_end(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "killed"
    toy = {"seconds": 0.2, "log": str(log)}
    process = start_script("toy.py", toy, str(folder), "SOLVER.CHECKPOINT_PERIOD", "3")
    ToyTrainer(toy_cfg(tmp_path / "straight")).train()
    wait_for_lines(log, 5, process)
    process.kill()
    process.communicate()
    assert (folder / "last_checkpoint").read_text() == "model_0000002.pth"
    resumed = ToyTrainer(toy_cfg(folder))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert same_end(tmp_path / "straight", folder)


def test_ctrl_c_at_a_terminal_reaches_loader_workers_too_and_does_no_harm(tmp_path):
    """A terminal signals the whole process group; the running step may need more data."""
    log = tmp_path / "log"
    toy = {"seconds": 0.05, "log": str(log), "workers": 1}
    out = tmp_path / "out"
    process = start_script("toy.py", toy, str(out), "SOLVER.MAX_ITER", "100000")
    wait_for_lines(log, 3, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    finished = int(log.read_text().split()[-1])
    assert (out / "last_checkpoint").read_text() == f"model_{finished:07d}.pth"
    assert output.count("Stopping after this iteration") == 1 and "Traceback" not in output


def test_stop_with_dead_loader_workers_saves_what_was_finished(tmp_path):
    class Starved(ToyTrainer):
        def _next_batch(self):
            if self.iter == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                self._data_iterator = iter([])
            return super()._next_batch()

    with pytest.raises(SystemExit) as caught:
        Starved(toy_cfg(tmp_path / "stopped", "SOLVER.CHECKPOINT_PERIOD", 100)).train()
    assert caught.value.code == 143
    assert (tmp_path / "stopped/last_checkpoint").read_text() == "model_0000002.pth"
    ToyTrainer(toy_cfg(tmp_path / "straight")).train()
    resumed = ToyTrainer(toy_cfg(tmp_path / "stopped"))
    resumed.resume_or_load()
    resumed.train()
    assert same_end(tmp_path / "straight", tmp_path / "stopped")


class Interrupted(ToyTrainer):
    """Gets a signal in the middle of the forward pass of iteration 4."""

    number = signal.SIGINT

    def run_step(self):
        if self.iter != 4:
            return super().run_step()
        conv = self.model.conv
        handle = conv.register_forward_hook(lambda *_: os.kill(os.getpid(), self.number))
        super().run_step()
        handle.remove()


@pytest.mark.parametrize(
    "number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signal_finishes_the_step_saves_and_stops(tmp_path, number, error, monkeypatch):
    before = signal.getsignal(number)
    monkeypatch.setattr(Interrupted, "number", number)
    with pytest.raises(error) as caught:
        Interrupted(toy_cfg(tmp_path / "stopped")).train()
    if error is SystemExit:
        assert caught.value.code == 143
    assert (tmp_path / "stopped/last_checkpoint").read_text() == "model_0000004.pth"
    assert signal.getsignal(number) is before
    ToyTrainer(toy_cfg(tmp_path / "straight")).train()
    resumed = ToyTrainer(toy_cfg(tmp_path / "stopped"))
    resumed.resume_or_load()
    resumed.train()
    assert same_end(tmp_path / "straight", tmp_path / "stopped")


class InterruptedEvaluation(ToyTrainer):
    evaluated = []

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.evaluated.append("started")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        cls.evaluated.append("finished")
        return {}


def test_ctrl_c_in_an_evaluation_stops_at_once_with_a_checkpoint(tmp_path):
    trainer = InterruptedEvaluation(toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 3))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.evaluated == ["started"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"


def test_second_ctrl_c_stops_at_once_but_never_inside_a_save():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.requests() == (True, False)
        with signals.held():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
