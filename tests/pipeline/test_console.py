"""What the pipeline prints of its steps, on a terminal and elsewhere."""

import logging

import pytest

from kd_search.pipeline.console import Console, log_to

ERASE = "\r\033[K"


def steps(console):
    console.begin("[1/2] train")
    for step in range(1, 41):
        console.progress(f"{step} of 40", step / 40)
    console.end("8 s")


def test_elsewhere_progress_is_printed_for_every_tenth(capsys):
    steps(Console())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/2] train ..." and lines[-1] == "[1/2] train: 8 s"
    assert lines[1:-1] == [f"[1/2] train: {step} of 40" for step in range(4, 41, 4)]


def test_a_terminal_has_one_line_for_a_step(capsys):
    steps(Console(terminal=True))
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and output.endswith(f"{ERASE}[1/2] train: 8 s\n")
    assert f"{ERASE}[1/2] train: 17 of 40{ERASE}" in output


def test_a_line_that_is_erased_fits_into_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    steps(Console(terminal=True))
    shown = capsys.readouterr().out.split(ERASE)
    assert {len(text) for text in shown[1:-1]} == {19}
    assert shown[-1] == "[1/2] train: 8 s\n"


def test_a_line_between_keeps_the_step_below_it(capsys):
    console = Console(terminal=True)
    console.begin("[1/2] train")
    console.line("a warning")
    console.end("8 s")
    assert capsys.readouterr().out == (
        f"[1/2] train ...{ERASE}a warning\n[1/2] train ...{ERASE}[1/2] train: 8 s\n"
    )


def test_an_error_leaves_the_line_of_the_step(capsys):
    console = Console(terminal=True)
    with pytest.raises(KeyboardInterrupt), console.showing_logs():
        console.begin("[1/2] train")
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "[1/2] train ...\n"


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_are_shown_and_the_rest_goes_to_the_file(tmp_path, capsys, verbose):
    logger = logging.getLogger("kd_search.engine.trainer")
    before = [(x.level, list(x.handlers)) for x in map(logging.getLogger, ("kd_search",))]
    with Console(verbose).showing_logs(), log_to(tmp_path / "run" / "log.txt"):
        logger.info("Model:\nPersonSearchRCNN(")
        logger.warning("a loss is not finite")
        logging.getLogger("detectron2.utils.events").info("eta: 0:01")
    output, log = capsys.readouterr().out, (tmp_path / "run" / "log.txt").read_text()
    assert "a loss is not finite" in output
    assert ("PersonSearchRCNN" in output) == ("eta:" in output) == verbose
    assert all(text in log for text in ("PersonSearchRCNN", "a loss is not finite", "eta:"))
    after = [(x.level, list(x.handlers)) for x in map(logging.getLogger, ("kd_search",))]
    assert after == before
