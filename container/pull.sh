#!/usr/bin/env bash
# Fetches the image that .dockerenv names.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<EOF
Usage: ./pull.sh [-h]

Fetches the image '$IMAGE' (the name is in container/.dockerenv).
Where no registry has it, make it with ./build.sh.

CONTAINER_ENGINE chooses the program: docker or podman.
EOF
}

[ "${1:-}" = --help ] && set -- -h
while getopts :h option; do
    case $option in
        h) usage && exit 0 ;;
        *) die "unknown option -$OPTARG; see -h" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || die "unexpected argument '$1'; see -h"

find_engine
"$engine" pull "$IMAGE" || die "cannot fetch '$IMAGE'; make it with container/build.sh"
