#!/usr/bin/env bash
# Runs inside the container: the given command, as whoever the caller is.
set -euo pipefail

# Matplotlib, torch and others write to HOME; a caller may have brought one that is not there.
if [ ! -w "${HOME:-/}" ] && [ "$(id -u)" -ne 0 ]; then
    HOME=$(mktemp -d)
    export HOME
fi
exec "$@"
