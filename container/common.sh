# Shared by the three scripts of this folder; they source it, nobody runs it.
# shellcheck shell=bash

here=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")" >/dev/null && pwd -P)
# shellcheck disable=SC2034 # the scripts use it
repository=$(dirname -- "$here")

# shellcheck source=.dockerenv
. "$here/.dockerenv"

die() {
    printf '%s: %s\n' "$(basename -- "$0")" "$1" >&2
    exit 2
}

# Sets `engine`: the caller's choice, else Docker, else Podman.
find_engine() {
    local name
    for name in "${CONTAINER_ENGINE:-docker}" "${CONTAINER_ENGINE:-podman}"; do
        if command -v -- "$name" >/dev/null 2>&1; then
            engine=$name
            return
        fi
    done
    if [ -n "${CONTAINER_ENGINE:-}" ]; then
        die "there is no program '$CONTAINER_ENGINE'; set CONTAINER_ENGINE to docker, podman or a path"
    fi
    die "no container engine found; install Docker or Podman, or set CONTAINER_ENGINE"
}

# Ask the program, not its name: on many machines `docker` is a wrapper around Podman.
is_podman() {
    case $("$engine" --version 2>/dev/null) in
        *[Pp]odman*) return 0 ;;
        *) return 1 ;;
    esac
}

need_image() {
    local message
    message=$("$engine" image inspect "$IMAGE" 2>&1 >/dev/null) && return
    case $message in
        *[Nn]"o such image"* | *"not known"*) die "there is no image '$IMAGE' here; make it with container/build.sh" ;;
        *) die "$engine cannot look for the image '$IMAGE': ${message//$'\n'/ }" ;;
    esac
}
