#!/bin/sh
# Install one of the peers that our gateway is measured against, or do nothing when it is there already.
#
#   benchmarks/peers/install.sh vllm-router|litellm|nginx      prints the directory it stands in
#
# PEERS   where they stand (default: ~/.cache/headgate/peers)
# PYTHON  the interpreter of their environments (default: python3.11, else python3)
#
# vllm-router and LiteLLM's proxy have an environment each, from NAME.lock; nginx is Debian's package, unpacked and not
# installed, so neither root is needed nor is a service started. The locks are made with uv:
#   uv pip compile --generate-hashes --no-annotate --no-header --python-version 3.11 NAME.in -o NAME.lock
set -eu
here=$(cd "$(dirname "$0")" && pwd)
peers=${PEERS:-${HOME:-/root}/.cache/headgate/peers}
which=${1:?vllm-router, litellm or nginx}
to=$peers/$which
stamp=$to/.installed

case $which in
  vllm-router|litellm)
    want=$(sha256sum <"$here/$which.lock" | cut -d' ' -f1)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && { echo "$to"; exit 0; }
    python=${PYTHON:-$(command -v python3.11 || command -v python3)}
    unset PYTHONDONTWRITEBYTECODE   # without .pyc files LiteLLM takes half a minute to import
    echo "installing $which into $to (once)" >&2
    rm -rf "$to"
    "$python" -m venv "$to" >&2
    "$to/bin/python" -m pip --disable-pip-version-check --no-input -q install --no-deps --require-hashes \
      -r "$here/$which.lock" >&2
    ;;
  nginx)
    want=debian
    [ -f "$stamp" ] && { echo "$to"; exit 0; }
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
      { echo "install.sh: nginx is taken from Debian's package, and this is not Debian" >&2; exit 1; }
    echo "unpacking Debian's nginx into $to (once)" >&2
    rm -rf "$to"
    mkdir -p "$to"
    cd "$to"
    apt-get download -qq nginx 2>/dev/null >&2 || {
      [ "$(id -u)" != 0 ] || apt-get update -qq >&2   # the lists of a fresh machine are empty
      apt-get download -qq nginx >&2
    }
    dpkg-deb -x nginx_*.deb "$to"
    rm -f nginx_*.deb
    "$to/usr/sbin/nginx" -v >&2
    ;;
  *) echo "install.sh: no peer is called '$which'; there are vllm-router, litellm, nginx" >&2; exit 2 ;;
esac
echo "$want" >"$stamp"
echo "$to"
