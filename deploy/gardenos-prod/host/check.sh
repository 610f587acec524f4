# shellcheck shell=bash
# Whether this host can take the stack. Writes nothing; sent to the host behind lib.sh, so nothing here may read
# standard input. Each finding is one line; all are told before it fails.
# shellcheck disable=SC2154 # from lib.sh

bad=0
# The nodes' least, 768 MB each, are half the memory; docs say what the rest is for.
memory_min_mb=4608
disk_min_mb=6000

finding() {
    printf 'error: %s\n' "$*" >&2
    bad=1
}

check_system() {
    local id=unknown memory
    [ "$(id -u)" -eq 0 ] || finding "this needs root on the host"
    # shellcheck source=/dev/null
    [ ! -r /etc/os-release ] || id=$(. /etc/os-release && echo "$ID $VERSION_ID")
    case $id in
        debian* | ubuntu*) say "system: $id" ;;
        *) command -v docker >/dev/null || finding "the system is $id: Docker and Compose must be installed by hand, then run this again" ;;
    esac
    [ "$(uname -m)" = x86_64 ] || say "the images must be built for $(uname -m)"
    memory=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
    if [ "$memory" -lt "$memory_min_mb" ] && ! grep -qs '^NODES_MEMORY_MB=.' "$settings"; then
        finding "$memory MB of memory, $memory_min_mb are needed"
    fi
    command -v openssl >/dev/null || say "openssl will be installed"
}

check_disk() {
    local old_mb=0 free place=/var/lib/docker needed
    [ -d "$place" ] || place=/var/lib
    if [ "$WITHOUT_OLD" = no ]; then
        old_mb=$(old_sql "${OLD_DATABASE:-postgres}" 'select coalesce(sum(pg_database_size(oid)), 0)::bigint / 1000000 from pg_database') || old_mb=0
    fi
    free=$(df -Pm "$place" | awk 'NR == 2 {print $4}')
    # Three nodes, a scratch instance, two dumps, a backup.
    needed=$((disk_min_mb + old_mb * 6))
    [ -e "$state" ] || [ "$free" -ge "$needed" ] || finding "$free MB free in $place, $needed are needed"
}

check_old() {
    local version
    [ "$WITHOUT_OLD" = no ] || { say "no old database: --without-old" && return; }
    if ! version=$(old_sql "${OLD_DATABASE:-postgres}" 'show server_version_num'); then
        finding "the old database does not answer; see --old-port, --old-container, --old-user, --without-old"
        return
    fi
    version=$((version / 10000))
    [ "$version" -le "$PG_MAJOR" ] ||
        finding "the old database is PostgreSQL $version, the new one $PG_MAJOR: data goes only to the same or a later version"
    [ "$(old_sql "${OLD_DATABASE:-postgres}" 'select rolsuper from pg_roles where rolname = current_user')" = t ] ||
        finding "${OLD_USER:-postgres} is not a superuser of the old database; --old-user names one"
    say "old database: PostgreSQL $version, $(old_databases | tr '\n' ' ')"
}

# ours: whether the port is published by a container of this stack.
ours() { command -v docker >/dev/null && [ -n "$(docker ps -q --filter name=gardenos- --filter "publish=$1" 2>/dev/null)" ]; }

# 5432 to 5434 are not looked at: when the old server has one, the nodes get others.
check_ports() {
    local port ports=(5000 5001 7000 8008 8009 8010)
    [ "$WITHOUT_SUPABASE" = yes ] || ports+=(8000 3001)
    for port in "${ports[@]}"; do
        if ss -Hltn "sport = :$port" | grep -q . && ! ours "$port"; then
            finding "port $port is taken: $(ss -Hltnp "sport = :$port" | awk '{print $NF; exit}')"
        fi
    done
}

check_system
check_old
check_disk
check_ports
[ "$bad" -eq 0 ] || exit 1
[ ! -e "$state" ] || { say "done before:" && sed 's/^\(\S*\) \S* \(.*\)/        \1, \2/' "$state"; }
