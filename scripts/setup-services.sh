#!/usr/bin/env bash
# Sees to it that the tests find Redis, RabbitMQ, PostgreSQL and pgbouncer: they start servers of their own. Installs
# Debian's when it may; where it may not, the tests skip and say so, except with CI set: there a missing one is a failure.
set -euo pipefail

missing() {
    command -v redis-server >/dev/null || echo redis-server
    command -v rabbitmq-server >/dev/null || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || echo rabbitmq-server
    command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || echo postgresql
    command -v java >/dev/null || echo openjdk-17-jre-headless  # for Spark
    command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || echo pgbouncer
}

packages=$(missing)
if [ -z "$packages" ]; then exit 0; fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${packages//$'\n'/, } for the tests …" >&2
    log=$(mktemp)
    policy=/usr/sbin/policy-rc.d
    trap 'rm -f "$log" ${own_policy:-}' EXIT
    # Debian starts a service when it is installed, unless this says no.
    if [ ! -e "$policy" ]; then
        own_policy=$policy
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # several words are meant
    { apt-get update && apt-get install -y --no-install-recommends $packages; } >"$log" 2>&1 || tail -n 20 "$log" >&2
    packages=$(missing)
    if [ -z "$packages" ]; then exit 0; fi
fi

echo "not installed: ${packages//$'\n'/, }: tests that need it cannot run" >&2
echo "hint: apt-get install ${packages//$'\n'/ } (as root), or your system's own packages" >&2
if [ -n "${CI:-}" ]; then exit 1; fi
