#!/bin/sh
# Make one of Headgate's Python environments from its lock, or do nothing when it is already what the lock says.
#
#   requirements/install.sh control|dev|training|engine
#
# VENVS   where the environments stand (default: .venvs beside the packages)
# PYTHON  the interpreter to build them with (default: python3.11, else python3)
#
# torch is pinned to PyTorch's own CPU build, which is not on PyPI: it is taken from wherever pip is told to look first
# (a wheelhouse, a mirror), else from PyTorch's CPU index. The hash is the same file's in both cases.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
venvs=${VENVS:-$root/.venvs}
which=${1:?control, dev, training or engine}
case $which in
  control|training|engine) venv=$venvs/$which ;;
  dev) "$0" control; venv=$venvs/control ;;
  *) echo "install.sh: no environment is called '$which'; there are control, dev, training, engine" >&2; exit 2 ;;
esac
lock=$here/$which.lock
stamp=$venv/.$which.installed
want=$(sha256sum <"$lock" | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && exit 0

python=${PYTHON:-$(command -v python3.11 || command -v python3)}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "install.sh: $python is older than Python 3.11, which Headgate needs" >&2; exit 1; }
case $which-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$(uname -m) in
  training-3.11-x86_64|engine-3.11-x86_64|control-*|dev-*) ;;
  *) echo "install.sh: the $which lock is for Python 3.11 on x86_64 (CPU builds); $python on $(uname -m) is not." \
          "Name your own environment in the site file (environments.$which.python)" >&2; exit 1 ;;
esac
"$python" -c 'import ensurepip' 2>/dev/null ||
  { echo "install.sh: $python cannot make virtual environments (on Debian: apt-get install python3-venv)" >&2; exit 1; }

unset PYTHONDONTWRITEBYTECODE   # without .pyc files vLLM takes minutes to start, LiteLLM half a minute to import
echo "installing the $which environment into $venv (once)" >&2
rm -f "$stamp"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check --no-input -q"
if grep -q '^torch==' "$lock" && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  torch=$(mktemp)
  trap 'rm -f "$torch" "$torch.said"' EXIT
  sed -n '/^torch==/,/--hash/p' "$lock" | sed '$ s/ *\\$//' >"$torch"
  $pip install --no-deps --require-hashes -r "$torch" 2>"$torch.said" ||
    $pip install --no-deps --require-hashes --index-url https://download.pytorch.org/whl/cpu -r "$torch" ||
    { echo "the first attempt, where pip looks by default, said:" >&2; cat "$torch.said" >&2; exit 1; }
fi
$pip install --no-deps --require-hashes -r "$lock"
[ "$which" != control ] || PYTHONWARNINGS=ignore $pip install --no-deps --no-build-isolation -e "$root"
if [ "$which" = engine ]; then
  echo "starting the engine once, so that the first real start is warm" >&2
  "$venv/bin/python" "$here/warm_engine.py"
fi
echo "$want" >"$stamp"
