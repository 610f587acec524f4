# shellcheck shell=bash
# What the scripts share: places, messages, settings. Sourced, not run.

# shellcheck disable=SC2034 # used by those who source it
stack=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
settings=${GARDENOS_ENV:-$stack/.env.production}
# User and group of every container of our own, one that no host has otherwise; files are for the group only.
gardenos_gid=15432

say() { printf '==> %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "this needs root: it gives files to the containers' group"
}

# setting KEY: prints its value, nothing when there is none. Values are plain text, never evaluated.
setting() {
    local line
    line=$(grep -m 1 "^$1=" "$settings") || return 0
    printf '%s' "${line#*=}"
}

# set_setting KEY VALUE: changes the line, or adds it. The value stays off command lines, which everybody
# on the host can read.
set_setting() {
    local key=$1 value=$2 new
    new=$(mktemp "$settings.XXXXXX")
    chmod 600 "$new"
    local line found=no
    while IFS= read -r line || [ -n "$line" ]; do
        if [ "${line%%=*}" = "$key" ] && [ "$found" = no ]; then
            line="$key=$value"
            found=yes
        fi
        printf '%s\n' "$line"
    done <"$settings" >"$new"
    [ "$found" = yes ] || printf '%s=%s\n' "$key" "$value" >>"$new"
    mv "$new" "$settings"
}

# place FILE MODE: standard input becomes FILE, for the containers' group; says so when it changed. Written
# beside it and renamed, so that no reader sees half of it.
place() {
    local file=$1 mode=$2 new
    new=$(mktemp "$file.XXXXXX")
    cat >"$new"
    chgrp "$gardenos_gid" "$new"
    chmod "$mode" "$new"
    if cmp -s "$new" "$file"; then
        rm -f "$new"
    else
        mv "$new" "$file"
        say "wrote ${file#"$stack"/}"
    fi
}

# place_dir DIR MODE: a directory for the containers' group.
place_dir() {
    mkdir -p "$1"
    chgrp "$gardenos_gid" "$1"
    chmod "$2" "$1"
}

# The file for the containers' names: gardenos-SERVICE-prod.
container() { printf 'gardenos-%s-prod' "$1"; }

# leader: prints the service name of the node that leads; fails when there is none.
leader() {
    local n
    for n in 1 2 3; do
        if docker exec "$(container "postgres-$n")" curl -fsS -o /dev/null --max-time 3 \
            --cacert /etc/gardenos/certs/ca.crt https://localhost:8008/primary 2>/dev/null; then
            printf 'postgres-%s' "$n"
            return
        fi
    done
    return 1
}

# rest N PATH: what the REST of node N says, asked inside its container.
rest() {
    docker exec "$(container "postgres-$1")" curl -fsS --max-time 3 --cacert /etc/gardenos/certs/ca.crt "https://localhost:8008$2"
}

# whole: one leader, two standbys that stream.
whole() {
    local n
    leader >/dev/null || return
    for n in 1 2 3; do
        ! rest "$n" /cluster 2>/dev/null | grep -o '"state": *"streaming"' | grep -c . | grep -qx 2 || return 0
    done
    return 1
}

# wait_whole SECONDS
wait_whole() {
    local begin=$SECONDS
    until whole; do
        [ $((SECONDS - begin)) -lt "$1" ] || die "not one leader and two streaming standbys after $1 s: scripts/compose ps, docker logs gardenos-postgres-N-prod"
        sleep 1
    done
}
