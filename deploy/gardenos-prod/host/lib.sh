# shellcheck shell=bash
# What the steps of a deployment share on the host: messages, the old database, the state file. Sourced, or sent
# to the host in front of check.sh. Options come as variables, see ../../deploy-gardenos-prod-to-hetzner.sh.
# shellcheck disable=SC2034 # used by those who source it

base=/opt/gardenos
stack=$base/deploy/gardenos-prod
settings=$stack/.env.production
# Dumps and the state file: root's only, since dumps have people's data and hashes of passwords.
var=/var/lib/gardenos
state=$var/state

say() { printf '    %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# until_true SECONDS WHAT COMMAND...: waits for the command to succeed.
until_true() {
    local limit=$1 what=$2 begin=$SECONDS
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $((SECONDS - begin)) -lt "$limit" ] || die "$what: not within $limit s"
        sleep 1
    done
    say "$what: after $((SECONDS - begin)) s"
}

# ---- the old database ------------------------------------------------------------------------------------

# old COMMAND...: one of PostgreSQL's programs beside the old server, as somebody who may do everything.
# `cd /`: the user postgres cannot read root's directory. What reads nothing from us must not take our input.
old() {
    if [ -n "${OLD_CONTAINER:-}" ]; then
        docker exec -i -e "PGUSER=${OLD_USER:-postgres}" -e "PGOPTIONS=$old_options" "$OLD_CONTAINER" "$@"
    else
        (cd / && exec runuser -u postgres -- env "PGUSER=${OLD_USER:-postgres}" "PGPORT=${OLD_PORT:-5432}" \
            "PGOPTIONS=$old_options" "$@")
    fi
}

# Rows must look the same on both sides when they are compared as text.
text_options="-c datestyle=ISO -c timezone=UTC -c extra_float_digits=1 -c bytea_output=hex -c intervalstyle=postgres -c search_path=pg_catalog -c row_security=off -c statement_timeout=0"
old_options="-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0"

# old_sql DATABASE STATEMENT
old_sql() { old psql -XAtq -v ON_ERROR_STOP=1 -d "$1" -c "$2" </dev/null; }

# old_databases: their names, one a line.
old_databases() { old_sql "${OLD_DATABASE:-postgres}" "select datname from pg_database where datallowconn and not datistemplate order by 1"; }

# old_accepts_writes: succeeds if it does, without writing anything.
old_accepts_writes() {
    [ "$(old_sql "${OLD_DATABASE:-postgres}" "select not pg_is_in_recovery() and not current_setting('transaction_read_only')::bool")" = t ]
}

# ---- the state file: STEP KEY TIME, one line for each step that is done -----------------------------------

done_before() { [ -e "$state" ] && awk -v step="$1" -v key="$2" '$1 == step && $2 == key {found = 1} END {exit !found}' "$state"; }

forget() {
    [ -e "$state" ] || return 0
    local step new
    new=$(mktemp "$state.XXXXXX")
    cp "$state" "$new"
    for step in "$@"; do sed -i "/^$step /d" "$new"; done
    mv "$new" "$state"
}

remember() {
    forget "$1"
    printf '%s %s %s\n' "$1" "$2" "$(date -u +%FT%TZ)" >>"$state"
    sync "$state"
}
