"""Where the real data are, and which tests may run without them."""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import scipy.linalg  # noqa: F401 its OpenBLAS, too, reads KERNELS when it is loaded
import torch

from src.metrics.own import is_own
from src.metrics.registry import MEASURES, METRICS
from tests.toy import toy as toy

# which kernels OpenBLAS takes: benchmarks leave the choice to it, programs that tests start take those of the tests
KERNELS = {name: os.environ[name] for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="cuda, mps: for tests/devices/test_numbers_on_device.py alone")


def pytest_configure(config: pytest.Config) -> None:
    """Beside a GPU, too, tests and the programs that they start compute where the same bytes come out each time."""
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.backends.mps.is_available = functools.cache(lambda: False)  # as torch wraps its own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {"data": "DATASET_ROOT_PYTORCH", "reference": "REFERENCE_DIR"}
    for item in items:
        for marker, variable in needs.items():
            if item.get_closest_marker(marker) and not os.environ.get(variable):
                item.add_marker(pytest.mark.skip(reason=f"{variable} is not set"))


def pytest_collection_finish() -> None:
    os.environ.update(KERNELS)


@pytest.fixture(autouse=True)
def own_metrics() -> Iterator[None]:
    """What a test has named of its own does not stand in the table of the next one."""
    yield
    for name in filter(is_own, list(METRICS)):
        del METRICS[name], MEASURES[name]


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of reference weights and numbers; use with the marker `reference`."""
    return Path(os.environ["REFERENCE_DIR"])


@pytest.fixture(scope="session")
def numbers(reference: Path) -> dict:
    return json.loads((reference / "numbers.json").read_text())
