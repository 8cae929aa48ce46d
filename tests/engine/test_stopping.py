"""A run that is stopped or killed is resumed to the same final state."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kd_search.engine.signals import StopSignals, interrupts_blocked
from tests.engine.toy import (
    ToyTrainer,
    assert_same,
    in_another_process,
    start_script,
    toy_cfg,
    trained,
    wait_for_lines,
)


def assert_same_end(root: Path, stopped: str, start_iter=None) -> None:
    """Resume the run of a folder, and compare it with a run without interruption."""
    resumed = trained(ToyTrainer, toy_cfg(root / stopped))
    assert start_iter in (None, resumed.start_iter)
    trained(ToyTrainer, toy_cfg(root / "straight"))
    ends = [
        torch.load(root / name / "model_final.pth", weights_only=True)
        for name in ("straight", stopped)
    ]
    assert ends[0]["iteration"] == 7
    for key in ("model", "optimizer", "scheduler", "trainer", "iteration"):
        assert_same(ends[0][key], ends[1][key], key)


def test_killed_process_resumes_from_its_last_checkpoint_to_the_same_end(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "killed"
    # A second a step, so that the process still runs when it is killed, on a busy machine too.
    toy = {"seconds": 1.0, "log": str(log)}
    process = start_script("toy.py", toy, str(folder), "SOLVER.CHECKPOINT_PERIOD", "3")
    wait_for_lines(log, 4, process)
    process.kill()
    process.communicate()
    assert (folder / "last_checkpoint").read_text() == "model_0000002.pth"
    assert_same_end(tmp_path, "killed", start_iter=3)


def test_a_process_that_is_killed_before_the_final_checkpoint_is_resumed_to_it(tmp_path):
    def run():
        trainer = ToyTrainer(toy_cfg(tmp_path / "killed"))
        save = trainer.checkpointer.save

        def save_or_die(name, **extra):
            if name == "model_final":
                os.kill(os.getpid(), signal.SIGKILL)
            save(name, **extra)

        trainer.checkpointer.save = save_or_die
        trainer.train()

    assert os.WIFSIGNALED(in_another_process(run))
    assert (tmp_path / "killed/last_checkpoint").read_text() == "model_0000007.pth"
    assert_same_end(tmp_path, "killed", start_iter=8)
    assert (tmp_path / "killed/last_checkpoint").read_text() == "model_final.pth"


def survives_ctrl_c(process, patience: float) -> bool:
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=patience)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        return True
    finally:
        process.stdout.close()


def test_processes_started_while_interrupts_are_blocked_outlive_ctrl_c():
    # Its own handler: a process started by a background job ignores SIGINT otherwise.
    program = """if True:
        import signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(flush=True)
        time.sleep(60)
    """
    sleeper = [sys.executable, "-c", program]
    with interrupts_blocked():
        worker = subprocess.Popen(sleeper, stdout=subprocess.PIPE)
    other = subprocess.Popen(sleeper, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert survives_ctrl_c(worker, 1.0)
    assert not survives_ctrl_c(other, 30.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_blocked():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_loader_workers_are_started_while_interrupts_are_blocked(tmp_path):
    blocked = []

    class Watching(ToyTrainer):
        @classmethod
        def build_train_loader(cls, cfg, start_iter=0):
            for batch in super().build_train_loader(cfg, start_iter):
                blocked.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
                yield batch

    Watching(toy_cfg(tmp_path)).train()
    assert blocked == [True] + [False] * 7


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
    assert_same_end(tmp_path, "stopped")


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
    assert_same_end(tmp_path, "stopped")


@pytest.mark.parametrize("resumed_at", [0, 7])
@pytest.mark.parametrize(
    "number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signal_in_the_only_iteration_of_a_process(tmp_path, number, error, resumed_at):
    class Stopped(ToyTrainer):
        def run_step(self):
            if self.iter == resumed_at:
                os.kill(os.getpid(), number)
            super().run_step()

    cfg = toy_cfg(tmp_path, "SOLVER.MAX_ITER", resumed_at + 1)
    if resumed_at:
        first = ToyTrainer(cfg)
        first.max_iter = resumed_at
        first.train()
    stopped = Stopped(cfg)
    stopped.resume_or_load(resume=True)
    assert stopped.start_iter == resumed_at
    with pytest.raises(error):
        stopped.train()
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == resumed_at


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


@pytest.mark.parametrize("evaluated", [False, True])
def test_ctrl_c_after_the_last_step_is_not_lost(tmp_path, evaluated):
    class StoppedWhileSaving(ToyTrainer):
        def after_step(self):
            super().after_step()
            if self.iter == self.max_iter - 1:
                os.kill(os.getpid(), signal.SIGINT)

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            pytest.fail("the evaluation started")

    trainer = StoppedWhileSaving(toy_cfg(tmp_path))
    if not evaluated:
        trainer._hooks = [hook for hook in trainer._hooks if not hasattr(hook, "_do_eval")]
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 7


def test_second_ctrl_c_stops_at_once_but_never_inside_a_save():
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.requests() == (True, False)
        with signals.held():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
