#!/usr/bin/env bash
# Prepares a developer's machine for an application against the GardenOS server: looks whether it can be reached,
# fetches what a developer may have over ssh, puts it into .env.local, tries the database.
#
#   setup-local-for-hetzner-gardenos.sh [OPTIONS] [USER@]HOST
#
# Keys of .env.local that are not in the template stay as they are, and so do its comments. What it was before is
# kept beside it when something changes. Prints no secret. Can be run again: it changes nothing then.
#
#   --env FILE             (default .env.local)
#   --database-host NAME   how this machine reaches 5000 and 5001 (default HOST)
#   --read-write           the database role may change rows; else it reads only
#   --ssh-config FILE      as in ssh -F
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
template=$here/gardenos-prod/.env.local.hetzner-gardenos
env_file=.env.local database_host='' host='' ssh_options=() rights=''

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
say() { printf '==> %s\n' "$*"; }

while [ $# -gt 0 ]; do
    case $1 in
        --env) env_file=${2:?--env needs a file} && shift ;;
        --database-host) database_host=${2:?--database-host needs a name} && shift ;;
        --ssh-config) ssh_options=(-F "${2:?--ssh-config needs a file}") && shift ;;
        --read-write) rights=--read-write ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d' && exit ;;
        -*) die "unknown option $1; see --help" ;;
        *) [ -z "$host" ] || die "one host, please" && host=$1 ;;
    esac
    shift
done
[ -n "$host" ] || die "which host? see --help"
database_host=${database_host:-${host#*@}}
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

on_host() {
    ssh "${ssh_options[@]}" -o BatchMode=yes -o ConnectTimeout=10 -- "$host" "$@"
}

# ---- 1: can it be reached? -----------------------------------------------------------------------------------

# shellcheck disable=SC2016 # for the inner bash
reached() { timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$database_host" "$1" 2>/dev/null; }

reach() {
    local port bad=0
    say "ports of $database_host"
    for port in 5000 5001; do
        if reached "$port"; then echo "    $port answers"; else echo "    $port does not answer" && bad=1; fi
    done
    # These are for the server itself, or behind its web server, unless somebody chose otherwise.
    for port in 7000 8000; do
        if reached "$port"; then echo "    $port answers"; else echo "    $port is not published, which is usual"; fi
    done
    [ "$bad" -eq 0 ] || die "the database cannot be reached from here: BIND_DATABASE in .env.production of the server, its firewall, or a tunnel (ssh -L 5000:127.0.0.1:5000 -L 5001:127.0.0.1:5001 $host, then --database-host localhost)"
    on_host true </dev/null || die "cannot log in to $host with ssh"
}

# ---- 2: what a developer may have ------------------------------------------------------------------------------

fetch() {
    say "settings from $host"
    on_host "/opt/gardenos-prod/scripts/developer-settings $rights" </dev/null >"$work/settings" || die "the server does not give them"
    # Absolute, since the application may run anywhere.
    ca_file=$(cd "$(dirname "$env_file")" && pwd)/gardenos-ca.crt
    on_host 'cat /opt/gardenos-prod/certs/clients/ca.crt' </dev/null >"$work/ca.crt"
    grep -q 'BEGIN CERTIFICATE' "$work/ca.crt" || die "the server has no CA certificate"
    if ! cmp -s "$work/ca.crt" "$ca_file"; then
        install -m 644 "$work/ca.crt" "$ca_file"
        echo "    wrote $ca_file"
    fi
    { cat "$work/settings" && printf 'CA_FILE=%s\nDATABASE_HOST=%s\n' "$ca_file" "$database_host"; } >"$work/values"
}

# ---- 3: .env.local -----------------------------------------------------------------------------------------------

# The template with its values: values may have any character, so no sed.
filled() {
    awk -v values="$work/values" '
        BEGIN { while ((getline line < values) > 0) { at = index(line, "="); value[substr(line, 1, at - 1)] = substr(line, at + 1) } }
        /^#/ { next }
        { for (key in value) while ((at = index($0, "@" key "@")) > 0)
              $0 = substr($0, 1, at - 1) value[key] substr($0, at + length(key) + 2)
          print }' "$template"
}

# Lines of the old file in their order, those with our keys replaced; ours that were not there at the end.
merged() {
    awk -v ours="$work/filled" '
        BEGIN { while ((getline line < ours) > 0) { key = line; sub(/=.*/, "", key); order[++n] = key; new[key] = line } }
        { key = $0; sub(/=.*/, "", key); sub(/^(export )?[ \t]*/, "", key)
          if (key in new) { if (!(key in done)) print new[key]; done[key] = 1 } else print }
        END { for (i = 1; i <= n; i++) if (!(order[i] in done)) print new[order[i]] }' "$1"
}

write() {
    local backup
    say "$env_file"
    filled >"$work/filled"
    if [ -e "$env_file" ]; then merged "$env_file" >"$work/new"; else merged /dev/null >"$work/new"; fi
    if [ -e "$env_file" ] && cmp -s "$work/new" "$env_file"; then
        echo "    nothing to change"
        return
    fi
    if [ -e "$env_file" ]; then
        backup=$env_file.backup-$(date +%Y%m%d-%H%M%S)
        # Never over an earlier one.
        [ ! -e "$backup" ] || backup+=-$$
        cp -p "$env_file" "$backup"
        echo "    what it was is in $backup"
    fi
    # Beside and renamed, so that nobody reads half of it.
    cp "$work/new" "$env_file.new"
    mv "$env_file.new" "$env_file"
    echo "    set $(cut -d = -f 1 "$work/filled" | paste -sd ' ')"
}

# ---- 4: does it work? --------------------------------------------------------------------------------------------

# The address is read from a file: a command line can be seen by others.
ask() {
    local key=$1 statement=$2
    PGPASSWORD=$(sed -n 's/^DEVELOPER_PASSWORD=//p' "$work/values") PGCONNECT_TIMEOUT=5 \
        psql -XAtq -v ON_ERROR_STOP=1 -c "$statement" \
        "$(sed -n "s/^$key=//p" "$env_file" | sed 's#^postgres://\([^:]*\):[^@]*@#postgres://\1@#')"
}

try() {
    local version
    say "the database"
    command -v psql >/dev/null || { echo "    no psql here: not tried" && return; }
    version=$(ask DATABASE_URL 'show server_version') || die "the database does not let us in on 5000"
    [ "$(ask DATABASE_URL 'select pg_is_in_recovery()')" = f ] || die "5000 does not reach the primary"
    echo "    5000: PostgreSQL $version, the primary"
    [ -n "$(ask DATABASE_READ_URL 'select pg_is_in_recovery()')" ] || die "the database does not let us in on 5001"
    echo "    5001: $([ "$(ask DATABASE_READ_URL 'select pg_is_in_recovery()')" = t ] && echo 'a standby' || echo 'the primary, since no standby is well')"
}

reach
fetch
write
try
say "ready"
cat <<TEXT
    database  $database_host:5000 (writes), $database_host:5001 (reads), role gardenos_developer, $([ -n "$rights" ] && echo "may change rows" || echo "reads only")
    Supabase  $(sed -n 's/^SUPABASE_PUBLIC_URL=//p' "$work/values")
    settings  $env_file, for you only
    next      npm run dev, then http://localhost:3000
TEXT
