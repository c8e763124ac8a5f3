#!/bin/sh
# Install what WeasyPrint needs of the system to make PDF reports: Pango, HarfBuzz's subsetter and a font. Everything but
# `headgate report --format pdf` works without them. Exit status: 0 all there, 3 something is missing that this user may
# not install, otherwise apt-get's own.
set -eu
PATH=$PATH:/sbin:/usr/sbin

missing=
for pair in libpango-1.0.so.0:libpango-1.0-0 libpangoft2-1.0.so.0:libpangoft2-1.0-0 \
    libharfbuzz-subset.so.0:libharfbuzz-subset0; do
  ldconfig -p | grep -q "${pair%%:*}" || missing="$missing ${pair#*:}"
done
[ -n "$(find /usr/share/fonts /usr/local/share/fonts -name '*.ttf' -print -quit 2>/dev/null)" ] ||
  missing="$missing fonts-dejavu-core"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "pango.sh: missing for PDF reports:$missing; as root on Debian or Ubuntu: requirements/pango.sh" >&2
  exit 3
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086  # a list of names
apt-get install -q -y --no-install-recommends --no-upgrade $missing
