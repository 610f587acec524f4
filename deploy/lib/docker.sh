# shellcheck shell=bash
# What the tests in containers share. Sourced after common.sh, not run.
# shellcheck disable=SC2154 # work is set by the test

# base_image SUITE: the Dockerfile's base, where no registry can be reached: Debian itself, by debootstrap.
base_image() {
    local suite=$1 root
    docker image inspect "debian:$suite-slim" >/dev/null 2>&1 && return
    install_missing debootstrap=/usr/sbin/debootstrap
    root=$(mktemp -d /var/tmp/gardenos-base.XXXXXX)
    debootstrap --variant=minbase "$suite" "$root" http://deb.debian.org/debian >"$work/debootstrap.log" 2>&1
    # As the published image: without the archives that it was made from.
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | docker import - "debian:$suite-slim"
    rm -rf "$root"
}
