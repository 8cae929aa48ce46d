"""Forked processes of Python behave as new ones."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import REPO

from tests import forked

PYTHON = sys.executable
SAY = """
import os, sys
print(sys.argv, os.getcwd(), os.environ.get("HOME", "none"), __name__)
print("an error", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("form", ["-c", "-m", "script"])
def test_arguments_folder_environment_streams_and_status_are_its_own(tmp_path, form):
    (tmp_path / "said.py").write_text(SAY)
    script = str(tmp_path / "said.py")
    words = {"-c": ["-c", SAY], "-m": ["-u", "-m", "said"], "script": ["-W", "ignore", script]}
    done = forked.run([PYTHON, *words[form], "a", 1], cwd=tmp_path, env={"A": "b"})
    name = {"-c": "-c", "-m": script, "script": script}[form]
    assert done.stdout == f"{[name, 'a', '1']} {tmp_path} none __main__\n"
    assert (done.returncode, done.stderr) == (3, "an error\n")


def test_what_is_imported_is_of_this_checkout_and_not_of_pytest():
    code = "import sys, kd_search; print(kd_search.__file__, 'torch' in sys.modules, sys.path)"
    done = forked.run([PYTHON, "-c", code], env={})
    assert done.stdout.startswith(f"{REPO / 'kd_search/__init__.py'} True"), done
    assert str(REPO / "tests") not in done.stdout


def test_folders_of_pythonpath_have_modules_and_a_sitecustomize(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnx'] = None\n")
    (tmp_path / "mine.py").write_text("NAME = 'mine'\n")
    code = "import mine, sys; print(mine.NAME)\ntry: import onnx\nexcept ImportError: print('no')"
    done = forked.run([PYTHON, "-c", code], env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout == "mine\nno\n", done.stderr


def test_an_error_is_a_traceback_and_exit_functions_run():
    code = "import atexit; atexit.register(print, 'the end'); raise ValueError('wrong')"
    done = forked.run([PYTHON, "-c", code])
    assert (done.returncode, done.stdout) == (1, "the end\n") and "ValueError: wrong" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signals_end_it_and_output_can_be_read_before(number):
    code = "import sys, time; print('ready'); print('x', file=sys.stderr); time.sleep(60)"
    process = forked.Forked([PYTHON, "-c", code], stderr=subprocess.STDOUT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if process.stdout.exists() and "x" in process.stdout.read_text():
            os.kill(process.pid, number)
            break
        time.sleep(0.01)
    output, errors = process.communicate(60)
    assert process.returncode == -number and output.startswith("ready\nx\n") and errors == ""
