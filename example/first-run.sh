#!/usr/bin/env bash
# The whole way once, on a fresh machine: install, make a base image, build, serve over HTTP, build again from the cache,
# stop, clean up. No daemon, no registry; everything lives in a temporary data root that is removed at the end.
# Needs root (mounts, owners). PYLAYERS_EXAMPLE_BASE=busybox skips mmdebstrap and works without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "first-run.sh needs root: it mounts and unpacks with owners; try sudo bash $0" >&2; exit 1; }
bash tool/prepare run
venv=$(cd "${PYLAYERS_VENV:-.venv}" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/pylayers-example.XXXXXX")
pylayers() { "$venv/bin/pylayers" --root "$work/root" "$@"; }
say() { printf '\n== %s\n' "$*"; }
container=

clean_up() {
  status=$?
  [ -z "$container" ] || pylayers rm --force "$container" >/dev/null || status=1
  rm -rf --one-file-system "$work" || status=1
  [ $status = 0 ] || echo "first-run.sh failed" >&2
  exit $status
}
trap clean_up EXIT

make_debian() {
  local suite=stable
  command -v mmdebstrap >/dev/null || return
  # shellcheck disable=SC1091
  suite=$(. /etc/os-release; [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-stable}" || echo stable)
  timeout 300 mmdebstrap --quiet --variant=essential --include=busybox-static "$suite" "$work/base.tar" </dev/null
}

make_busybox() {
  local root="$work/base" applet
  mkdir -p "$root/bin" "$root/etc" "$root/usr/bin" "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"; done
  echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
  echo "root:x:0:" >"$root/etc/group"
  tar -C "$root" --numeric-owner -cf "$work/base.tar" .
}

if [ "${PYLAYERS_EXAMPLE_BASE:-debian}" != busybox ]; then
  say "a Debian base image, by mmdebstrap"
  if ! make_debian; then
    echo "mmdebstrap could not make one (see above); a busybox image does as well" >&2
    PYLAYERS_EXAMPLE_BASE=busybox
  fi
fi
if [ "${PYLAYERS_EXAMPLE_BASE:-}" = busybox ]; then
  say "a busybox base image"
  make_busybox
fi
ls -sh "$work/base.tar"
time pylayers import "$work/base.tar" example/base

say "build: a RUN and a COPY"
time pylayers build --progress plain -t example/web example
pylayers history example/web

say "the same build again: every step from the cache"
time pylayers build --progress plain -t example/web --metadata-file "$work/again.json" example
"$venv/bin/python" - "$work/again.json" <<'PYTHON'
import json, sys
steps = [step for step in json.load(open(sys.argv[1]))["pylayers.steps"] if step["diff_id"]]
performed = [step["step"] for step in steps if step["status"] not in ("cached", "CACHED")]
sys.exit(f"performed again: {performed}" if performed or not steps else 0)
PYTHON

say "run: the container answers over HTTP"
port=$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
container=$(pylayers run -d -e "PORT=$port" example/web)
pylayers ps
"$venv/bin/python" - "$port" <<'PYTHON'
import sys, time, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
end = time.monotonic() + 10
while True:
    try:
        pages = [opener.open(f"http://127.0.0.1:{sys.argv[1]}/{name}").read().decode() for name in ("", "machine.txt")]
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.05)
print(*pages, sep="\n")
assert "Hello from a layer" in pages[0] and "built on Linux by root" in pages[1]
PYTHON

say "logs, stop, clean up"
pylayers logs "$container"
pylayers stop "$container"
pylayers rm "$container"
container=
pylayers system df
say "done: import, build, cached build, run, stop"
