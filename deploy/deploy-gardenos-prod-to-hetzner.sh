#!/usr/bin/env bash
# Puts the GardenOS production stack on a server that runs a PostgreSQL, with its data, over ssh:
#
#   deploy-gardenos-prod-to-hetzner.sh [OPTIONS] [USER@]HOST
#
# Can be run again at any time: steps that are done are not done again (a file on the host knows them), what was
# interrupted is done from there on. Until the last step, nothing of the old database is changed; while its data is
# copied for good it answers reads only, by locks that end with this program. Afterwards it is closed for writes,
# and --rollback opens it again.
#
#   --dry-run              looks at the host, writes nothing, says what would be done
#   --rollback             stops the new stack and opens the old database
#   --verify               does the verification again, which includes a switchover
#   --settings FILE        .env.production for the first run (default: the template, with HOST as PUBLIC_HOST)
#   --images FILE          archive of the stack's images (docker save), sent to the host
#   --build                the host builds the images from this source tree
#   --without-supabase     database, HAProxy and etcd only
#   --without-old          there is no old database
#   --old-port PORT        of the old server on the host (default 5432)
#   --old-user ROLE        a superuser of it (default postgres)
#   --old-container NAME   it runs in this container
#   --backup-dir DIR       where a copy of the backup is kept here (default ./gardenos-backups)
#   --ssh-config FILE      as in ssh -F
#   --yes                  asks nothing
#
# docs/how-to/deploy-gardenos.md says what each step does and what to do when one fails.
# shellcheck disable=SC2034 # options() sends the variables with large names to the host
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
host_scripts=$project/deploy/gardenos-prod/host
mode=deploy host='' settings='' images='' backup_dir=gardenos-backups ssh_options=()
WITHOUT_SUPABASE=no WITHOUT_OLD=no BUILD=no YES=no PG_MAJOR=15
OLD_PORT=5432 OLD_USER=postgres OLD_CONTAINER='' OLD_DATABASE=postgres

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
say() { printf '==> %s\n' "$*"; }

while [ $# -gt 0 ]; do
    case $1 in
        --dry-run | --rollback | --verify) mode=${1#--} ;;
        --without-supabase) WITHOUT_SUPABASE=yes ;;
        --without-old) WITHOUT_OLD=yes ;;
        --build) BUILD=yes ;;
        --yes) YES=yes ;;
        --settings | --images | --backup-dir | --ssh-config | --old-port | --old-user | --old-container)
            [ $# -ge 2 ] || die "$1 needs a value"
            case $1 in
                --settings) settings=$2 ;;
                --images) images=$2 ;;
                --backup-dir) backup_dir=$2 ;;
                --ssh-config) ssh_options=(-F "$2") ;;
                --old-port) OLD_PORT=$2 ;;
                --old-user) OLD_USER=$2 ;;
                --old-container) OLD_CONTAINER=$2 ;;
            esac
            shift
            ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d' && exit ;;
        -*) die "unknown option $1; see --help" ;;
        *) [ -z "$host" ] || die "one host, please" && host=$1 ;;
    esac
    shift
done
[ -n "$host" ] || die "which host? see --help"
for file in "$settings" "$images"; do [ -z "$file" ] || [ -r "$file" ] || die "cannot read $file"; done
[ -z "$settings" ] || PG_MAJOR=$(sed -n 's/^PG_MAJOR=//p' "$settings" | grep . || echo "$PG_MAJOR")
PUBLIC_HOST=${host#*@}

steps=(docker settings images backup etcd nodes haproxy restore supabase verify backups cutover)
declare -A does=(
    [docker]="install Docker and Compose where they are missing"
    [images]="see that the stack's images are there"
    [settings]="make secrets, certificates, parameters and configuration where they are missing"
    [backup]="back the old database up, and restore the backup into a scratch instance"
    [etcd]="start etcd"
    [nodes]="start the three PostgreSQL nodes"
    [haproxy]="start HAProxy"
    [restore]="copy the data, the old database being locked against writes, and compare"
    [supabase]="start Supabase's services"
    [verify]="write, read, look at every part, switch over"
    [backups]="make the first backup of the new cluster; timers for the next"
    [cutover]="close the old database for writes"
)
[ "$WITHOUT_OLD" = no ] || steps=(docker settings images etcd nodes haproxy supabase verify backups)
STEPS=${steps[*]}

# ---- the host ----------------------------------------------------------------------------------------------

on_host() {
    ssh "${ssh_options[@]}" -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -- "$host" "$@"
}

# Options as assignments for the shell over there.
options() {
    local name
    for name in WITHOUT_SUPABASE WITHOUT_OLD BUILD YES PG_MAJOR PUBLIC_HOST OLD_PORT OLD_USER OLD_CONTAINER OLD_DATABASE STEPS; do
        printf '%s=%q ' "$name" "${!name}"
    done
}

there=/opt/gardenos/deploy/gardenos-prod/host/step
# step NAME: on the host, without our input.
step() { on_host "$(options) bash $there $1" </dev/null; }

# beat: a line now and then, as long as this program lives.
beat() { while kill -0 $$ 2>/dev/null && echo; do sleep 3; done; }

check() {
    say "check: whether the host can take it"
    on_host true </dev/null || die "cannot log in to $host with ssh; nothing was done"
    (printf '%s; export LC_ALL=C\n' "$(options)" && cat "$host_scripts/lib.sh" "$host_scripts/check.sh") | on_host bash -s ||
        die "$host cannot take the stack as it is; nothing was done"
}

# ---- what is sent ------------------------------------------------------------------------------------------

# tree: an archive of what the host needs, the same bytes for the same files.
tree() {
    local what=(deploy/gardenos-prod deploy/monitoring deploy/Dockerfile deploy/docker)
    [ "$BUILD" = no ] || what+=(Cargo.toml Cargo.lock proto agent chaos-tests deploy/prebuilt)
    tar -C "$project" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --exclude-vcs \
        --exclude=.env.production --exclude='.env.production.??????' --exclude=docker-compose.override.yml \
        --exclude=deploy/gardenos-prod/certs --exclude=deploy/gardenos-prod/runtime \
        --exclude=deploy/gardenos-prod/test --exclude=deploy/gardenos-prod/tests -cf - "${what[@]}"
}

# send FILE PLACE MODE: unless it is there already; a file that is there is not written to, but replaced.
send() {
    local sum
    sum=$(sha256sum <"$1" | cut -d ' ' -f 1)
    if on_host "sha256sum $2 2>/dev/null | grep -q '^$sum '" </dev/null; then return; fi
    on_host "umask 077 && cat >$2.new && chmod $3 $2.new && sync -f $2.new && mv $2.new $2" <"$1"
    printf '    sent %s, %s\n' "$(basename "$1")" "$(du -h "$1" | cut -f 1)"
}

copy() {
    local sum
    say "copy: send the stack's files"
    on_host 'umask 077 && mkdir -p /var/lib/gardenos && umask 022 && mkdir -p /opt/gardenos' </dev/null
    sum=$(tree | sha256sum | cut -d ' ' -f 1)
    if [ "$(on_host 'cat /var/lib/gardenos/tree 2>/dev/null || true' </dev/null)" = "$sum" ]; then
        echo "    done before"
    else
        # Secrets, certificates and what was changed there are not in it.
        tree | on_host "tar -C /opt/gardenos --no-same-owner -xf - && sync && echo $sum >/var/lib/gardenos/tree"
        echo "    sent"
    fi
    [ -z "$settings" ] || send "$settings" /var/lib/gardenos/settings 600
}

# The archive is loaded once: its sum stays on the host, the archive does not.
copy_images() {
    local sum
    [ -n "$images" ] || return 0
    sum=$(sha256sum <"$images" | cut -d ' ' -f 1)
    [ "$(on_host 'cat /var/lib/gardenos/images 2>/dev/null || true' </dev/null)" != "$sum" ] || return 0
    on_host 'docker load --quiet' <"$images" | sed 's/^/    /'
    on_host "echo $sum >/var/lib/gardenos/images" </dev/null
}

# A copy of the backup that is not on the host.
fetch_backup() {
    local dir=$backup_dir/$PUBLIC_HOST
    umask 077
    mkdir -p "$dir"
    if ! on_host 'cat /var/lib/gardenos/backup/SHA256SUMS' </dev/null | cmp -s - "$dir/SHA256SUMS"; then
        on_host 'tar -C /var/lib/gardenos/backup -cf - .' </dev/null | tar -C "$dir" -xf -
        (cd "$dir" && sha256sum --quiet -c SHA256SUMS) || die "the copy of the backup in $dir is damaged"
        echo "    a copy is in $dir"
    fi
}

# ---- the whole ---------------------------------------------------------------------------------------------

current='' holding=no

# What happened, and how the old database is.
ended() {
    local status=$?
    if [ "$status" -eq 0 ] || [ -z "$current" ]; then return; fi
    echo "error: the step '$current' did not end well (${does[$current]:-})" >&2
    if [ "$WITHOUT_OLD" = no ]; then
        if step old >/dev/null 2>&1; then
            echo "       the old database takes writes as before; run this again to go on from here" >&2
        else
            echo "       whether the old database takes writes could not be seen from here; --rollback makes sure of it" >&2
        fi
    fi
}
trap ended EXIT
trap 'exit 130' INT TERM HUP

# The program here and the one there live as long as each other.
open_session() {
    local answer lines
    exec {lines}< <(beat | on_host "$(options) bash $there session")
    read -r -t 40 answer <&"$lines" || answer="no answer"
    [ "$answer" = yours ] || die "another deployment to $host is at work ($answer)"
}

hold_old() {
    local answer lines
    [ "$WITHOUT_OLD" = no ] && [ "$holding" = no ] || return 0
    exec {lines}< <(beat | on_host "$(options) bash $there hold" 2>&1)
    read -r -t 120 answer <&"$lines" || answer="no answer"
    [ "$answer" = held ] || die "the old database cannot be locked against writes: $answer"
    holding=yes
    echo "    the old database is locked against writes until the cutover"
}

# What an earlier run copied counts only if nobody has written to the old database since: looked at first, and
# again when nobody can any more.
still_fresh() {
    local pending
    current=restore
    step fresh
    pending=" $(step pending | tr '\n' ' ')"
    if [[ $pending == *" cutover "* && $pending != *" restore "* ]]; then
        hold_old
        step fresh
    fi
}

run_steps() {
    local pending name
    [ "$WITHOUT_OLD" = yes ] || still_fresh
    pending=" $(step pending | tr '\n' ' ')"
    for name in "${steps[@]}"; do
        current=$name
        say "$name: ${does[$name]}"
        if [[ $pending != *" $name "* ]]; then
            echo "    done before"
            continue
        fi
        case $name in
            images) copy_images ;;
            # From here on nothing that is written to the old database would reach the new one.
            restore | supabase | verify | backups | cutover) [[ $pending != *" cutover "* ]] || hold_old ;;
        esac
        step "$name"
        [ "$name" != backup ] || fetch_backup
    done
}

dry_run() {
    local pending=" ${steps[*]} " name
    if on_host "test -e $there" </dev/null; then pending=" $(step pending | tr '\n' ' ')"; fi
    for name in "${steps[@]}"; do
        if [[ $pending == *" $name "* ]]; then printf 'would %-9s %s\n' "$name" "${does[$name]}"; else printf 'done  %-9s %s\n' "$name" "${does[$name]}"; fi
    done
}

where_things_are() {
    cat <<TEXT
Where things are on $PUBLIC_HOST:
    writes 5000, reads 5001 (TLS, password), statistics http://127.0.0.1:7000/stats (user admin)
    the stack              /opt/gardenos-prod, scripts/compose ps
    passwords and keys     /opt/gardenos-prod/.env.production, for root only
    CA for clients         /opt/gardenos-prod/certs/clients/ca.crt
    dumps of the old data  /var/lib/gardenos/{backup,final}; a copy of the backup in $backup_dir/$PUBLIC_HOST
    the old database       answers reads; --rollback opens it for writes again
TEXT
}

check
case $mode in
    dry-run) dry_run ;;
    rollback)
        if [ "$YES" = no ]; then
            read -r -p "Stop the new stack on $host and open the old database? Type yes: " answer
            [ "$answer" = yes ] || die "nothing was changed"
        fi
        open_session
        step rollback
        say "rolled back"
        ;;
    *)
        current=copy
        copy
        open_session
        if [ "$mode" = verify ]; then step again; fi
        run_steps
        current=''
        where_things_are
        ;;
esac
