# shellcheck shell=bash
# Steps of deploy/gardenos-prod/test: Supabase's services, by what stands in for them (supabase/): the compose file's
# start order, environment and health checks, requests through the gateway, new keys. Sourced.
# shellcheck disable=SC2154 # project, work and stack are set by the test

services=(auth rest realtime imgproxy meta storage studio gateway)

supabase() {
    local service
    stand_ins | sed 's/^/    /'
    sed -i 's/^COMPOSE_PROFILES=.*/COMPOSE_PROFILES=etcd3,supabase/' "$stack/.env.production"
    # All of it from nothing, by one command.
    compose down >>"$work/down.log" 2>&1
    compose up -d >>"$work/up.log" 2>&1 || { tail -n 20 "$work/up.log" && die "compose up fails"; }
    wait_for 120 "every service of Supabase's is healthy" services_healthy
    wait_for 60 "the cluster is whole" whole
    for service in "${services[@]}"; do
        [ "$(docker inspect -f '{{.RestartCount}}' "$(service_container "$service")")" = 0 ] ||
            die "$service was started before port 5000 took writes"
    done
    echo "    none of them had to be started twice"
    through_gateway "$(secret ANON_KEY)" "$(secret SERVICE_ROLE_KEY)"
    docker exec gardenos-postgres-1-prod gardenctl switchover gardenos --force >/dev/null
    wait_for 30 "the gateway's answers are the same after a switchover" through_gateway "$(secret ANON_KEY)" "$(secret SERVICE_ROLE_KEY)"
    wait_for 60 "the cluster is whole" whole
}

service_container() { if [ "$1" = realtime ]; then echo realtime-dev.gardenos-realtime-prod; else container "$1"; fi; }

services_healthy() {
    local service
    for service in "${services[@]}"; do
        [ "$(docker inspect -f '{{.State.Health.Status}}' "$(service_container "$service")")" = healthy ] || return
    done
}

# answers STATUS PATH [CURL OPTIONS]: whether the gateway does.
answers() {
    local wanted=$1 path=$2 status
    shift 2
    status=$(curl -sS -o "$work/answer" -w '%{http_code}' --max-time 10 "$@" "http://localhost:8000$path")
    [ "$status" = "$wanted" ] || { echo "    the gateway answers $status for $path, not $wanted" >&2 && return 1; }
}

# through_gateway ANON SERVICE: who may what with which key.
through_gateway() {
    local anon="apikey: $1" service="apikey: $2" path
    for path in /auth/v1/health /rest/v1/ /realtime/v1/api/tenants/realtime-dev/health; do
        answers 401 "$path" || return
        answers 401 "$path" -H "apikey: ${1%????}AAAA" || return
        answers 200 "$path" -H "$anon" || return
    done
    answers 200 /storage/v1/status || return
    answers 200 /rest/v1/ -H "$anon" && grep -q '"role": "anon"' "$work/answer" || return
    answers 200 /rest/v1/ -H "$service" && grep -q '"role": "service_role"' "$work/answer" || return
    answers 401 /auth/v1/admin/users -H "$anon" -H "Authorization: Bearer $1" || return
    answers 200 /auth/v1/admin/users -H "$service" -H "Authorization: Bearer $2" || return
    answers 200 /storage/v1/bucket -H "Authorization: Bearer $1" || return
    answers 403 /pg/health -H "$anon" && answers 200 /pg/health -H "$service" || return
    answers 401 /api/platform/profile || return
    answers 200 /api/platform/profile -u "$(secret DASHBOARD_USERNAME):$(secret DASHBOARD_PASSWORD)" || return
}

# The secret that tokens are signed with, and the two keys that are such tokens.
rotate_keys() {
    local before=$work/settings.before old_anon old_service old_jwt service
    cp "$stack/.env.production" "$before"
    old_anon=$(secret ANON_KEY) old_service=$(secret SERVICE_ROLE_KEY) old_jwt=$(secret JWT_SECRET)
    start_writer
    "$stack/scripts/rotate-secrets" --keys >"$work/rotate.log" 2>&1 || { cat "$work/rotate.log" && die "the rotation fails"; }
    sleep 1
    finish writer
    at_most "writes stood still" "$(field writer longest_gap_s)" 5
    none_lost
    rotated_settings "$before"
    wait_for 120 "every service of Supabase's is healthy" services_healthy
    wait_for 30 "the gateway takes the new keys" through_gateway "$(secret ANON_KEY)" "$(secret SERVICE_ROLE_KEY)"
    # The old keys at the gateway; tokens of users, signed with the old secret, behind it.
    answers 401 /rest/v1/ -H "apikey: $old_anon" || die "the old anon key is still good"
    answers 401 /rest/v1/ -H "apikey: $old_service" || die "the old service key is still good"
    answers 401 /rest/v1/ -H "apikey: $(secret ANON_KEY)" -H "Authorization: Bearer $old_anon" || die "rest takes an old token"
    answers 403 /storage/v1/bucket -H "Authorization: Bearer $old_service" || die "storage takes an old token"
    answers 401 /auth/v1/admin/users -H "apikey: $(secret ANON_KEY)" -H "Authorization: Bearer $old_service" || die "auth takes an old token"
    answers 403 /realtime/v1/api/tenants/realtime-dev/health -H "apikey: $(secret ANON_KEY)" -H "Authorization: Bearer $old_anon" ||
        die "realtime takes an old token"
    for service in "${services[@]}"; do docker inspect "$(service_container "$service")"; done >"$work/inspect"
    ! grep -qF -e "$old_jwt" -e "$old_anon" -e "$old_service" "$work/inspect" "$stack"/runtime/*/* || die "an old key is still handed out"
    echo "    old keys and tokens are refused by the gateway, rest, auth, storage and realtime"
    cp "$stack/.env.production" "$before"
    "$stack/scripts/rotate-secrets" --apply >/dev/null
    cmp "$before" "$stack/.env.production" || die "--apply changes a setting"
    wait_for 120 "every service of Supabase's is healthy" services_healthy
    # The faults that follow are about what is below them.
    compose rm -sf "${services[@]}" >/dev/null 2>&1
    sed -i 's/^COMPOSE_PROFILES=.*/COMPOSE_PROFILES=etcd3/' "$stack/.env.production"
}

# rotated_settings BEFORE: every password and key is another one, what data is encrypted with is not; nothing of either
# was printed.
rotated_settings() {
    local key same
    for key in JWT_SECRET ANON_KEY SERVICE_ROLE_KEY $(sed -n 's/^\([A-Z_]*_PASSWORD\)=.*/\1/p' "$1"); do
        same=$(sed -n "s/^$key=//p" "$1")
        if [ -z "$same" ]; then continue; fi
        [ "$(secret "$key")" != "$same" ] || die "$key is the same"
        ! grep -qF -e "$same" -e "$(secret "$key")" "$work/rotate.log" || die "$key is printed"
    done
    for key in BACKUP_CIPHER_PASS REALTIME_DB_ENC_KEY PG_META_CRYPTO_KEY SECRET_KEY_BASE; do
        [ "$(secret "$key")" = "$(sed -n "s/^$key=//p" "$1")" ] || die "$key was changed"
    done
    cmp "$1" "$stack/.env.production.before" || die "what was valid before is not kept"
    [ "$(stat -c %a "$stack/.env.production.before")" = 600 ] || die "others can read what was valid before"
}
