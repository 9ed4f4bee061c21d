#!/usr/bin/env bash
# Install the system programs that the tests use, if they are missing: RabbitMQ, PostgreSQL
# and nginx servers, curl, Node.js, Go, Chromium and promtool. Without the rights to install, name them and stop.
set -euo pipefail

# On Debian these programs are not on an ordinary user's PATH.
has() { command -v "$1" || compgen -G "/usr/lib/$2/bin/$1"; } >/dev/null

missing=()
has rabbitmq-server rabbitmq || missing+=(rabbitmq-server)
has postgres 'postgresql/*' || missing+=(postgresql)
command -v curl >/dev/null || missing+=(curl)
has nginx nginx || missing+=(nginx-light)
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)  # some packages of nodejs bring it along
command -v promtool >/dev/null || missing+=(prometheus)  # it plays the alerts
command -v go >/dev/null || missing+=(golang-go)
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
  echo "The tests need what these Debian packages hold, and may not install them: ${missing[*]}" >&2
  echo "Install them, or what your system calls them, and try again." >&2
  exit 1
fi

echo "Installing ${missing[*]}"
# Only the programs are needed: this policy keeps their packages from starting services.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
