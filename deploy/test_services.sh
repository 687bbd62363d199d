#!/usr/bin/env bash
# Starts a throw-away PostgreSQL on loopback for the registry's tests, runs the given command with
# AMALGAM_TEST_POSTGRES_URL set, and stops it again. Where no PostgreSQL is installed it runs the command without.
#
#   deploy/test_services.sh COMMAND [ARGUMENT…]
set -euo pipefail

if [ -n "${AMALGAM_TEST_POSTGRES_URL:-}" ]; then
    exec "$@"
fi
initdb=$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -1 || true)
if [ -z "$initdb" ]; then
    echo "No PostgreSQL is installed: the registry is tested on SQLite only." >&2
    exec "$@"
fi
bin=$(dirname "$initdb")
folder=$(mktemp -d)
as=()
# PostgreSQL refuses to run as root; its own user comes with the package.
if [ "$(id -u)" = 0 ]; then
    if ! id postgres >/dev/null 2>&1; then
        echo "PostgreSQL cannot run as root and there is no user postgres: the registry is tested on SQLite only." >&2
        rm -rf "$folder"
        exec "$@"
    fi
    chown postgres "$folder"
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
stop() {
    (cd / && "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate -w stop >/dev/null 2>&1) || true
    rm -rf "$folder"
}
trap stop EXIT
cd_back=$PWD
cd /
"${as[@]}" "$initdb" -D "$folder/data" -U amalgam -A trust --no-sync >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
"${as[@]}" "$bin/pg_ctl" -D "$folder/data" -w -o "-c listen_addresses=127.0.0.1 -p $port -k $folder -c fsync=off" \
    -l "$folder/log" start >>"$folder.log" 2>&1 || { cat "$folder.log" "$folder/log"; exit 1; }
rm -f "$folder.log"
cd "$cd_back"
export AMALGAM_TEST_POSTGRES_URL="postgresql://amalgam@127.0.0.1:$port/postgres"
"$@"
