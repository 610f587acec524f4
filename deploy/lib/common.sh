# shellcheck shell=bash
# What ./deploy/demo and ./deploy/test share: messages, root rights, packages. Sourced, not run.

# The project's directory, whatever directory the caller is in.
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { printf '==> %s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root or sudo: $*"
    fi
}

# Debian starts the servers it installs. While the guard is there, it does not; a policy that was
# there before is left alone.
policy=/usr/sbin/policy-rc.d
guarded=no

guard_services() {
    [ -e "$policy" ] && return
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    guarded=yes
}

unguard_services() {
    [ "$guarded" = yes ] || return 0
    as_root rm -f "$policy"
    guarded=no
}

# No cluster of Debian's own beside ours; a configuration that exists is left alone.
no_debian_cluster() {
    local config=/etc/postgresql-common/createcluster.conf
    [ -e "$config" ] && return
    as_root mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | as_root tee "$config" >/dev/null
}

# install_missing PACKAGE=PROBE...: installs each package whose probe, a path, is not there.
install_missing() {
    local pair wanted=() before
    for pair in "$@"; do
        [ -e "${pair#*=}" ] || wanted+=("${pair%%=*}")
    done
    [ "${#wanted[@]}" -eq 0 ] && return
    command -v apt-get >/dev/null || die "missing: ${wanted[*]}; install them your system's way"
    say "installing ${wanted[*]}"
    # A test may have something to clean up when it ends.
    before=$(trap -p EXIT)
    trap unguard_services EXIT
    guard_services
    case " ${wanted[*]} " in *" postgresql-15 "*) no_debian_cluster ;; esac
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
        "${wanted[@]}"
    unguard_services
    trap - EXIT
    eval "$before"
}

# What building needs: a linker, protoc with the files it includes for etcd's protocol, certificates for
# the registry. protoc only recommends those files, and recommendations are not installed.
build_packages=(
    gcc=/usr/bin/gcc
    libc6-dev=/usr/include/stdio.h
    protobuf-compiler=/usr/bin/protoc
    libprotobuf-dev=/usr/include/google/protobuf/descriptor.proto
    ca-certificates=/etc/ssl/certs/ca-certificates.crt
)

# What a cluster needs.
cluster_packages=(
    etcd-server=/usr/bin/etcd
    haproxy=/usr/sbin/haproxy
)
postgres_package=(postgresql-15=/usr/lib/postgresql/15/bin/postgres)

# cargo, also where rustup put it and no login shell ran.
find_cargo() {
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || die "no cargo: install Rust 1.88 or later, https://rustup.rs"
}
