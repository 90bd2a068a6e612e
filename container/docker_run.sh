#!/usr/bin/env bash
# Runs a command in the container, in the repository, as the user who calls.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'EOF'
Usage: ./docker_run.sh [-g GPUS] -c "COMMAND"
       ./docker_run.sh [-g GPUS] -i [-c "COMMAND"]

Runs COMMAND inside the container and returns its exit code.

  -g GPUS     GPUs to use: ids separated by commas (0 or 0,1), all, or none; default: none
  -c COMMAND  one shell command line; quote inside it what has spaces
  -i          interactive: keep the input open and show progress bars; without -c, a shell
  -h          show this help

Inside, the repository is /repo (where the command starts) and ~/cache is /cache.
Other files of this machine, and its environment variables, are not visible there.
CONTAINER_ENGINE chooses the program: docker or podman. SHM_SIZE (default 8g) bounds the
memory through which data loading workers hand over their batches.

Examples:
  ./docker_run.sh -g 0 -c "python layer_info.py tiny10"
  ./docker_run.sh -c "python eval_net.py 'my models/110000.pt'"
EOF
}

[ "${1:-}" = --help ] && set -- -h
gpus=none
command=
interactive=false
while getopts :g:c:ih option; do
    case $option in
        g) gpus=$OPTARG ;;
        c) command=$OPTARG ;;
        i) interactive=true ;;
        h) usage && exit 0 ;;
        :) die "option -$OPTARG needs a value; see -h" ;;
        *) die "unknown option -$OPTARG; see -h" ;;
    esac
done
shift $((OPTIND - 1))
# Ids are numbers or the names that nvidia-smi -L prints.
id='([0-9]+|(GPU|MIG)-[[:alnum:]/-]+)'
[[ $gpus =~ ^(all|none|$id(,$id)*)$ ]] || die "'$gpus' is no list of GPUs; give ids like 0 or 0,1, or all, or none"
[ $# -eq 0 ] || die "unexpected argument '$1'; put the whole command in quotes behind -c"
[ -n "$command" ] || $interactive || die "nothing to run; give -c \"COMMAND\", or -i for a shell"

find_engine
need_image

[ -n "${HOME:-}" ] || die "HOME is not set, so there is no ~/cache to mount"
cache=$HOME/cache
if [ ! -d "$cache" ]; then
    mkdir -p -- "$cache" 2>/dev/null || die "cannot create the data folder '$cache'; create it or make room for it"
    echo "created the data folder $cache (/cache inside the container)" >&2
fi
# --mount, because --volume breaks at a colon in a path; a comma is what --mount cannot bear.
case $repository$cache in
    *,*) die "the engine cannot mount a folder whose path has a comma: '$repository' or '$cache'" ;;
esac

arguments=(
    run --rm --pull never --security-opt no-new-privileges
    --mount "type=bind,source=$repository,target=/repo"
    --mount "type=bind,source=$cache,target=/cache"
    --workdir /repo
    # the usual 64 MB are too few for the batches of data loading workers
    --shm-size "${SHM_SIZE:-8g}"
)

user=$(id -u):$(id -g)
if is_podman; then
    # Rootless Podman maps the caller to root inside unless told to keep the id.
    [ "$(id -u)" -eq 0 ] || arguments+=(--userns=keep-id)
    # SELinux would hide the two folders; relabelling somebody's data is worse than this.
    arguments+=(--security-opt label=disable)
    if [ "$gpus" != none ]; then
        IFS=, read -r -a ids <<<"$gpus"
        for id in "${ids[@]}"; do arguments+=(--device "nvidia.com/gpu=$id"); done
    fi
else
    # Rootless Docker: root inside is the caller outside, every other id is a stranger to the two folders.
    case $("$engine" info --format '{{.SecurityOptions}}' 2>/dev/null) in
        *name=rootless*) user=0:0 ;;
    esac
    # An init hands Ctrl-C on. Not for Podman: its init is a package that may be missing.
    arguments+=(--init)
    case $gpus in
        none) ;;
        all) arguments+=(--gpus all) ;;
        # The inner quotes are for Docker, which else reads the second id as another option.
        *) arguments+=(--gpus "\"device=$gpus\"") ;;
    esac
fi
arguments+=(--user "$user")

if [ "$gpus" != none ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    echo "note: this machine shows no NVIDIA driver; without -g the command runs on the CPU" >&2
fi

if $interactive; then
    arguments+=(--interactive)
    # A pipe into the command is no terminal, and the engine would refuse to treat it as one.
    if [ -t 0 ] && [ -t 1 ]; then arguments+=(--tty); fi
fi

arguments+=("$IMAGE" bash)
[ -z "$command" ] || arguments+=(-c "$command")
# exec: the command's exit code and the signals sent to this script pass through untouched.
exec "$engine" "${arguments[@]}"
