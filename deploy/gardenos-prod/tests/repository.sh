# shellcheck shell=bash
# Steps of deploy/gardenos-prod/test: backups, the archive and what is restored from them, in the volume and in S3. Sourced.
# shellcheck disable=SC2154 # project, work, cache and stack are set by the test

backups() {
    local moment rows
    "$stack/scripts/backup" full >"$work/backup.log" 2>&1 || { tail "$work/backup.log" && die "the backup fails"; }
    "$stack/scripts/backup" check >>"$work/backup.log" 2>&1 || { tail "$work/backup.log" && die "the check fails"; }
    sql 5000 "create table pitr(t text); insert into pitr values ('kept')" 
    rows=$(sql 5000 'select count(*) from ledger')
    sleep 1
    moment=$(sql 5000 'select clock_timestamp()')
    sleep 1
    sql 5000 "insert into pitr values ('a mistake'); drop table ledger"
    sql 5000 'select pg_switch_wal()' >/dev/null
    "$stack/scripts/backup" check >>"$work/backup.log" 2>&1
    "$stack/scripts/backup" info | sed 's/^/    /'
    "$stack/scripts/restore-drill" --time "$moment" --query 'select * from pitr' --query 'select count(*) from ledger' | tee "$work/drill.log" | sed 's/^/    /'
    grep -qx "$rows" "$work/drill.log" || die "the drill does not have the $rows rows of the moment"
    ! grep -q mistake "$work/drill.log" || die "the drill has rows of after the moment"
    "$stack/scripts/restore-cluster" --yes --time "$moment" >"$work/restore.log" 2>&1 || { tail -n 40 "$work/restore.log" && die "the restore fails"; }
    wait_for 120 "the cluster is whole after the restore" whole
    [ "$(sql 5000 'select count(*) from ledger')" = "$rows" ] || die "not the rows of the moment"
    [ "$(sql 5000 'select * from pitr')" = kept ] || die "not the state of the moment"
    none_lost
    # A node that has lost everything comes back from the repository, not from the primary.
    "$stack/scripts/backup" full >>"$work/backup.log" 2>&1
    compose rm -sf postgres-3 >/dev/null 2>&1
    docker volume rm gardenos-test_postgres-3-data >/dev/null
    compose up -d --no-deps postgres-3 >/dev/null 2>&1
    wait_for 120 "a lost node is back" whole
    docker exec gardenos-postgres-3-prod grep -q '^LABEL: pgBackRest' /var/lib/postgresql/data/pgdata/backup_label.old ||
        die "not from the repository"
    echo "    it came from the repository"
    sql 5000 "drop table pitr"
}

# The same with a bucket of an S3 server that has a certificate of the stack's own CA; then in the volume again.
backups_s3() {
    local key objects
    key=$(openssl rand -hex 20)
    start_s3
    settings_are BACKUP_TYPE=s3 BACKUP_S3_ENDPOINT=s3.gardenos.test:9000 BACKUP_S3_REGION=us-east-1 BACKUP_S3_BUCKET=gardenos-backups \
        "BACKUP_S3_KEY=${key:0:20}" "BACKUP_S3_KEY_SECRET=$key" BACKUP_S3_CA_FILE=/etc/gardenos/certs/ca.crt
    objects=$(objects_in_s3)
    [ "$objects" = 0 ] || die "the bucket is not empty"
    in_volume >"$work/volume.before"
    backups
    objects=$(objects_in_s3)
    [ "$objects" -gt 20 ] || die "there are $objects objects in the bucket"
    in_volume | cmp - "$work/volume.before" || die "something was written to the volume"
    echo "    $objects objects in the bucket, the volume is as it was"
    # An endpoint whose certificate is of another CA is not talked to.
    settings_are BACKUP_S3_CA_FILE=
    ! "$stack/scripts/backup" check >"$work/backup.log" 2>&1 || die "a certificate of an unknown authority is taken"
    grep -qi certificate "$work/backup.log" || { tail "$work/backup.log" && die "it fails for another reason"; }
    settings_are BACKUP_TYPE=local
    # A push that is under way ends with what it began with; the next one goes to the volume.
    wait_for 90 "WAL goes to the volume again" "$stack/scripts/backup" check
    docker rm -fv "$s3" >/dev/null
}

# settings_are KEY=VALUE...: for the containers, too.
settings_are() {
    local pair
    for pair in "$@"; do sed -i "s|^${pair%%=*}=.*|$pair|" "$stack/.env.production"; done
    "$stack/scripts/configure" >/dev/null
}

in_volume() { docker run --rm --volume gardenos-test_backups:/volume --entrypoint find gardenos/postgres:15 /volume -type f | sort; }

s3=garden-s3-$$

# start_s3: moto, from the Python package index, in a container on the nodes' network; with HAProxy for TLS, since moto's
# own server ends connections in a way that pgBackRest takes for an attack.
start_s3() {
    local certs=$work/s3-certs
    if [ ! -x "$cache/s3/bin/moto_server" ]; then
        # For the base image's Python, whatever there is here.
        "$cache/bin/pip" --disable-pip-version-check --quiet install --target "$cache/s3" --python-version 3.11 --only-binary=:all: \
            'moto[s3]==5.2.5' flask flask-cors
    fi
    printf 'FROM debian:bookworm-slim\nRUN apt-get update && apt-get install -y --no-install-recommends curl haproxy python3\n' |
        docker build -q -t gardenos/test-s3:1 - >"$work/build-s3.log" 2>&1
    mkdir "$certs"
    openssl req -new -newkey rsa:2048 -nodes -keyout "$certs/s3.key" -subj /CN=s3.gardenos.test 2>/dev/null |
        openssl x509 -req -CA "$stack/certs/ca/current.crt" -CAkey "$stack/certs/ca/ca.key" -days 2 -sha256 -set_serial 1 \
            -extfile <(echo subjectAltName=DNS:s3.gardenos.test) -out "$certs/s3.crt" 2>/dev/null
    cat "$certs/s3.crt" "$certs/s3.key" >"$certs/s3.pem"
    cat >"$certs/haproxy.cfg" <<'END'
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen s3
    bind :9000 ssl crt /certs/s3.pem
    server moto 127.0.0.1:9001
END
    docker run --detach --name "$s3" --network gardenos-test_database --network-alias s3.gardenos.test \
        --volume "$cache/s3:/s3:ro" --volume "$certs:/certs:ro" --env PYTHONPATH=/s3 --env PYTHONDONTWRITEBYTECODE=1 \
        --env S3_IGNORE_SUBDOMAIN_BUCKETNAME=true gardenos/test-s3:1 \
        sh -c 'python3 /s3/bin/moto_server -H 127.0.0.1 -p 9001 & exec haproxy -db -f /certs/haproxy.cfg' >/dev/null
    wait_for 60 "S3 answers" in_s3 -o /dev/null https://localhost:9000/
    in_s3 -o /dev/null -X PUT https://localhost:9000/gardenos-backups
}

in_s3() { docker exec "$s3" curl -fsSk --aws-sigv4 aws:amz:us-east-1:s3 --user anybody:anything "$@"; }

# objects_in_s3: how many the bucket has; of a page, which is enough to see that there are some.
objects_in_s3() { in_s3 'https://localhost:9000/gardenos-backups?list-type=2' | { grep -o '<Key>' || true; } | wc -l; }
