"""Fixtures and settings for all tests."""

import gc
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Examples may be slow on a busy machine, which is not a failure of the tested code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Continuous integration must give the same result for the same commit.
settings.register_profile("ci", settings.get_profile("suite"), derandomize=True)
settings.load_profile("suite")

REPO = Path(__file__).resolve().parent.parent

#: Threads of a test. More than one shows whether results depend on the number.
NUM_THREADS = os.environ.get("KD_SEARCH_TEST_THREADS", "1")
# For the processes that tests start: with the default, those of two workers share two cores badly.
os.environ.setdefault("OMP_NUM_THREADS", NUM_THREADS)


def pytest_configure(config):
    """Make a folder for what the processes of this run share; a run in a run has its own."""
    if not hasattr(config, "workerinput"):
        os.environ["KD_SEARCH_TESTS_SHARED"] = tempfile.mkdtemp(prefix="kd_search-tests-")


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["KD_SEARCH_TESTS_SHARED"], ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    """Deselect the long property tests unless ``-m`` names them."""
    if "fuzz" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("fuzz")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish():
    """Keep the collector of cycles from walking over what the imports have made, again and again.

    It takes 8 % of the time of an export to ONNX otherwise, and 2 % with this.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seed():
    torch.set_num_threads(int(NUM_THREADS))
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_handlers_of_this_test_alone():
    """Remove log handlers that a test adds; the stream they write to is closed after the test."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "kd_search", "fvcore")]
    before = [list(each.handlers) for each in loggers]
    yield
    for each, handlers in zip(loggers, before):
        each.handlers[:] = handlers


@pytest.fixture
def real_data():
    """Return ``get(name) -> Path`` to a folder of real test data; skip where it is absent.

    The licences of the data forbid to ship it. It is read from ``$KD_SEARCH_TEST_DATA``, by default
    ``shared/data`` beside the checkout.
    """
    root = Path(os.environ.get("KD_SEARCH_TEST_DATA", REPO.parent / "shared" / "data"))

    def get(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real test data {name!r} is absent: set KD_SEARCH_TEST_DATA to its parent")
        return root / name

    return get
