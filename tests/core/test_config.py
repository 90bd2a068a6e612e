"""Data roots come from the configuration file or the environment; devices exist or are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.core.config import CONFIG_FILE, choose_device, data_root
from src.core.precision import full_precision, multiplies_bfloat16


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("PYTORCH", "CELEBA"):
        monkeypatch.delenv(f"DATASET_ROOT_{kind}", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "default.env"


PUBLISHED = """[dataset_root]
pytorch = '/cache/data/pytorch' # path to pytorch datasets such as cifar10
celeba = '/cache/data/celeba'   # path to celeba dataset
"""


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        (PUBLISHED, "/cache/data/pytorch"),
        ("pytorch=/plain", "/plain"),
        ('  pytorch = "/with space/and # hash"  # comment', "/with space/and # hash"),
        ("pytorch = /unquoted # comment", "/unquoted"),
        ("# pytorch = /no\n\n  [section] \nexport pytorch='/yes'\n", "/yes"),
        ("pytorch = relative/path", "relative/path"),
        ("\ufeff[dataset_root]\r\npytorch = '/windows'\r\n", "/windows"),
        ("\ufeffpytorch = '/windows'", "/windows"),
        ("pytorch = '/first'\npytorch = '/second'", "/second"),
    ],
)
def test_the_file_names_the_folder(config: Path, caplog: pytest.LogCaptureFixture, text: str, folder: str) -> None:
    config.write_bytes(text.encode())
    assert data_root("pytorch", config) == Path(folder)
    assert caplog.records == []  # nothing to complain of on the way


def test_each_kind_has_its_own_folder(config: Path) -> None:
    config.write_text(PUBLISHED)
    assert data_root("celeba", config) == Path("/cache/data/celeba")


def test_the_file_of_the_repository_is_as_published() -> None:
    assert data_root("pytorch", CONFIG_FILE) == Path("/cache/data/pytorch")
    assert data_root("celeba") == Path("/cache/data/celeba")


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_tilde_is_the_home_folder(config: Path, monkeypatch: pytest.MonkeyPatch, quote: str) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config.write_text(f"pytorch = {quote}~/data{quote}")
    assert data_root("pytorch", config) == Path("/home/someone/data")


def test_the_home_folder_of_nobody_is_an_error_that_names_it(config: Path) -> None:
    config.write_text("pytorch = ~no-such-user-here/data")
    with pytest.raises(ValueError, match=r"no home folder for ~no-such-user-here/data; mend pytorch in .*default\.env"):
        data_root("pytorch", config)


def test_the_environment_wins(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATASET_ROOT_PYTORCH", "~/elsewhere")
    config.write_text(PUBLISHED)
    assert data_root("pytorch", config) == Path("/home/someone/elsewhere")
    assert data_root("celeba", config) == Path("/cache/data/celeba")


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_counts_for_nothing(config: Path, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    monkeypatch.setenv("DATASET_ROOT_CELEBA", empty)
    config.write_text(PUBLISHED)
    assert data_root("celeba", config) == Path("/cache/data/celeba")


@pytest.mark.parametrize("text", [None, "", "[dataset_root]", "pytorch =", "pytorch = '  '", "pytorch", "celeba = /x"])
def test_no_folder_is_an_error_that_says_where_to_put_one(config: Path, text: str | None) -> None:
    if text is not None:
        config.write_text(text)
    with pytest.raises(ValueError) as caught:
        data_root("pytorch", config)
    assert str(caught.value) == (
        f"no folder for the pytorch data sets; set pytorch in {config} or DATASET_ROOT_PYTORCH"
    )


def test_a_file_that_is_no_text_is_an_error_that_names_it(config: Path) -> None:
    config.write_bytes(b"pytorch = '\xff\xfe'")
    with pytest.raises(ValueError, match=r"default\.env is no UTF-8 text"):
        data_root("pytorch", config)


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_fastest_that_is_there(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device() == torch.device(chosen)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "cuda:", "CPU", "meta", "xpu", "cpu:7", "cpu\n"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown device .*; choose auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


@pytest.mark.parametrize(("name", "there"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("cuda:256", 2)])
def test_absent_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, there: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ValueError, match=f"device '{name}' asked for, but {there} GPUs found; try --device cpu"):
        choose_device(name)


def test_present_gpus_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda")


def test_full_precision_ends_where_it_began() -> None:
    convolutions: Any = torch.backends.cudnn
    products: Any = torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        convolutions.allow_tf32, products.allow_tf32 = True, False
        with pytest.raises(KeyError), full_precision():
            assert not convolutions.allow_tf32 and not products.allow_tf32
            raise KeyError
        assert convolutions.allow_tf32 and not products.allow_tf32
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def test_absent_mps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'mps' asked for, but there is none; try --device cpu"):
        choose_device("mps")


@pytest.mark.parametrize(
    ("device", "facts", "expected"),
    [
        ("cpu", {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ("cpu", {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ("cpu", {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ("cpu", {"architecture": "aarch64"}, True),
        ("cpu", {}, True),
        ("cuda", {"architecture": "x86_64"}, True),
    ],
)
def test_which_processors_multiply_bfloat16(
    monkeypatch: pytest.MonkeyPatch, device: str, facts: dict[str, Any], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts, raising=False)
    assert multiplies_bfloat16(torch.device(device)) is expected
