#!/bin/sh
# Installs the named Debian packages when this is possible, and says what to do when it is not.
set -eu
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing $* from Debian" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@" >/dev/null
else
    echo "missing: $*; install it as root with: apt-get install $*" >&2
    exit 1
fi
