# shellcheck shell=bash
# A step of deploy/gardenos-prod/test: the slim image beside a PostgreSQL of somebody else's image, both ways that the
# Dockerfile tells, as two members of one cluster. Sourced.
# shellcheck disable=SC2154 # project and work are set by the test

sidecar_names=(garden-sidecar-etcd garden-sidecar-copied garden-sidecar-mounted garden-sidecar-operator)
sidecar_network=garden-sidecar

sidecar() {
    local name
    base_image bookworm
    images
    no_sidecar
    sidecar_images
    docker network create "$sidecar_network" >/dev/null
    docker run --detach --name garden-sidecar-etcd --network "$sidecar_network" gardenos/etcd:1 --data-dir /var/lib/etcd/member \
        --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://garden-sidecar-etcd:2379 >/dev/null
    sidecar_member operator gardenos/agent:1 --entrypoint sleep -- infinity
    # As in the Dockerfile: the programs copied into the image, or on a volume that the slim image fills.
    sidecar_member copied gardenos/test-copied:1 --
    wait_for 90 "the member with copied programs leads" leads_sidecar copied
    docker volume create garden-sidecar >/dev/null
    docker run --rm --volume garden-sidecar:/usr/local/bin --entrypoint true gardenos/agent:1
    sidecar_member mounted gardenos/test-postgres:15 --user postgres --volume garden-sidecar:/garden:ro \
        --entrypoint /garden/garden-agent -- /etc/gardenos/agent
    wait_for 90 "the member with mounted programs streams" streams_sidecar mounted
    for name in copied mounted; do
        [ "$(docker exec "garden-sidecar-$name" cat /proc/1/comm)" = garden-agent ] || die "the agent is not the first process"
    done
    sidecar_sql copied "create table kept(who text); insert into kept values ('copied')"
    docker stop garden-sidecar-copied >/dev/null
    wait_for 30 "the other leads after docker stop" leads_sidecar mounted
    sidecar_sql mounted "insert into kept values ('mounted')"
    docker start garden-sidecar-copied >/dev/null
    wait_for 60 "the stopped one streams" streams_sidecar copied
    docker exec garden-sidecar-operator gardenctl switchover sidecar --candidate copied --force >/dev/null
    wait_for 60 "and leads after a switchover" leads_sidecar copied
    wait_for 60 "the other one streams" streams_sidecar mounted
    [ "$(sidecar_sql copied "select string_agg(who, ' ' order by who) from kept")" = "copied mounted" ] || die "rows are missing"
    docker exec garden-sidecar-operator gardenctl list | sed 's/^/    /'
    no_sidecar
}

no_sidecar() {
    docker rm -fv "${sidecar_names[@]}" >/dev/null 2>&1 || true
    docker volume rm garden-sidecar >/dev/null 2>&1 || true
    docker network rm "$sidecar_network" >/dev/null 2>&1 || true
}

# sidecar_images: a PostgreSQL that knows nothing of us, and what the Dockerfile's lines make of it.
sidecar_images() {
    local name
    mkdir -p "$work/sidecar"
    cat >"$work/sidecar/postgres.Dockerfile" <<'END'
FROM debian:bookworm-slim
RUN mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf && \
    apt-get update && apt-get install -y --no-install-recommends postgresql-15
END
    sed -n '/^# ---- the agent alone/,/^FROM base AS slim/s/^#   //p' "$project/deploy/Dockerfile" |
        sed '/^docker /d; s/^FROM .*/FROM gardenos\/test-postgres:15/' >"$work/sidecar/copied.Dockerfile"
    [ "$(wc -l <"$work/sidecar/copied.Dockerfile")" = 4 ] || { cat "$work/sidecar/copied.Dockerfile" && die "these are not the Dockerfile's four lines"; }
    for name in postgres=postgres:15 copied=copied:1; do
        docker build -t "gardenos/test-${name#*=}" - <"$work/sidecar/${name%=*}.Dockerfile" >"$work/build-sidecar.log" 2>&1 ||
            { tail -n 20 "$work/build-sidecar.log" && die "cannot build ${name%=*}"; }
    done
}

# sidecar_member NAME IMAGE OPTIONS... -- ARGUMENTS...
sidecar_member() {
    local name=$1 image=$2 options=()
    shift 2
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    mkdir -p "$work/sidecar/$name"
    cat >"$work/sidecar/$name/patroni.yml" <<END
scope: sidecar
name: $name
etcd3: {hosts: ["garden-sidecar-etcd:2379"]}
restapi: {listen: "0.0.0.0:8008", connect_address: "garden-sidecar-$name:8008"}
bootstrap:
  dcs: {ttl: 30}
  initdb: [encoding: UTF8, data-checksums, auth-local: peer, auth-host: scram-sha-256]
postgresql:
  listen: 0.0.0.0:5432
  connect_address: garden-sidecar-$name:5432
  bin_dir: /usr/lib/postgresql/15/bin
  data_dir: /var/lib/postgresql/sidecar
  pgpass: /var/lib/postgresql/.pgpass-sidecar
  authentication:
    superuser: {username: postgres, password: only-for-this-test}
    replication: {username: replicator, password: only-for-this-test}
  pg_hba: [local all all peer, host all all samenet scram-sha-256, host replication replicator samenet scram-sha-256]
  parameters: {unix_socket_directories: /var/run/postgresql, shared_buffers: 32MB}
END
    docker run --detach --name "garden-sidecar-$name" --network "$sidecar_network" --cap-drop ALL --security-opt no-new-privileges \
        --volume "$work/sidecar/$name:/etc/gardenos/agent:ro" --env PATRONICTL_CONFIG_FILE=/etc/gardenos/agent \
        "${options[@]}" "$image" "$@" >/dev/null
}

sidecar_sql() { docker exec "garden-sidecar-$1" psql -XAtq -v ON_ERROR_STOP=1 -d postgres -c "$2"; }
from_operator() { docker exec garden-sidecar-operator curl -fsS --max-time 3 "$@"; }
# The agent leads a moment before PostgreSQL takes writes.
leads_sidecar() {
    from_operator -o /dev/null "http://garden-sidecar-$1:8008/primary" && [ "$(sidecar_sql "$1" 'select pg_is_in_recovery()')" = f ]
}
streams_sidecar() { from_operator "http://garden-sidecar-$1:8008/replica" | grep -q '"replication_state": *"streaming"'; }
