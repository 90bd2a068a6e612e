"""The scripts of container/, run without an engine: a stub on PATH writes down what it is asked."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import ROOT

FOLDER = ROOT / "container"
IMAGE = "frankenstein-stitching:latest"
# All that the scripts may call besides the engine; a PATH of only these shows what a machine without one does.
PROGRAMS = ["bash", "basename", "cat", "cp", "dirname", "mkdir", "mktemp", "rm"]

STUB = """#!/usr/bin/env bash
case $1 in
    --version) echo "$STUB_VERSION"; exit 0 ;;
    info) echo "$STUB_INFO"; exit 0 ;;
    image) [ -z "$STUB_INSPECT" ] || { echo "$STUB_INSPECT" >&2; exit 1; }; exit 0 ;;
esac
printf '%s\\0' "$@" >"$STUB_LOG"
if [ "$1" = build ]; then cd "${!#}" && printf '%s\\n' * container/* >"$STUB_LOG.context"; fi
if [ "$1" = run ] && [ -n "$STUB_ENTRYPOINT" ]; then
    while [ "$1" != "$STUB_IMAGE" ]; do shift; done
    shift
    exec bash "$STUB_ENTRYPOINT" "$@"
fi
exit "$STUB_EXIT"
"""

bash = shutil.which("bash")
pytestmark = pytest.mark.skipif(bash is None, reason="there is no bash here")


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@dataclass
class Machine:
    """A made-up machine: its programs, its home, and what its engine was last asked."""

    root: Path
    environment: dict[str, str]

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def cache(self) -> Path:
        return self.root / "home" / "cache"

    @property
    def log(self) -> Path:
        return self.root / "log"

    def install(self, name: str, version: str) -> None:
        _write_program(self.bin / name, STUB)
        self.environment["STUB_VERSION"] = version

    def run(self, script: str, *arguments: str, folder: Path = FOLDER, cwd: Path | None = None, stdin: str = ""):
        return subprocess.run(
            [str(folder / script), *arguments],
            env=self.environment,
            cwd=cwd or folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def asked(self) -> list[str]:
        return self.log.read_text().split("\0")[:-1]

    def values(self, option: str) -> list[str]:
        words = self.asked()
        return [value for name, value in zip(words, words[1:], strict=False) if name == option]


@pytest.fixture
def bare(tmp_path: Path) -> Machine:
    """A machine without an engine; the caller has the ids 1234:5678."""
    root = tmp_path / "machine"
    for name in ("bin", "home/cache"):
        (root / name).mkdir(parents=True)
    for name in PROGRAMS:
        (root / "bin" / name).symlink_to(str(shutil.which(name)))
    _write_program(root / "bin" / "id", '#!/usr/bin/env bash\nif [ "$1" = -u ]; then echo 1234; else echo 5678; fi\n')
    environment = {
        "PATH": str(root / "bin"),
        "HOME": str(root / "home"),
        "STUB_LOG": str(root / "log"),
        "STUB_VERSION": "",
        "STUB_INFO": "[name=seccomp,profile=builtin name=cgroupns]",
        "STUB_INSPECT": "",
        "STUB_ENTRYPOINT": "",
        "STUB_IMAGE": IMAGE,
        "STUB_EXIT": "0",
    }
    return Machine(root, environment)


@pytest.fixture
def docker(bare: Machine) -> Machine:
    bare.install("docker", "Docker version 27.3.1, build ce12230")
    return bare


@pytest.fixture
def podman(bare: Machine) -> Machine:
    bare.install("podman", "podman version 5.2.2")
    bare.environment["CONTAINER_ENGINE"] = "podman"
    return bare


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_documented_command(docker: Machine):
    done = docker.run("./docker_run.sh", "-g", "0", "-c", "python python_file.py")
    assert done.returncode == 0, done.stderr
    words = docker.asked()
    assert words[0] == "run" and "--rm" in words
    assert words[-4:] == [IMAGE, "bash", "-c", "python python_file.py"]
    assert docker.values("--gpus") == ['"device=0"']
    assert docker.values("--user") == ["1234:5678"]
    assert docker.values("--workdir") == ["/repo"]


def test_only_the_repository_and_the_cache_are_visible(docker: Machine):
    docker.environment["SECRET"] = "swordfish"
    docker.run("docker_run.sh", "-c", "true")
    assert docker.values("--mount") == [
        f"type=bind,source={FOLDER.parent},target=/repo",
        f"type=bind,source={docker.cache},target=/cache",
    ]
    text = " ".join(docker.asked())
    for word in ("--volume", "-v ", "--env", "-e ", "--privileged", "host", "/etc/", "swordfish"):
        assert word not in text.replace(str(FOLDER.parent), "").replace(str(docker.root), "")


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (["-g", "0,1"], ['"device=0,1"']),
        (["-g", "GPU-3a23c669-1f69"], ['"device=GPU-3a23c669-1f69"']),
        (["-g", "all"], ["all"]),
        (["-g", "none"], []),
        ([], []),
    ],
)
def test_gpus_of_docker(docker: Machine, gpus: list[str], expected: list[str]):
    assert docker.run("docker_run.sh", *gpus, "-c", "true").returncode == 0
    assert docker.values("--gpus") == expected
    assert ("--gpus" in docker.asked()) == bool(expected)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (["-g", "0,1"], ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]),
        (["-g", "all"], ["nvidia.com/gpu=all"]),
        ([], []),
    ],
)
def test_podman(podman: Machine, gpus: list[str], expected: list[str]):
    assert podman.run("docker_run.sh", *gpus, "-c", "true").returncode == 0
    assert podman.values("--device") == expected
    assert "--gpus" not in podman.asked()
    assert "--userns=keep-id" in podman.asked()
    assert podman.values("--user") == ["1234:5678"]


def test_docker_that_is_podman_in_disguise(bare: Machine):
    bare.install("docker", "podman version 5.2.2")
    bare.run("docker_run.sh", "-c", "true")
    assert "--userns=keep-id" in bare.asked()


def test_podman_where_there_is_no_docker(podman: Machine):
    del podman.environment["CONTAINER_ENGINE"]
    assert podman.run("docker_run.sh", "-c", "true").returncode == 0
    assert "--userns=keep-id" in podman.asked()


def test_rootless_docker_maps_the_caller_to_root(docker: Machine):
    docker.environment["STUB_INFO"] = "[name=seccomp,profile=builtin name=rootless name=cgroupns]"
    docker.run("docker_run.sh", "-c", "true")
    assert docker.values("--user") == ["0:0"]


def test_a_missing_driver_is_noted(docker: Machine):
    assert "no NVIDIA driver" in docker.run("docker_run.sh", "-g", "0", "-c", "true").stderr
    assert docker.run("docker_run.sh", "-c", "true").stderr == ""
    _write_program(docker.bin / "nvidia-smi", "#!/usr/bin/env bash\n")
    assert docker.run("docker_run.sh", "-g", "0", "-c", "true").stderr == ""


def test_words_with_spaces_arrive_whole(docker: Machine):
    """The stub runs the real entrypoint with what the engine would hand it."""
    docker.environment["STUB_ENTRYPOINT"] = str(FOLDER / "entrypoint.sh")
    command = r"""printf '<%s>' 'two words' "a \"b\" \$HOME" '*' && printf '[%s]' "$#" """
    done = docker.run("docker_run.sh", "-c", command)
    assert done.stdout == '<two words><a "b" $HOME><*>[0]'
    assert docker.asked()[-1] == command


@pytest.mark.parametrize("code", [0, 1, 2, 42, 137])
def test_exit_code_of_the_engine(docker: Machine, code: int):
    docker.environment["STUB_EXIT"] = str(code)
    assert docker.run("docker_run.sh", "-c", "true").returncode == code


def test_exit_code_and_streams_of_the_command(docker: Machine):
    docker.environment["STUB_ENTRYPOINT"] = str(FOLDER / "entrypoint.sh")
    done = docker.run("docker_run.sh", "-i", "-c", "cat; echo out; echo err >&2; exit 7", stdin="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in\nout\n", "err\n")


def test_entrypoint_replaces_a_home_that_cannot_be_written():
    script = (FOLDER / "entrypoint.sh").read_text()
    command = ["bash", "-c", script, "entrypoint.sh", "bash", "-c", 'touch "$HOME/file" && rm -r "$HOME"']
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere"}
    # Root can write everywhere, so it lends the test another id.
    user = 65534 if os.geteuid() == 0 else None
    assert subprocess.run(command, env=environment, user=user, cwd="/", timeout=60).returncode == 0


def test_no_home(docker: Machine):
    del docker.environment["HOME"]
    assert_one_line(docker.run("docker_run.sh", "-c", "true"), "HOME")


def test_interactive(docker: Machine):
    docker.run("docker_run.sh", "-i")
    assert docker.asked()[-2:] == [IMAGE, "bash"]
    assert "--interactive" in docker.asked()
    # The test's input is a pipe.
    assert "--tty" not in docker.asked()
    docker.run("docker_run.sh", "-i", "-c", "python -i x.py")
    assert docker.asked()[-4:] == [IMAGE, "bash", "-c", "python -i x.py"]
    docker.run("docker_run.sh", "-c", "true")
    assert "--interactive" not in docker.asked()


def test_interactive_in_a_terminal(docker: Machine):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    try:
        command = [str(FOLDER / "docker_run.sh"), "-i"]
        done = subprocess.run(command, env=docker.environment, stdin=theirs, stdout=theirs, timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert "--tty" in docker.asked()


def _copy(folder: Path) -> Path:
    """A repository at `folder` with nothing in it but what the container needs; its container/."""
    folder.mkdir()
    for name in ("requirements.txt", "requirements-plots.txt"):
        shutil.copy(FOLDER.parent / name, folder)
    shutil.copytree(FOLDER, folder / "container")
    return folder / "container"


def test_from_any_folder_and_with_an_odd_path(docker: Machine, tmp_path: Path):
    folder = _copy(tmp_path / "my repo: 2nd")
    docker.environment["CDPATH"] = str(tmp_path)
    done = docker.run("docker_run.sh", "-c", "true", folder=folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert docker.values("--mount")[0] == f"type=bind,source={folder.parent},target=/repo"

    relative = subprocess.run(
        ["bash", "my repo: 2nd/container/docker_run.sh", "-c", "pwd"], env=docker.environment, cwd=tmp_path, timeout=60
    )
    assert relative.returncode == 0
    assert docker.values("--mount")[0] == f"type=bind,source={folder.parent},target=/repo"


def test_path_with_a_comma(docker: Machine, tmp_path: Path):
    done = docker.run("docker_run.sh", "-c", "true", folder=_copy(tmp_path / "a,b"))
    assert_one_line(done, "comma")


def test_missing_cache_is_created_and_said(docker: Machine):
    docker.cache.rmdir()
    done = docker.run("docker_run.sh", "-c", "true")
    assert done.returncode == 0
    assert docker.cache.is_dir()
    assert str(docker.cache) in done.stderr and len(done.stderr.splitlines()) == 1


def test_cache_that_cannot_be_created(docker: Machine):
    docker.cache.rmdir()
    docker.cache.write_text("a file\n")
    assert_one_line(docker.run("docker_run.sh", "-c", "true"), str(docker.cache))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-x"], "-x"),
        (["--gpus", "0"], "unknown option"),
        (["-g"], "-g"),
        (["-c"], "-c"),
        ([], "-c"),
        (["-g", "0"], "-c"),
        (["-g", "0 1", "-c", "true"], "'0 1'"),
        (["-g", "0,", "-c", "true"], "'0,'"),
        (["-g", "-c", "true"], "'-c'"),
        (["-g", "0", "python", "x.py"], "'python'"),
        (["-c", "python", "x.py"], "'x.py'"),
    ],
)
def test_bad_options(docker: Machine, arguments: list[str], word: str):
    assert_one_line(docker.run("docker_run.sh", *arguments), word)
    assert not docker.log.exists()


@pytest.mark.parametrize("script", ["build.sh", "pull.sh", "docker_run.sh"])
def test_help_and_bad_options_of_every_script(bare: Machine, script: str):
    for option in ("-h", "--help"):
        done = bare.run(script, option)
        assert done.returncode == 0 and done.stderr == ""
        assert done.stdout.startswith(f"Usage: ./{script}")
        assert max(map(len, done.stdout.splitlines())) <= 100
    assert_one_line(bare.run(script, "-z"), script, "-z")
    assert_one_line(bare.run(script, "extra"), "'extra'")


@pytest.mark.parametrize("command", [["build.sh"], ["pull.sh"], ["docker_run.sh", "-c", "true"]])
def test_no_engine(bare: Machine, command: list[str]):
    assert_one_line(bare.run(*command), "no container engine", "Docker", "Podman")
    bare.environment["CONTAINER_ENGINE"] = "dokcer"
    assert_one_line(bare.run(*command), "'dokcer'")


def test_no_image(docker: Machine):
    for message in (f"Error response from daemon: No such image: {IMAGE}", f"Error: {IMAGE}: image not known"):
        docker.environment["STUB_INSPECT"] = message
        assert_one_line(docker.run("docker_run.sh", "-c", "true"), IMAGE, "build.sh")
    docker.environment["STUB_INSPECT"] = "Cannot connect to the Docker daemon.\nIs it running?"
    assert_one_line(docker.run("docker_run.sh", "-c", "true"), "Cannot connect")
    assert not docker.log.exists()


def test_the_image_is_never_fetched_by_a_run(docker: Machine):
    docker.run("docker_run.sh", "-c", "true")
    assert docker.values("--pull") == ["never"]


def test_pull(docker: Machine):
    assert docker.run("pull.sh").returncode == 0
    assert docker.asked() == ["pull", IMAGE]
    docker.environment["STUB_EXIT"] = "1"
    assert_one_line(docker.run("pull.sh"), IMAGE, "build.sh")


def test_name_of_the_image_comes_from_the_file(docker: Machine, tmp_path: Path):
    folder = _copy(tmp_path / "repo")
    (folder / ".dockerenv").write_text("IMAGE=registry.example/me/stitch:2\n")
    docker.run("pull.sh", folder=folder)
    assert docker.asked() == ["pull", "registry.example/me/stitch:2"]
    docker.run("docker_run.sh", "-c", "true", folder=folder)
    assert docker.asked()[-4] == "registry.example/me/stitch:2"


@pytest.mark.parametrize("tag", [None, "2.7.1-cuda12.6-cudnn9-runtime"])
def test_build(docker: Machine, tmp_path: Path, tag: str | None):
    done = docker.run("build.sh", *(["-t", tag] if tag else []), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert docker.asked()[0] == "build"
    assert docker.values("--tag") == [IMAGE]
    assert docker.values("--build-arg") == ([f"PYTORCH_TAG={tag}"] if tag else [])
    context = Path(docker.asked()[-1])
    assert docker.values("--file") == [str(context / "container" / "Dockerfile")]
    sent = set(Path(f"{docker.log}.context").read_text().split())
    files = {"requirements.txt", "requirements-plots.txt", "container/Dockerfile", "container/entrypoint.sh"}
    assert sent == files | {"container"}
    assert not context.exists()


def test_build_that_fails(docker: Machine):
    docker.environment["STUB_EXIT"] = "9"
    assert docker.run("build.sh").returncode == 9
    assert not Path(docker.asked()[-1]).exists()


def test_dockerfile():
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and line[0].isupper()]
    argument, base = instructions[0], instructions[1]
    assert argument[0] == "ARG" and argument[1].startswith("PYTORCH_TAG=") and argument[1].endswith("-runtime")
    assert base == ["FROM", "docker.io/pytorch/pytorch:${PYTORCH_TAG}"]
    users = [rest for name, rest in instructions if name == "USER"]
    assert users and not users[-1].startswith(("0", "root"))
    copied = [word for name, rest in instructions if name == "COPY" for word in rest.split()[:-1]]
    assert all((FOLDER.parent / word).is_file() for word in copied)


def test_scripts_may_be_executed():
    for script in ("build.sh", "pull.sh", "docker_run.sh", "entrypoint.sh"):
        assert os.access(FOLDER / script, os.X_OK), script


def _linter(name: str) -> str:
    """The program, on PATH or in the environment of this Python."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_shellcheck():
    scripts = sorted(path.name for path in FOLDER.glob("*.sh"))
    command = [_linter("shellcheck"), "--external-sources", *scripts]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint():
    command = [_linter("hadolint"), "Dockerfile"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
