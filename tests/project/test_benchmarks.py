"""Both sides of a benchmark give the same numbers, so that their times can be compared."""

import inspect
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import big_file, cases, compare, decode, dense, gpu, implementations, moments, run
from src.metrics.algebra import products
from src.models import build_model
from tests.paths import ROOT

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without real images, so that the test runs anywhere."""
    monkeypatch.delenv("DATASET_ROOT_PYTORCH", raising=False)
    monkeypatch.setattr(cases, "TRAIN", 512)
    cases.data.cache_clear()
    yield
    cases.data.cache_clear()


def test_least_squares() -> None:
    case = cases.init_least_squares("tiny10", "bn3", 256)
    np.testing.assert_allclose(case.suite(), case.plain()[:-1].T, rtol=0, atol=1e-4)


def test_similarities() -> None:
    case = cases.compare_nets("tiny10", "bn7", 256)
    cka, l2 = case.plain()
    assert case.suite() == {"cka": pytest.approx(cka, abs=1e-4), "l2": pytest.approx(l2, rel=1e-5)}


def test_accuracy() -> None:
    case = cases.eval_net("tiny10", 256)
    assert case.suite() == case.plain()


def test_a_whole_run_ends_on_both_sides() -> None:
    case = cases.whole_run("tiny10", "bn7", 256, 128)
    before = set(cases.DATASETS)
    case.suite()
    case.plain()
    assert set(cases.DATASETS) == before


def test_a_row_has_times_their_ratio_and_the_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.CASES, "small", lambda: cases.stitch_epoch("tiny10", "bn7", 256))
    title, suite, plain, ratio, share = run.row("small", 1, False, 1e12).rsplit(None, 4)
    assert title == "stitch epoch, tiny10 bn7"
    assert float(suite) >= 0 and float(plain) >= 0 and float(ratio.rstrip("x")) > 0 and share.endswith("%")


def test_moments_are_timed_beside_their_heads() -> None:
    layer, alone, both, extra, least = moments.row("bn7", 128, 1).split()
    assert layer == "bn7" and float(alone) >= 0 and float(both) >= 0 and extra.endswith("%")
    assert 0 < float(least.rstrip("%")) < 100


def test_arithmetic_counts_products_in_place() -> None:
    a, b, total = torch.ones(3, 4), torch.ones(4, 5), torch.zeros(3, 5)
    assert run.arithmetic(lambda: total.addmm_(a, b)) == 2 * 3 * 4 * 5


def test_arithmetic_counts_products_of_numpy_and_the_half_of_symmetric_ones() -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    symmetric = 1 if products._by_numpy(a) else 2
    assert run.arithmetic(lambda: (products.times(a, b), products.times(a, a))) == 2 * 3 * 5 * 4 + symmetric * 3 * 3 * 4


def test_benchmarks_leave_the_choice_of_kernels_to_the_library() -> None:
    code = "import benchmarks, os; assert not {'OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE'} & os.environ.keys()"
    environment = os.environ | {"OPENBLAS_CORETYPE": "Haswell", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_the_peak_is_that_of_the_best_library() -> None:
    rates = run.matrix_peaks(128, 1)
    assert list(rates) == ["torch", "oneDNN", "numpy"] and min(rates.values()) > 0


def test_features_of_layers_are_those_of_the_network() -> None:
    network, image = build_model("tiny10", channels=3, classes=10, size=32).eval(), torch.zeros(1, 3, 32, 32)
    sizes = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda *args, name=name: sizes.update({name: args[2].numel()}))
    network(image)
    assert compare.FEATURES.items() <= sizes.items()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only /proc tells a process from its parent")
def test_the_peak_of_a_process_is_its_own() -> None:
    held = bytearray(400_000_000)
    held[::4096] = b"x" * len(held[::4096])  # touched, so that it is resident
    assert run.peak_bytes() > 400e6
    code = "import resource\nfrom pathlib import Path\n" + inspect.getsource(run.peak_bytes) + "\nprint(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100e6


def test_decoders_are_timed_and_compared(tmp_path: Path) -> None:
    root = decode.make_folder(tmp_path / "images", 20, 4)
    files = sorted((root / "train").rglob("*.jpg"))
    assert len(files) == 20 and len({file.stat().st_ino for file in files}) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's about its own decoder
        head, pil, torchvision, draft = decode.decoder_rows(files[:2], (56,))
    assert head.split() == ["decoder", "to", "images/s", "mean", "diff", "largest"]
    assert pil.split()[-2:] == torchvision.split()[-2:] == ["0.000", "0"]  # the same pixels
    assert float(draft.split()[-2]) > 0
    kept = decode.epoch_rows(root, 56, tmp_path / "cache")
    assert [row.split("  ")[0] for row in kept] == ["kept", "not", "in memory", "in a file", "file, other run"]
    assert all(float(number) > 0 for row in kept[1:] for number in row[16:].split())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dense_layers_of_every_library_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "IMAGES", 2)
    monkeypatch.setattr(dense, "REPEATS", 1)
    lines = dense.rows("vit_w32#0", 32)
    assert len(lines) == 4 and all(float(line.split()[-1]) < 1e-5 for line in lines)


def test_the_page_of_implementations_has_our_values() -> None:
    """Its other numbers need packages of others; ours are made anew, and stand in every cell that is not equal."""
    lines = [line.split(" | ") for line in implementations.PAGE.read_text().splitlines() if line.startswith("| ")]
    known = {f"{other.package} {other.function}": other for other in implementations.OTHERS}
    made = list(implementations.pairs().values())
    rows = 0
    for first, ours, *rest in lines[1:]:
        package, _, function = first.removeprefix("| ").partition(", `")
        other = known[f"{package.split()[0]} {function.removesuffix('`')}"]
        assert ours == f"`{other.ours}`"
        for cell, (x, y) in zip(rest, made, strict=False):
            shown = cell.partition(" (")[2].removesuffix(")") or cell
            if shown != "none":
                assert shown == implementations.number(other.relation(implementations.ours(other.ours, x, y)))
        rows += 1
    assert rows == len(implementations.OTHERS)


def test_the_table_of_a_gpu_runs_on_a_processor(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--device", "cpu"])
    heading, columns, *rows = capsys.readouterr().out.splitlines()
    assert "tiny sizes" in heading and columns.split() == ["work", "ms", "launches", "readings"]
    found = {line[:52].strip(): line[52:].split() for line in rows}
    launches = {what: int(numbers[1]) for what, numbers in found.items() if what.startswith("step")}
    assert launches["step, 3 stitches stacked"] < launches["step, 3 stitches on their own"]
    assert all(int(numbers[2]) == 0 for what, numbers in found.items() if "stacked" in what)
    assert any(line.startswith("in another company: the same bits") for line in rows)
    assert {"CKA 2 x 2, 16 images, batches of 64", "eigh of 20, float64"} <= found.keys()


def test_without_a_gpu_its_table_ends_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no GPU of NVIDIA here; --device cpu runs the same with tiny sizes\n"


@pytest.mark.parametrize("name", list(big_file.CASES))
def test_a_file_that_is_mostly_holes_is_compared_and_removed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(big_file.CASES, name, (64, big_file.CASES[name][1]))
    big_file.write_sparse(tmp_path / "x.npy", 1_000_000, 64)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert array.shape == (1_000_000, 64) and array[0].any() and not array[1].any() and array[2000].any()
    assert 512 * (tmp_path / "x.npy").stat().st_blocks < 0.1 * (tmp_path / "x.npy").stat().st_size
    (tmp_path / "x.npy").unlink()
    big_file.run_case(name, 4e6, tmp_path)
    assert capsys.readouterr().out.startswith(f"{name}: 15,625 x 64, cka") and not list(tmp_path.iterdir())
