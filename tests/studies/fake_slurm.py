"""Programs that answer as those of Slurm do, for tests: jobs are processes of this machine.

`install(folder)` writes them; `queue` there holds a file a job, with its process, `state/NAME` what a program is to do.
"""

import os
import sys
from pathlib import Path

PROGRAM = """#!{python}
import os, re, signal, subprocess, sys
from pathlib import Path

HOME = Path({home!r})
WHAT, WORDS = Path(sys.argv[0]).name, sys.argv[1:]
SAYS = HOME / "state" / WHAT


def alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return "Z" not in Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()[0]


if SAYS.exists():
    text = SAYS.read_text()
    code = int(text.partition("\\n")[0])
    print(text.partition("\\n")[2], file=sys.stderr if code else sys.stdout)
    sys.exit(code)
if WHAT == "sbatch":
    script = Path(WORDS[-1])
    number = 70 + len(list((HOME / "sent").iterdir()))
    (HOME / "sent" / str(number)).write_text(script.read_text())
    array = re.search(r"#SBATCH --array=0-(\\d+)", script.read_text())
    for index in range(int(array[1]) + 1) if array else [None]:
        name = str(number) if index is None else f"{{number}}_{{index}}"
        more = {{"SLURM_JOB_ID": str(number)}}
        if index is not None:
            more |= {{"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}}
        log = open(HOME / "log", "ab")
        job = subprocess.Popen(
            ["bash", str(script)], env=os.environ | more | {{"NAME": name}}, stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )
        (HOME / "queue" / name).write_text(str(job.pid))
    print(f"Submitted batch job {{number}}")
elif WHAT == "srun":
    place, words = {{}}, WORDS
    while words[0].startswith("--"):
        option, words = words[0], words[1:]
        if option in ("--output", "--error"):
            place[option], words = words[0], words[1:]
    for number, option in ((1, "--output"), (2, "--error")):
        file = re.sub("%A_%a|%j", os.environ["NAME"], place[option]).replace("%t", "0")
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.execvp(words[0], words)
elif WHAT == "squeue":
    for job in sorted((HOME / "queue").iterdir()):
        if alive(int(job.read_text())):
            print(job.name, "RUNNING")
elif WHAT == "scancel":
    (HOME / "cancelled").open("a").write(WORDS[-1] + "\\n")
    job = HOME / "queue" / WORDS[-1]
    if job.exists() and alive(int(job.read_text())):
        os.killpg(int(job.read_text()), signal.SIGKILL)
elif WHAT == "sacct":
    sys.exit(1)
"""


def install(folder: Path) -> Path:
    """Write the programs; returns the folder that is to be on PATH."""
    programs = folder / "bin"
    for name in ("bin", "queue", "sent", "state"):
        (folder / name).mkdir(parents=True)
    for name in ("sbatch", "srun", "squeue", "scancel", "sacct"):
        path = programs / name
        path.write_text(PROGRAM.format(python=sys.executable, home=str(folder)))
        path.chmod(0o755)
    return programs


def say(folder: Path, program: str, text: str, code: int = 0) -> None:
    """Have a program print a text from now on, and nothing else."""
    (folder / "state" / program).write_text(f"{code}\n{text}")


def jobs(folder: Path) -> dict[str, int]:
    """The processes of all jobs that were ever sent."""
    return {job.name: int(job.read_text()) for job in (folder / "queue").iterdir()}


def on_path(programs: Path) -> str:
    return f"{programs}{os.pathsep}{os.environ['PATH']}"
