"""Fixtures that every room's tests share."""

import logging
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# A busy machine draws examples slowly: that is no failure of what is tested.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# One commit has one result: continuous integration tries the same examples each time.
settings.register_profile("ci", settings.get_profile("suite"), derandomize=True)
settings.load_profile("suite")

REPO = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config, items):
    """Leave out the long property tests, unless ``-m`` speaks of them."""
    if "fuzz" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("fuzz")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _one_thread_and_fixed_seed():
    """Two cores run the suite: one thread a test keeps results and timings steady.

    ``$KD_SEARCH_TEST_THREADS`` asks for more, to see whether results depend on it.
    """
    torch.set_num_threads(int(os.environ.get("KD_SEARCH_TEST_THREADS", "1")))
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _log_handlers_of_this_test_alone():
    """Remove the handlers that a test has installed: the stream they write to ends with it."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "kd_search")]
    before = [list(each.handlers) for each in loggers]
    yield
    for each, handlers in zip(loggers, before):
        each.handlers[:] = handlers


@pytest.fixture
def real_data():
    """Return ``get(name) -> Path`` to a folder of real test data; skip where it is absent.

    The data cannot be shipped (academic terms). Its place is ``$KD_SEARCH_TEST_DATA`` or
    ``shared/data`` beside the checkout.
    """
    root = Path(os.environ.get("KD_SEARCH_TEST_DATA", REPO.parent / "shared" / "data"))

    def get(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real test data {name!r} is absent: set KD_SEARCH_TEST_DATA to its parent")
        return root / name

    return get
