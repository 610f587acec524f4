# shellcheck shell=bash
# The stack's way up, step by step. Sourced by `step`.
# shellcheck disable=SC2154 # from lib.sh and step

compose() { "$stack/scripts/compose" "$@"; }
container() { printf 'gardenos-%s-prod' "$1"; }
setting() { sed -n "s/^$1=//p" "$settings" | head -n 1; }
members() { [[ ,$(setting COMPOSE_PROFILES), == *,etcd3,* ]] && echo 1 2 3 || echo 1; }

# up SERVICE...: what Compose has to say only if it fails.
up() {
    local log
    log=$(mktemp)
    compose up -d --no-deps "$@" >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2 && die "Compose cannot start $*"; }
    rm -f "$log"
}

# ---- Docker and images -------------------------------------------------------------------------------------

has_compose() { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; }

step_docker() {
    local wanted=() package
    command -v docker >/dev/null || wanted+=(docker.io)
    command -v openssl >/dev/null || wanted+=(openssl)
    if [ "${#wanted[@]}" -gt 0 ] || ! has_compose; then
        # What an interrupted run left half installed.
        dpkg --configure -a >/dev/null
        apt-get update -qq
        has_compose || for package in docker-compose-v2 docker-compose-plugin docker-compose; do
            # The first that there is: the names differ between distributions.
            if apt-cache show "$package" >/dev/null 2>&1; then wanted+=("$package") && break; fi
        done
        DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends "${wanted[@]}" >"$var/apt.log" 2>&1 ||
            { tail -n 5 "$var/apt.log" >&2 && die "apt-get cannot install ${wanted[*]}"; }
        say "installed ${wanted[*]}"
    fi
    if [ -d /run/systemd/system ]; then systemctl enable --now docker >/dev/null; fi
    until_true 60 "the Docker engine answers" docker info
    has_compose || die "neither docker compose nor docker-compose is there"
}

images=(POSTGRES_IMAGE=full ETCD_IMAGE=etcd HAPROXY_IMAGE=haproxy PGBOUNCER_IMAGE=pgbouncer)

# The programs are built here unless the images were sent.
step_images() {
    local pair name
    for pair in "${images[@]}"; do
        name=$(setting "${pair%%=*}")
        if [ "$BUILD" = yes ]; then
            docker build -f "$base/deploy/Dockerfile" --build-arg "PG_MAJOR=$PG_MAJOR" --target "${pair#*=}" -t "$name" "$base" >"$var/build.log" 2>&1 </dev/null ||
                { tail -n 20 "$var/build.log" >&2 && die "cannot build $name"; }
        fi
        docker image inspect "$name" >/dev/null 2>&1 || die "the image $name is not on the host: --images FILE sends it, --build makes it here"
        say "$name $(docker image inspect -f '{{.Id}}' "$name" | cut -c 8-19)"
    done
}

# ---- settings ----------------------------------------------------------------------------------------------

# change KEY VALUE: only when it says something else.
change() {
    [ "$(setting "$1")" = "$2" ] || {
        bash -c 'source "$0/scripts/lib.sh" && set_setting "$1" "$2"' "$stack" "$1" "$2"
        say "$1=$2"
    }
}

step_settings() {
    local profiles n
    umask 077
    if [ ! -e "$settings" ]; then
        if [ -e "$var/settings" ]; then cp "$var/settings" "$settings"; else cp "$settings.example" "$settings"; fi
        [ "$(setting PUBLIC_HOST)" != gardenos.example.org ] || change PUBLIC_HOST "$PUBLIC_HOST"
    fi
    profiles=$(setting COMPOSE_PROFILES)
    if [ "$WITHOUT_SUPABASE" = yes ]; then
        profiles=$(tr , '\n' <<<"$profiles" | grep -vx supabase | paste -sd ,)
        change COMPOSE_PROFILES "$profiles"
        say "Supabase's services are left out"
    elif [[ ,$profiles, != *,supabase,* ]]; then
        change COMPOSE_PROFILES "${profiles:+$profiles,}supabase"
    fi
    # The old server stays where it is, so the nodes' own ports on the host may have to be others.
    if [ -z "$(setting POSTGRES_1_PORT)" ] && ss -Hltn '( sport = :5432 or sport = :5433 or sport = :5434 )' | grep -q . && ! docker ps --format '{{.Names}}' | grep -q gardenos-postgres; then
        for n in 1 2 3; do change "POSTGRES_${n}_PORT" "2543$((n + 1))"; done
    fi
    "$stack/scripts/prepare" </dev/null >"$var/prepare.log"
    grep -v '^==> \(wrote\|runtime/\)' "$var/prepare.log" | sed 's/^==>/   /'
    say "wrote $(grep -c '^==> wrote' "$var/prepare.log" || true) files in certs and runtime"
    # Links for the systemd units and for people.
    [ -e /opt/gardenos-prod ] || ln -s "$stack" /opt/gardenos-prod
}

# ---- the cluster -------------------------------------------------------------------------------------------

# A cluster that an earlier run began to fill is made anew: it has nothing but a copy of what the old one had.
start_over_if_half_filled() {
    local n project
    [ -e "$var/restore-began" ] || return 0
    ! done_before restore once || return 0
    project=$(setting COMPOSE_PROJECT_NAME)
    say "an earlier restore did not end, or is out of date: the new cluster is made anew"
    compose down --remove-orphans >/dev/null 2>&1 </dev/null
    for n in 1 2 3; do docker volume rm -f "${project}_postgres-$n-data" "${project}_etcd-$n-data" >/dev/null; done
    docker volume rm -f "${project}_backups" >/dev/null
    rm -f "$var/restore-began" "$var/contents"
}

etcd_answers() { docker exec "$(container "etcd-$1")" etcdctl --command-timeout=3s --endpoints=https://127.0.0.1:2379 endpoint health; }

step_etcd() {
    local n services=()
    start_over_if_half_filled
    for n in $(members); do services+=("etcd-$n"); done
    up "${services[@]}"
    for n in $(members); do until_true 60 "etcd-$n answers" etcd_answers "$n"; done
}

# rest N PATH: what node N's REST answers.
rest() { docker exec "$(container "postgres-$1")" curl -fsS --max-time 3 --cacert /etc/gardenos/certs/ca.crt "https://localhost:8008$2"; }

cluster() {
    local n
    for n in 1 2 3; do rest "$n" /cluster 2>/dev/null && return; done
    return 1
}

leader_container() {
    local n
    for n in 1 2 3; do
        if rest "$n" /primary >/dev/null 2>&1; then container "postgres-$n" && return; fi
    done
    return 1
}

whole() { leader_container && [ "$(cluster | grep -o '"state": *"streaming"' | wc -l)" = 2 ]; }

step_nodes() {
    up postgres-1 postgres-2 postgres-3
    until_true 180 "one leader, two standbys that stream" whole
}

# through PORT DATABASE STATEMENT: as an application would, with TLS and a password, which is on no command line.
through() {
    setting POSTGRES_PASSWORD | docker exec -i -e PGOPTIONS="-c client_min_messages=warning" "$(leader_container)" bash -c \
        'IFS= read -r PGPASSWORD; export PGPASSWORD; exec psql -XAtq -v ON_ERROR_STOP=1 -c "$2" \
            "host=haproxy port=$0 user=postgres dbname=$1 connect_timeout=3 sslmode=verify-full sslrootcert=/etc/gardenos/certs/ca.crt"' "$1" "$2" "$3"
}

writable() { [ "$(through 5000 postgres 'select pg_is_in_recovery()')" = f ]; }
published() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

step_haproxy() {
    docker run --rm -v "$stack/runtime/haproxy:/etc/gardenos/haproxy:ro" -v "$stack/certs/haproxy:/etc/gardenos/certs:ro" \
        "$(setting HAPROXY_IMAGE)" -c </dev/null >"$var/haproxy.log" 2>&1 || { cat "$var/haproxy.log" >&2 && die "HAProxy does not take its configuration"; }
    up haproxy
    until_true 60 "port 5000 takes writes" writable
    published 5000 || die "port 5000 is not published on 127.0.0.1"
}

# ---- Supabase ----------------------------------------------------------------------------------------------

supabase=(auth rest realtime imgproxy meta storage studio gateway)

healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$1")" = healthy ]; }

supabase_name() { if [ "$1" = realtime ]; then echo realtime-dev.gardenos-realtime-prod; else container "$1"; fi; }

# images_of SERVICE...: docker-compose 1.29 lists the services of all profiles, monitoring among them.
images_of() {
    compose config </dev/null | awk -v wanted=" $* " '
        /^  [^ ]+:$/ {name = $1; sub(/:$/, "", name)}
        /^    image: / && index(wanted, " " name " ") {print $2}' | sort -u
}

step_supabase() {
    local service image images
    [ "$WITHOUT_SUPABASE" = no ] || { say "left out: --without-supabase" && return; }
    images=$(images_of "${supabase[@]}")
    [ -n "$images" ] || die "Compose names no image of Supabase's services"
    for image in $images; do
        # Those that are here, because they were sent or built, need no registry.
        docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" >"$var/pull.log" 2>&1 </dev/null ||
            { tail -n 3 "$var/pull.log" >&2 && die "the image $image cannot be pulled; run this again when it can, or with --without-supabase"; }
    done
    up "${supabase[@]}"
    for service in "${supabase[@]}"; do until_true 180 "$service is well" healthy "$(supabase_name "$service")"; done
}

# gateway PATH: the status of a request with the anonymous key, which is on no command line.
gateway() {
    printf 'header = "apikey: %s"\n' "$(setting ANON_KEY)" |
        curl -sS -o /dev/null -w '%{http_code}' --max-time 5 -K - "http://127.0.0.1:8000$1"
}

verify_supabase() {
    local path status
    [ "$WITHOUT_SUPABASE" = no ] || return 0
    for path in /auth/v1/health /rest/v1/ /storage/v1/status /realtime/v1/api/tenants/realtime-dev/health; do
        status=$(gateway "$path")
        case $status in 2??) say "gateway $path: $status" ;; *) die "the gateway answers $status for $path" ;; esac
    done
}

# ---- verification ------------------------------------------------------------------------------------------

seen_by_readers() { [ "$(through 5001 postgres 'select pg_is_in_recovery(), count(*) from gardenos_deploy_check')" = 't|1' ]; }
leads_else() { whole && [ "$(leader_container)" != "$1" ]; }

step_verify() {
    local before n
    through 5000 postgres 'drop table if exists gardenos_deploy_check; create table gardenos_deploy_check(n int); insert into gardenos_deploy_check values (1)'
    until_true 20 "a row written through 5000 is read through 5001" seen_by_readers
    through 5000 postgres 'drop table gardenos_deploy_check'
    for n in 1 2 3; do rest "$n" /health >/dev/null || die "the REST of node $n does not answer"; done
    say "REST of all three nodes answers"
    verify_supabase
    before=$(leader_container)
    docker exec "$before" gardenctl switchover gardenos --force </dev/null >"$var/switchover.log" 2>&1 || { cat "$var/switchover.log" >&2 && die "the switchover fails"; }
    until_true 60 "another node leads, two standbys stream" leads_else "$before"
    until_true 30 "port 5000 takes writes after the switchover" writable
    if [ -e "$var/contents" ]; then
        contents_new "$(leader_container)" | cmp -s - "$var/contents" || [ "$WITHOUT_SUPABASE" = no ] || die "the data is not the same after the switchover"
        say "the data is the same after the switchover"
    fi
}

# The first full backup of the new cluster, and timers for the next ones.
step_backups() {
    "$stack/scripts/backup" full >"$var/pgbackrest.log" 2>&1 </dev/null || { tail -n 5 "$var/pgbackrest.log" >&2 && die "the first backup of the new cluster fails"; }
    say "pgBackRest has a full backup"
    if [ -d /run/systemd/system ]; then
        cp "$stack"/systemd/* /etc/systemd/system/
        systemctl daemon-reload
        systemctl enable --now --quiet gardenos-backup@full.timer gardenos-backup@diff.timer gardenos-certificates.timer gardenos-restore-drill.timer
        say "timers for backups, certificates and restore drills"
    else
        say "no systemd here: run scripts/backup from something else"
    fi
}

# ---- back --------------------------------------------------------------------------------------------------

# The new stack ends, its volumes and settings stay; the old database is what it was.
rollback() {
    local name n=0 database
    if done_before cutover once; then
        # Written since the cutover, and only there.
        name=$(leader_container) || [ "$YES" = yes ] || die "the new cluster has no leader, so what was written to it since the cutover cannot be saved; --yes goes back all the same"
        if [ -n "$name" ]; then
            mkdir -p "$var/after-cutover"
            while IFS= read -r database <&3; do
                n=$((n + 1))
                docker exec "$name" pg_dump -U postgres -Fc -d "$database" </dev/null >"$var/after-cutover/$n.dump"
            done 3<"$var/final/databases"
            say "what the new cluster has is in $var/after-cutover"
        fi
    fi
    if [ "$WITHOUT_OLD" = no ]; then
        release_old
        until_true 10 "the old database takes writes" old_accepts_writes
    fi
    if [ -e "$settings" ]; then compose down --remove-orphans >/dev/null 2>&1 </dev/null || die "Compose cannot stop the new stack"; fi
    forget restore supabase verify backups cutover etcd nodes haproxy
    say "the new stack is stopped; its volumes, settings and dumps are still there"
}
