#!/usr/bin/env bash
# Builds the image that .dockerenv names.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<EOF
Usage: ./build.sh [-t TAG] [-h]

Builds the image '$IMAGE' (the name is in container/.dockerenv).

  -t TAG  tag of the base image docker.io/pytorch/pytorch, such as 2.8.0-cuda12.6-cudnn9-runtime;
          default: see container/Dockerfile
  -h      show this help

CONTAINER_ENGINE chooses the program: docker or podman.
EOF
}

[ "${1:-}" = --help ] && set -- -h
tag=
while getopts :t:h option; do
    case $option in
        t) tag=$OPTARG ;;
        h) usage && exit 0 ;;
        :) die "option -$OPTARG needs a value; see -h" ;;
        *) die "unknown option -$OPTARG; see -h" ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || die "unexpected argument '$1'; see -h"

find_engine

# The engine gets the four files that it needs, not the repository with its weights and results.
context=$(mktemp -d)
trap 'rm -rf -- "$context"' EXIT
mkdir -- "$context/container"
cp -- "$repository/requirements.txt" "$repository/requirements-plots.txt" "$context"
cp -- "$here/Dockerfile" "$here/entrypoint.sh" "$context/container"

arguments=(build --tag "$IMAGE" --file "$context/container/Dockerfile")
[ -z "$tag" ] || arguments+=(--build-arg "PYTORCH_TAG=$tag")
"$engine" "${arguments[@]}" "$context"
