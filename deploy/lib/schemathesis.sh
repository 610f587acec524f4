#!/usr/bin/env bash
# Throws at least ten thousand requests, good and bad, at the leader of a running three-node cluster, made
# from its own OpenAPI document by schemathesis (Python package index, into target/). Status 0 only if no
# answer was wrong and the cluster has a leader afterwards.
#
#   ./deploy/lib/schemathesis.sh [DEMO]     DEMO: the program that makes the cluster
# shellcheck disable=SC2317 # finish() is called by the trap
set -euo pipefail
# shellcheck source=deploy/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=deploy/lib/versions.sh
source "$project/deploy/lib/versions.sh"

demo=$(realpath "${1:-$project/target/release/demo}")
first_port=${GARDEN_TEST_PORTS:-26000}
requests_min=10000
examples=${GARDEN_EXAMPLES:-250}
venv=$project/target/cache/schemathesis
program=$venv/bin/schemathesis

if [ ! -x "$program" ]; then
    python_venv "$venv"
    "$venv/bin/pip" --disable-pip-version-check --quiet install 'schemathesis==4.32.5'
fi

# Its own temporary directory, so that --stop ends no other cluster.
TMPDIR=$(mktemp -d)
export TMPDIR
chmod 755 "$TMPDIR"
finish() {
    cd /
    "$demo" --stop >/dev/null || true
    rm -rf "$TMPDIR"
}
trap finish EXIT
# What it leaves beside itself goes there too.
cd "$TMPDIR"

"$demo" --keep --ports "$first_port" >"$TMPDIR/demo.log" 2>&1 || die "no cluster: $(tail -5 "$TMPDIR/demo.log")"

# leader: the URL of the member that leads; tried for half a minute.
leader() {
    local port attempt
    for attempt in $(seq 30); do
        for port in $((first_port + 21)) $((first_port + 22)) $((first_port + 23)); do
            if curl -sf -o /dev/null --max-time 2 "http://127.0.0.1:$port/primary"; then
                echo "http://127.0.0.1:$port"
                return
            fi
        done
        [ "$attempt" = 30 ] || sleep 1
    done
    die "the cluster has no leader"
}

url=$(leader)
report=$TMPDIR/report.log
say "schemathesis against $url"
status=0
"$program" --config-file "$project/deploy/lib/schemathesis.toml" run "$url/openapi.json" \
    --url "$url" --phases examples,coverage,fuzzing --max-examples "$examples" --workers 4 \
    --request-timeout 60 --suppress-health-check all --no-color >"$report" 2>&1 || status=$?
[ "$status" -eq 0 ] || tail -n 200 "$report"
line=$(grep -E '^ *[0-9]+ generated' "$report" || true)
say "${line:-no result}"
generated=$(grep -oE '[0-9]+ generated' <<<"$line" | cut -d' ' -f1 || true)
[ "${generated:-0}" -ge "$requests_min" ] || die "fewer than $requests_min requests: ${generated:-0}"
say "the leader afterwards: $(leader)"
exit "$status"
