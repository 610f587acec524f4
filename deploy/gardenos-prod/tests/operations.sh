# shellcheck shell=bash
# Steps of deploy/gardenos-prod/test: what docs/how-to/operate-gardenos.md tells operators to do, as it has it. Sourced.
# shellcheck disable=SC2154 # project, work and stack are set by the test

etcd_member_lost() {
    start_writer
    sleep 2
    docker rm -f gardenos-etcd-2-prod >/dev/null
    docker volume rm gardenos-test_etcd-2-data >/dev/null
    sleep 5
    "$stack/scripts/replace-etcd-member" 2 | sed 's/^/    /'
    sleep 3
    finish writer
    at_most "writes stood still" "$(field writer longest_gap_s)" 5
    whole || die "the cluster is not whole"
    none_lost
}

# All of etcd, as the operations guide has it.
etcd_lost() {
    start_writer
    sleep 2
    compose rm -sf etcd-1 etcd-2 etcd-3 >/dev/null 2>&1
    docker volume rm gardenos-test_etcd-{1,2,3}-data >/dev/null
    sed -i 's/^ETCD_\([123]\)_STATE=.*/ETCD_\1_STATE=new/' "$stack/.env.production"
    compose up -d etcd-1 etcd-2 etcd-3 >/dev/null 2>&1
    # Not just whole: for as long as its lease holds, the primary goes on whatever etcd knows.
    wait_for 90 "etcd knows the cluster again" known_to_etcd
    wait_for 90 "the cluster is whole with an etcd that knew nothing" whole
    finish writer
    none_lost
}

known_to_etcd() {
    [ -n "$(docker exec gardenos-etcd-1-prod etcdctl --endpoints=https://127.0.0.1:2379 get --print-value-only /service/gardenos/initialize)" ]
}

new_certificates() {
    local before
    before=$(served)
    start_writer
    sleep 1
    "$stack/scripts/make-certs" --renew >/dev/null
    "$stack/scripts/reload"
    wait_for 30 "new certificates are served" other_than "$before"
    # A failover is the proof that all parts still trust each other.
    docker exec gardenos-postgres-1-prod gardenctl switchover gardenos --force >/dev/null
    wait_for 60 "the cluster is whole after a switchover" whole
    finish writer
    none_lost
}

served() {
    local port
    for port in 8008 8009 8010; do
        openssl s_client -connect "localhost:$port" </dev/null 2>/dev/null | openssl x509 -noout -serial
    done
    for port in 5432 5433 5434; do
        openssl s_client -starttls postgres -connect "localhost:$port" </dev/null 2>/dev/null | openssl x509 -noout -serial
    done
}

other_than() {
    local now
    now=$(served)
    [ "$(echo "$now" | wc -l)" = 6 ] && ! grep -qxF "$1" <<<"$now"
}

# Another build of the image: here one more label.
minor_upgrade() {
    local before wanted n
    before=$(docker image inspect -f '{{.Id}}' gardenos/postgres:15)
    printf 'FROM gardenos/postgres:15\nLABEL rebuilt=yes\n' | docker build -q -t gardenos/postgres:15 - >/dev/null
    wanted=$(docker image inspect -f '{{.Id}}' gardenos/postgres:15)
    [ "$wanted" != "$before" ] || die "the image is the same"
    start_writer
    sleep 1
    "$stack/scripts/upgrade-nodes" 2>&1 | sed 's/^/    /'
    sleep 1
    finish writer
    at_most "writes stood still" "$(field writer longest_gap_s)" 5
    for n in 1 2 3; do
        [ "$(docker inspect -f '{{.Image}}' "gardenos-postgres-$n-prod")" = "$wanted" ] || die "node $n has the old image"
    done
    whole || die "the cluster is not whole"
    none_lost
    docker ps --format '{{.ID}}' | sort >"$work/containers"
    "$stack/scripts/upgrade-nodes" >/dev/null
    docker ps --format '{{.ID}}' | sort | cmp - "$work/containers" || die "a second upgrade changes something"
}

replace_node() {
    local standby=1
    [ "$(leader)" != 1 ] || standby=2
    ! "$stack/scripts/replace-node" "$(leader)" 2>/dev/null || die "the leader's data is thrown away"
    start_writer
    sleep 1
    "$stack/scripts/replace-node" "$standby" 2>&1 | sed 's/^/    /'
    finish writer
    at_most "writes stood still" "$(field writer longest_gap_s)" 5
    none_lost
}

rotate_secrets() {
    local old
    old=$(secret POSTGRES_PASSWORD)
    # Its session was there before and goes on.
    start_writer
    sleep 1
    "$stack/scripts/rotate-secrets" >"$work/rotate.log" 2>&1 || { cat "$work/rotate.log" && die "the rotation fails"; }
    ! grep -qF -e "$old" -e "$(secret POSTGRES_PASSWORD)" "$work/rotate.log" || die "a password is printed"
    finish writer
    at_most "writes stood still" "$(field writer longest_gap_s)" 5
    [ "$old" != "$(secret POSTGRES_PASSWORD)" ] || die "the password is the same"
    ! PGPASSWORD=$old psql -XAtqw "host=localhost port=5000 user=postgres dbname=postgres sslmode=require" -c 'select 1' 2>/dev/null ||
        die "the old password is still good"
    sql 5000 'select 1' >/dev/null
    psql -XAtq "$(dsn 5000 authenticator AUTHENTICATOR_PASSWORD)" -c 'select 1' >/dev/null
    curl -fsS -o /dev/null -u "admin:$(secret STATISTICS_PASSWORD)" http://localhost:7000/stats || die "the statistics do not know the new password"
    # Replication, rewind and REST with the new ones: a switchover, and a standby from nothing.
    docker exec gardenos-postgres-1-prod gardenctl switchover gardenos --force >/dev/null
    wait_for 60 "the cluster is whole after a switchover" whole
    replace_node
    # A rotation that was interrupted before the database was told.
    sed -i 's/^MONITOR_PASSWORD=.*/MONITOR_PASSWORD=changed0123456789changed0123456789/' "$stack/.env.production"
    "$stack/scripts/rotate-secrets" --apply >/dev/null
    psql -XAtq "$(dsn 5000 gardenos_monitor MONITOR_PASSWORD)" -c 'select 1' >/dev/null
}

# From 15 to 17, which the next Debian has; back; and there again for good.
major_upgrade() {
    base_image trixie
    docker build -q --build-arg BASE_IMAGE=debian:trixie-slim --build-arg RUST_IMAGE=debian:bookworm-slim --build-arg PG_MAJOR=17 \
        -f "$project/deploy/Dockerfile" --target full -t gardenos/postgres:17 "$project" >/dev/null
    ! "$stack/scripts/upgrade-major" gardenos/postgres:15 2>/dev/null || die "an upgrade to the same version"
    start_writer
    sleep 1
    finish writer
    sql 5000 "create database shop"
    sql 5000 "create sequence numbers start 500; select nextval('numbers')" >/dev/null
    upgraded
    sql 5000 "create table of_17()"
    "$stack/scripts/upgrade-major" --back 2>&1 | sed 's/^/    /'
    wait_for 60 "port 5000 takes writes" writable
    [[ $(sql 5000 'show server_version') == 15.* ]] || die "not the old version"
    [ -z "$(sql 5000 "select to_regclass('of_17')")" ] || die "not the old data"
    none_lost
    upgraded
    "$stack/scripts/upgrade-major" --done | sed 's/^/    /'
    docker exec gardenos-postgres-1-prod gardenctl switchover gardenos --force >/dev/null
    wait_for 60 "the cluster is whole after a switchover" whole
    "$stack/scripts/backup" check >"$work/backup.log" 2>&1 || { tail "$work/backup.log" && die "the archive does not work"; }
}

upgraded() {
    "$stack/scripts/upgrade-major" gardenos/postgres:17 2>&1 | sed 's/^/    /'
    wait_for 60 "port 5000 takes writes" writable
    [[ $(sql 5000 'show server_version') == 17.* ]] || die "not the new version"
    [ "$(sql 5000 "select nextval('numbers')")" -gt 500 ] || die "the sequence began anew"
    whole || die "the cluster is not whole"
    none_lost
}
