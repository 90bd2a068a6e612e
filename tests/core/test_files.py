"""Files are whole or absent, whatever happens to the process or to the disk."""

import errno
import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from src.core.files import atomic_write, make_folder, remove_leftovers, sole_maker
from src.core.tensor_files import parse_tensors, write_tensors
from tests.paths import ROOT


def write(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(content)


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_block_without_errors_replaces_the_file_and_makes_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "result"
    for content in (b"old", b"new"):
        write(path, content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["result"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "result"
    write(path, b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half of the ne")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["result"]


def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_writer_killed_in_the_middle_leaves_the_old_file_and_a_leftover_that_the_next_write_removes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "result[1]"  # brackets mean something to glob
    write(path, b"old")
    code = """
import os, signal, sys
from pathlib import Path
from typing import Any
from src.core.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half of the ne")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert python(code, path).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == [path.name]


def test_the_temporary_file_of_a_living_writer_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with atomic_write(path) as file:
        file.write(b"first")
        write(path, b"second")  # cleans up before it starts, as another process would
        remove_leftovers(path)
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"first"


def test_leftovers_of_other_files_are_not_ours_to_remove(tmp_path: Path) -> None:
    for name in (".other.0123.tmp", "result.tmp", ".result.txt"):
        (tmp_path / name).touch()
    write(tmp_path / "result", b"")
    assert names(tmp_path) == [".other.0123.tmp", ".result.txt", "result", "result.tmp"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_who_comes_second_does_not_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    path = tmp_path / "result"
    with pytest.raises(FileExistsError, match="exists already; give --overwrite"), atomic_write(path, overwrite=False):
        path.write_bytes(b"of a faster run")
    assert path.read_bytes() == b"of a faster run"
    assert names(tmp_path) == ["result"]
    path.unlink()
    write(path, b"alone", overwrite=False)
    assert path.read_bytes() == b"alone"


def test_only_one_process_makes_a_file_and_a_killed_one_holds_no_one_up(tmp_path: Path) -> None:
    path = tmp_path / "result"
    code = """
import os, signal, sys
from pathlib import Path
from typing import Any
from src.core.files import sole_maker
try:
    with sole_maker(Path(sys.argv[1])):
        os.kill(os.getpid(), signal.SIGKILL)
except FileExistsError as error:
    print(error)
"""
    with sole_maker(path):
        assert python(code, path).stdout == f"another run is making {path}; give another --run-name\n"
        assert python(code, tmp_path / "other").returncode == -signal.SIGKILL
    assert names(tmp_path) == [".other.lock"]
    with sole_maker(tmp_path / "other"):
        pass
    assert names(tmp_path) == []


def test_runs_that_fail_take_no_folder_from_one_that_works(tmp_path: Path) -> None:
    """Two runs on one name that fail over and over, and a third that must get its file each time."""
    code = """
import argparse, sys
from pathlib import Path
from typing import Any
from src.cli import output as cli
args = argparse.Namespace(out_dir=Path(sys.argv[1]), run_name="shared/run", overwrite=False, no_save=False)
for turn in range(400):
    try:
        with cli.result_path(args, sys.argv[2]):
            if sys.argv[2] != "works":
                raise ValueError("fails")
    except ValueError:
        pass
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [
        subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in ("fails", "too", "works")
    ]
    assert [run.communicate(timeout=60)[1] for run in runs] == ["", "", ""]


def test_a_folder_that_others_remove_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which another process can come between two calls, one after the other."""
    path, opened, made = tmp_path / "a" / "b" / "result", Path.open, os.mkdir
    removals = [1, 1, 1]

    def mkdir(folder: str, *arguments: Any) -> None:
        if len(removals) > 1 and Path(folder) == path.parent:  # pathlib itself gets over the first of these
            removals.pop()
            path.parent.parent.rmdir()  # between the parent's making and this
        made(folder, *arguments)

    def open_claim(self: Path, *arguments: Any):
        if removals and self.name == ".result.lock":
            removals.pop()
            path.parent.rmdir()  # between the folder's making and this
        return opened(self, *arguments)

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(Path, "open", open_claim)
    with sole_maker(path):
        assert names(path.parent) == [".result.lock"]
    assert not removals


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/folder"):
        make_folder(tmp_path / "file" / "folder")
    with pytest.raises(FileExistsError, match="file"):
        make_folder(tmp_path / "file")


def test_a_folder_without_permission_is_an_error_that_names_our_file(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from typing import Any
from src.core.files import atomic_write
os.chdir(sys.argv[1])
if os.geteuid() == 0:  # who may write anywhere
    os.setuid(65534)
try:
    with atomic_write(Path("result")) as file:
        file.write(b"new")
except PermissionError as error:
    print(error.filename)
"""
    tmp_path.chmod(0o555)
    done = python(code, tmp_path)
    tmp_path.chmod(0o755)
    assert done.stdout == "result\n", done.stderr
    assert names(tmp_path) == []


def test_an_error_of_the_system_names_our_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "result", b"new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write(tmp_path / "folder", b"new")
    assert caught.value.filename == str(tmp_path / "folder")
    assert names(tmp_path) == ["file", "folder"]


def test_an_error_of_the_block_stays_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "result"):
        (tmp_path / "absent").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent")


@pytest.mark.parametrize("what", ["plain", "tensors"])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, what: str) -> None:
    """A limit on the size of files stands in for the disk."""
    path = tmp_path / "result"
    write(path, b"old")
    code = """
import resource, sys
from pathlib import Path
from typing import Any
import torch
from src.core.files import atomic_write
from src.core.tensor_files import write_tensors
path, what = Path(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    if what == "tensors":
        write_tensors(path, {"a": torch.zeros(50_000)})
    else:
        with atomic_write(path) as file:
            file.write(bytes(200_000))
except OSError as error:
    print(error.errno, error.filename)
"""
    done = python(code, path, what)
    assert done.stdout.split() == [str(errno.EFBIG), str(path)], done.stderr
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["result"]


def test_the_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = tmp_path / "result", []
    sync = os.fsync

    def spy(descriptor: int) -> None:
        sizes.append((os.fstat(descriptor).st_size, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    write(path, b"whole")
    assert sizes[0] == (5, False)


def test_a_file_system_that_cannot_sync_folders_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "no")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write(tmp_path / "result", b"new")
    assert (tmp_path / "result").read_bytes() == b"new"


def test_tensors_survive_a_file(tmp_path: Path) -> None:
    record = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, "x", None]}
    write_tensors(tmp_path / "x.pt", record)
    read = parse_tensors((tmp_path / "x.pt").read_bytes())
    assert torch.equal(read["a"], record["a"])
    assert read["b"] == record["b"]


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_with_a_program_in_them_are_refused_by_name_and_not_run(tmp_path: Path, zipped: bool) -> None:
    content = io.BytesIO()
    torch.save({"a": Hostile(tmp_path / "ran")}, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"^it asks for \w+\.mkdir, which no such file needs$"):
        parse_tensors(content.getvalue())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x04N.", bytes(100)])
def test_what_torch_did_not_write_is_refused_in_one_line_and_without_warnings(content: bytes) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=r"\A.+\Z"):
            parse_tensors(content)
    assert shown == []


def test_cut_tensors_are_refused_in_one_line() -> None:
    for zipped in (True, False):
        content = io.BytesIO()
        torch.save({"a": torch.zeros(1000)}, content, _use_new_zipfile_serialization=zipped)
        for share in (0.1, 0.5, 0.99):
            with pytest.raises(ValueError, match=r"\A.+\Z"):
                parse_tensors(content.getvalue()[: int(share * content.tell())])


def test_a_flipped_bit_is_found_by_the_checksums_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    write_tensors(path, {"w": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    assert torch.equal(parse_tensors(bytes(content))["w"], torch.arange(1000.0))
    content[len(content) // 2] ^= 1
    with pytest.raises(ValueError, match="its part .* is not what was written"):
        parse_tensors(bytes(content))
