# shellcheck shell=bash
# The data's way: out of the old database, into a scratch instance to see that it can be done, into the cluster.
# Sourced by `step`. A target is a container with a server that listens at /var/run/postgresql.
# shellcheck disable=SC2154 # from lib.sh and step

scratch=gardenos-scratch

# target CONTAINER COMMAND...: there, with our standard input.
target() { docker exec -i "$@"; }
# Statements with hashes of passwords must not reach a log, even if they fail.
quiet="-c log_statement=none -c log_min_duration_statement=-1 -c log_min_error_statement=panic -c client_min_messages=warning"
target_sql() { docker exec -e "PGOPTIONS=$quiet" "$1" psql -U postgres -XAtq -v ON_ERROR_STOP=1 -d "$2" -c "$3" </dev/null; }

# ---- out of the old database -----------------------------------------------------------------------------

# dump_old DIRECTORY: every database and the roles; complete, or not there at all.
dump_old() {
    local dir=$1 new=$1.new n=0 database
    rm -rf "$new"
    mkdir -p "$new"
    old pg_dumpall --roles-only </dev/null >"$new/roles.sql"
    old_databases >"$new/databases"
    while IFS= read -r database <&3; do
        n=$((n + 1))
        old pg_dump -Fc -d "$database" </dev/null >"$new/$n.dump"
        docker run -i --rm --network none --entrypoint pg_restore "$image" --list <"$new/$n.dump" >"$new/$n.list"
        grep -q '^;     Dumped from database version' "$new/$n.list" || die "the dump of $database has no list of contents"
        say "dumped $database: $(du -h "$new/$n.dump" | cut -f 1), $(grep -c '^[0-9]' "$new/$n.list") entries"
    done 3<"$new/databases"
    # Where extensions are: what uses them names the schema.
    n=0
    while IFS= read -r database <&3; do
        n=$((n + 1))
        old_sql "$database" "select quote_ident(extname) || ' ' || quote_ident(nspname)
            from pg_extension e join pg_namespace s on s.oid = extnamespace where extname <> 'plpgsql'" >"$new/$n.extensions"
    done 3<"$new/databases"
    (cd "$new" && sha256sum -- * >SHA256SUMS)
    sync -f "$new"
    rm -rf "$dir"
    mv "$new" "$dir"
}

# ---- into a target -----------------------------------------------------------------------------------------

# Roles that the target has stay as they are there: their passwords are the stack's. Others come with theirs.
restore_roles() {
    local container=$1 dir=$2 known
    known=$(mktemp)
    target_sql "$container" postgres 'select quote_ident(rolname) from pg_roles' >"$known"
    awk -v known="$known" '
        BEGIN { while ((getline role < known) > 0) there[role] = 1 }
        match($0, /^(CREATE|ALTER) ROLE ("([^"]|"")*"|[^ ;]+)/) {
            role = substr($0, RSTART, RLENGTH); sub(/^[A-Z]+ ROLE /, "", role)
            if (role in there) next
        }
        { print }' "$dir/roles.sql" |
        docker exec -i -e "PGOPTIONS=$quiet" "$container" \
            psql -U postgres -XAtq -v ON_ERROR_STOP=1 -d postgres -f - >/dev/null
    rm -f "$known"
    target_sql "$container" postgres "select rolname from pg_authid where rolcanlogin and rolpassword like 'md5%'" |
        sed "s/^/    cannot log in before it gets a new password (its old one is MD5): /"
}

# An extension that both have goes where the old database has it.
move_extensions() {
    local container=$1 database=$2 file=$3 extension schema now
    while read -r extension schema <&3; do
        now=$(target_sql "$container" "$database" "select quote_ident(nspname) from pg_extension
            join pg_namespace n on n.oid = extnamespace where quote_ident(extname) = '${extension//\'/\'\'}'")
        if [ -z "$now" ] || [ "$now" = "$schema" ]; then continue; fi
        target_sql "$container" "$database" "create schema if not exists $schema; alter extension $extension set schema $schema"
        say "$database: the extension $extension is in the schema $schema, as in the old database"
    done 3<"$file"
}

# contents_missing CONTAINER DATABASE LIST: the lines of LIST whose object the target does not have yet. Rights are
# set all the same: they add to those of the stack.
contents_missing() {
    local there
    there=$(mktemp)
    target "$1" pg_dump -U postgres --schema-only -Fc -d "$2" </dev/null | target "$1" pg_restore --list >"$there"
    awk -v there="$there" '
        function object(line) { sub(/^[0-9]+; [0-9]+ [0-9]+ /, "", line); sub(/ [^ ]*$/, "", line); return line }
        BEGIN { while ((getline line < there) > 0) if (line ~ /^[0-9]/) has[object(line)] = 1 }
        /^[0-9]+; [0-9]+ [0-9]+ (ACL|DEFAULT ACL) / { print; next }
        /^[0-9]/ && object($0) in has { next }
        { print }' "$3"
    rm -f "$there"
}

# restore_database CONTAINER DATABASE DUMP LIST EXTENSIONS
restore_database() {
    local container=$1 database=$2 options=(-d postgres -C)
    if [ -n "$(target_sql "$container" postgres "select 1 from pg_database where datname = '${database//\'/\'\'}'")" ]; then
        move_extensions "$container" "$database" "$5"
        contents_missing "$container" "$database" "$4" | target "$container" sh -c 'cat >/tmp/contents'
        options=(-d "$database" -L /tmp/contents)
    fi
    docker exec -i -e "PGOPTIONS=$quiet" "$container" pg_restore -U postgres --exit-on-error --no-tablespaces \
        --no-subscriptions "${options[@]}" <"$3"
    if [ -z "$(target_sql "$container" "$database" "select 1 from pg_namespace where nspname = 'pgbouncer'")" ]; then
        # What template1 would have given it: PgBouncer's look-up.
        target "$container" psql -U postgres -XAtq -v ON_ERROR_STOP=1 -d "$database" \
            -f /usr/local/share/gardenos/pooler.sql </dev/null
    fi
    target_sql "$container" "$database" analyze
    say "restored $database"
}

# restore_all CONTAINER DIRECTORY
restore_all() {
    local container=$1 dir=$2 n=0 database
    (cd "$dir" && sha256sum --quiet -c SHA256SUMS) || die "the dump in $dir is damaged"
    restore_roles "$container" "$dir"
    while IFS= read -r database <&4; do
        n=$((n + 1))
        restore_database "$container" "$database" "$dir/$n.dump" "$dir/$n.list" "$dir/$n.extensions"
    done 4<"$dir/databases"
}

# ---- the same on both sides? -------------------------------------------------------------------------------

# One statement for each table and sequence: its name, how many rows, a sum over their text.
statements="select format('select %L, count(*), coalesce(sum((''x'' || substr(md5(t::text), 1, 16))::bit(64)::bigint::numeric), 0) from only %s t',
        'table ' || c.oid::regclass, c.oid::regclass)
    from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind = 'r' and relpersistence <> 't' and nspname !~ '^pg_' and nspname <> 'information_schema'
        and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
    order by nspname, relname
\gexec
select format('select %L, last_value, is_called from %s', 'sequence ' || c.oid::regclass, c.oid::regclass)
    from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind = 'S' and relpersistence <> 't' and nspname !~ '^pg_' and nspname <> 'information_schema'
        and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
    order by nspname, relname
\gexec
select 'large objects', count(*) from pg_largeobject_metadata;"

# contents_old, contents_new CONTAINER: the same lines when the same is in both.
contents_old() {
    local database
    local old_options="$old_options $text_options"
    while IFS= read -r database <&5; do
        printf 'database %s\n' "$database"
        old psql -XAtq -v ON_ERROR_STOP=1 -d "$database" -f - <<<"$statements"
    done 5< <(old_databases)
}

contents_new() {
    local database
    while IFS= read -r database <&5; do
        printf 'database %s\n' "$database"
        docker exec -i -e "PGOPTIONS=$text_options" "$1" psql -U postgres -XAtq -v ON_ERROR_STOP=1 -d "$database" -f - <<<"$statements"
    done 5<"$var/final/databases"
}

# ---- steps ---------------------------------------------------------------------------------------------------

start_scratch() {
    docker rm -fv "$scratch" >/dev/null 2>&1 || true
    docker run --detach --name "$scratch" --network none --cap-drop ALL --security-opt no-new-privileges \
        --shm-size 256m --entrypoint sleep "$image" infinity >/dev/null
    target "$scratch" sh -c 'mkdir -p /tmp/agent && cat >/tmp/agent/role-passwords.psql' <"$stack/runtime/postgres-1/role-passwords.psql"
    target "$scratch" initdb -D /var/lib/postgresql/data/scratch --encoding UTF8 --locale en_US.UTF-8 --auth trust >/dev/null </dev/null
    target "$scratch" pg_ctl -D /var/lib/postgresql/data/scratch -w -s -l /tmp/server.log start \
        -o '-c listen_addresses= -c wal_level=logical -c shared_preload_libraries=pg_stat_statements -c fsync=off' </dev/null
    docker exec -e GARDENOS_AGENT_DIR=/tmp/agent "$scratch" /usr/local/share/gardenos/post-bootstrap \
        'host=/var/run/postgresql user=postgres dbname=postgres' </dev/null
}

# A backup that was never restored is a hope: so it is, into a server that nobody else sees.
step_backup() {
    dump_old "$var/backup"
    start_scratch
    # shellcheck disable=SC2064 # the name of now
    trap "docker rm -fv $scratch >/dev/null 2>&1 || true" EXIT
    restore_all "$scratch" "$var/backup"
    say "the backup can be restored: $(tr '\n' ' ' <"$var/backup/databases")came up in a scratch instance"
}

# Everything between the lock on the old tables and its end is one restore: the marker says that the cluster holds
# something, so that a later run makes the cluster anew rather than restore on top.
step_restore() {
    local name
    name=$(leader_container) || die "the cluster has no leader"
    touch "$var/restore-began"
    sync "$var/restore-began"
    dump_old "$var/final"
    restore_all "$name" "$var/final"
    contents_old >"$var/contents"
    contents_new "$name" >"$var/contents.new"
    if ! cmp -s "$var/contents" "$var/contents.new"; then
        diff "$var/contents" "$var/contents.new" | head -n 20 >&2
        die "the new database does not have what the old one has"
    fi
    say "the same in both: $(grep -c '^table' "$var/contents" || true) tables, $(awk -F '|' '/^table/ {rows += $2} END {print rows + 0}' "$var/contents") rows, $(grep -c '^sequence' "$var/contents" || true) sequences"
}

# unchanged: whether the old database still has what was restored.
unchanged() { [ -e "$var/contents" ] && cmp -s "$var/contents" <(contents_old); }

# hold: keeps every table of the old database from being written to (readers go on) while somebody sends a line
# now and then. The locks belong to sessions whose input ends with this process, however it ends: no accident
# leaves the old database locked, nor closed by a cutover that did not end.
hold() {
    local database n=0 pipes=() dir
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # the name of now
    trap "rm -rf $dir; open_unless_cut_over" EXIT
    while IFS= read -r database <&5; do
        n=$((n + 1))
        local pipe
        exec {pipe}> >(old psql -XAtq -v ON_ERROR_STOP=1 -d "$database" -f - >"$dir/$n" 2>&1)
        pipes+=("$pipe")
        cat >&"$pipe" <<'SQL'
begin;
set local lock_timeout = '20s';
do $$
declare name text;
begin
    for name in select c.oid::regclass from pg_class c join pg_namespace n on n.oid = relnamespace
        where relkind in ('r', 'p') and relpersistence <> 't' and nspname !~ '^pg_' and nspname <> 'information_schema' order by c.oid
    loop
        execute format('lock table only %s in share mode', name);
    end loop;
end
$$;
select 'held';
SQL
        for _ in $(seq 300); do
            ! grep -q . "$dir/$n" || break
            sleep 0.1
        done
        grep -qx held "$dir/$n" || die "cannot lock the tables of $database against writes: $(head -n 1 "$dir/$n")"
    done 5< <(old_databases)
    echo held
    while IFS= read -r -t 60 _; do :; done
}

# open_unless_cut_over: a cutover that is at work ends first, one way or the other; the locks last until then.
open_unless_cut_over() {
    exec 7>"$var/cutover.lock"
    flock -w 60 7 || return
    done_before cutover once || release_old
}

# locks_held: whether the sessions of hold have their locks, in every database.
locks_held() {
    [ "$(old_sql "${OLD_DATABASE:-postgres}" "select count(*) from pg_stat_activity
        where state = 'idle in transaction' and query like '%''held''%'")" = "$(old_databases | wc -l)" ]
}

# From now on the new one is the one: a program that was not told can still read from the old one, no more.
step_cutover() {
    # Kept until this process ends, after it has noted that the step is done.
    exec 7>"$var/cutover.lock"
    flock -w 60 7 || die "an earlier run still opens the old database"
    trap 'release_old || true' EXIT
    old_sql "${OLD_DATABASE:-postgres}" "alter system set default_transaction_read_only = on"
    old_sql "${OLD_DATABASE:-postgres}" "select pg_reload_conf()" >/dev/null
    until_true 10 "the old database answers reads only" old_is_closed
    # Who waits for a lock would write when it is gone. Those who hold the locks wait for our next line.
    old_sql "${OLD_DATABASE:-postgres}" "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where backend_type = 'client backend' and pid <> pg_backend_pid() and not (state = 'idle in transaction' and query like '%''held''%')" >/dev/null
    # If the operator's program ended meanwhile, so did the locks, perhaps before writes were refused.
    locks_held || die "the locks on the old database did not last until it was closed: it is open again, run this again"
    trap - EXIT
}

old_is_closed() { ! old_accepts_writes; }

# release_old: the old database is as it was before the cutover.
release_old() {
    [ "$(old_sql "${OLD_DATABASE:-postgres}" "select count(*) from pg_file_settings where name = 'default_transaction_read_only' and sourcefile like '%postgresql.auto.conf'")" = 0 ] ||
        old_sql "${OLD_DATABASE:-postgres}" "alter system reset default_transaction_read_only" || return
    old_sql "${OLD_DATABASE:-postgres}" "select pg_reload_conf()" >/dev/null
}
