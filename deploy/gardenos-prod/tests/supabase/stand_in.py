#!/usr/bin/python3
"""Stands in for one of Supabase's services, named by STAND_IN, in tests of the production stack.

It does what the real one does with what the compose file gives it: reads the same variables and files, logs in to the
database with the same address, role and TLS, makes its tables where the real one migrates, checks tokens with the same
secret, and answers the same health check. It ends when the database is not there or cannot be written to, as they do.
"""

import base64
import hashlib
import hmac
import http.client
import http.server
import json
import os
import signal
import sys
import threading
import urllib.parse
import urllib.request

import psycopg2

env = os.environ


def file_settings(path):
    with open(path) as file:
        return dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)


def value_or_file(key):
    """PostgREST's way: "@" and a path."""
    value = env[key]
    if value.startswith("@"):
        with open(value[1:]) as file:
            value = file.read().strip()
    return value


def need(key, length=None):
    value = env[key]
    if not value or (length and len(value) != length):
        sys.exit(f"{key} has {len(value)} characters")
    return value


def claims(token, secret):
    """The claims of a token that is signed with the secret, else None."""
    try:
        head, body, signature = token.split(".")
        wanted = hmac.new(secret.encode(), f"{head}.{body}".encode(), hashlib.sha256).digest()
        if hmac.compare_digest(decoded(signature), wanted):
            return json.loads(decoded(body))
    except ValueError:
        pass
    return None


def decoded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Database:
    """One connection, made anew when it was lost: a pool of one."""

    def __init__(self, dsn, **more):
        self.dsn, self.more = dsn, more
        self.connection = None
        self.lock = threading.Lock()

    def run(self, statement, *arguments, before=()):
        with self.lock:
            try:
                return self._run(statement, arguments, before)
            except psycopg2.Error:
                # Its session may be one that HAProxy closed at a failover.
                self.connection = None
                return self._run(statement, arguments, before)

    def _run(self, statement, arguments, before):
        if self.connection is None:
            self.connection = psycopg2.connect(self.dsn, connect_timeout=3, **self.more)
        with self.connection, self.connection.cursor() as cursor:
            for first in before:
                cursor.execute(*first)
            cursor.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else None


class Service:
    """What all have: health needs a database that can be written to."""

    database = None
    health_path = "/health"

    def start(self):
        pass

    def healthy(self):
        [(readable_only,)] = self.database.run("select pg_is_in_recovery()")
        return not readable_only

    def answer(self, method, path, headers, body):
        if path == self.health_path:
            return (200 if self.healthy() else 503), {}
        return 404, {}


class Auth(Service):
    port = 9999

    def __init__(self):
        # `auth --config FILE`, as the compose file starts it.
        if sys.argv[1:2] != ["--config"]:
            sys.exit("auth was not given --config FILE")
        settings = file_settings(sys.argv[2])
        self.secret = settings["GOTRUE_JWT_SECRET"]
        self.database = Database(settings["GOTRUE_DB_DATABASE_URL"])

    def start(self):
        self.database.run("create table if not exists auth.users(id uuid primary key, email text)")
        self.database.run("create or replace function auth.uid() returns uuid language sql stable as $$ "
                          "select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$")

    def answer(self, method, path, headers, body):
        if path != "/admin/users":
            return super().answer(method, path, headers, body)
        who = claims(headers.get("Authorization", "").removeprefix("Bearer "), self.secret)
        if not who or who["role"] != "service_role":
            return 401, {}
        return 200, self.database.run("select count(*) from auth.users")[0][0]


class Rest(Service):
    port = 3000
    admin_port = 3001
    health_path = "/ready"

    def __init__(self):
        self.secret = value_or_file("PGRST_JWT_SECRET")
        self.database = Database(value_or_file("PGRST_DB_URI"))
        if int(env["PGRST_ADMIN_SERVER_PORT"]) != self.admin_port:
            sys.exit("the gateway looks at another port")

    def start(self):
        self.database.run("select 1", before=[("set local role " + env["PGRST_DB_ANON_ROLE"],)])

    def answer(self, method, path, headers, body):
        if path in ("/ready", "/live"):
            return super().answer(method, "/ready", headers, body)
        role = env["PGRST_DB_ANON_ROLE"]
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        who = {}
        if token:
            who = claims(token, self.secret)
            if not who:
                return 401, {"message": "JWSError JWSInvalidSignature"}
            role = who["role"]
        if role not in ("anon", "authenticated", "service_role"):
            return 403, {}
        # For the policies of row-level security.
        before = [("set local role " + role,), ("select set_config('request.jwt.claims', %s, true)", [json.dumps(who)])]
        [(role,)] = self.database.run("select coalesce(auth.role(), current_user)", before=before)
        return 200, {"role": role}


class Realtime(Service):
    port = 4000

    def __init__(self):
        need("DB_ENC_KEY", 16)
        need("SECRET_KEY_BASE", 64)
        need("METRICS_JWT_SECRET")
        self.secret = need("API_JWT_SECRET")
        self.database = Database("", host=env["DB_HOST"], port=env["DB_PORT"], user=env["DB_USER"], dbname=env["DB_NAME"],
                                 password=need("DB_PASSWORD"), sslmode="disable")

    def start(self):
        self.database.run("create table if not exists tenants(external_id text primary key, jwt_secret text)",
                          before=[(env["DB_AFTER_CONNECT_QUERY"],)])
        self.database.run("insert into _realtime.tenants values ('realtime-dev', '') on conflict do nothing")

    def healthy(self):
        # What it decodes changes with; the slot ends with the session.
        self.database.run("select pg_drop_replication_slot(slot_name) from pg_create_logical_replication_slot("
                          "'supabase_realtime_stand_in', 'wal2json', true)")
        return super().healthy() and bool(self.database.run("select 1 from pg_publication where pubname = 'supabase_realtime'"))

    def answer(self, method, path, headers, body):
        if path != "/api/tenants/realtime-dev/health":
            return 404, {}
        if not claims(headers.get("Authorization", "").removeprefix("Bearer "), self.secret):
            return 403, {}
        return (200 if self.healthy() else 503), {}


class Storage(Service):
    port = 5000
    health_path = "/status"

    def __init__(self):
        self.secret = need("AUTH_JWT_SECRET")
        for key in ("ANON_KEY", "SERVICE_KEY"):
            if not claims(need(key), self.secret):
                sys.exit(f"{key} is not signed with AUTH_JWT_SECRET")
        need("S3_PROTOCOL_ACCESS_KEY_ID", 32)
        need("S3_PROTOCOL_ACCESS_KEY_SECRET", 64)
        self.database = Database(need("DATABASE_URL"))

    def start(self):
        self.database.run("create table if not exists storage.objects(name text primary key)")
        with open(os.path.join(env["FILE_STORAGE_BACKEND_PATH"], "probe"), "w") as file:
            file.write("stored")

    def healthy(self):
        with urllib.request.urlopen(env["IMGPROXY_URL"] + "/health", timeout=3):
            pass
        return super().healthy()

    def answer(self, method, path, headers, body):
        if path != "/bucket":
            return super().answer(method, path, headers, body)
        if not claims(headers.get("Authorization", "").removeprefix("Bearer "), self.secret):
            return 403, {}
        return 200, []


class Imgproxy(Service):
    def __init__(self):
        self.port = int(env["IMGPROXY_BIND"].removeprefix(":"))

    def healthy(self):
        return os.path.isdir(env["IMGPROXY_LOCAL_FILESYSTEM_ROOT"] + "var/lib/storage")


class Meta(Service):
    def __init__(self):
        self.port = int(env["PG_META_PORT"])
        self.key = need("CRYPTO_KEY")
        # The real one takes a certificate's text in PG_META_DB_SSL_ROOT_CERT, no path; without one, Node's list of
        # authorities counts.
        if "PG_META_DB_SSL_ROOT_CERT" in env:
            sys.exit("PG_META_DB_SSL_ROOT_CERT: this stand-in does not know it")
        self.database = Database("", host=env["PG_META_DB_HOST"], port=env["PG_META_DB_PORT"], user=env["PG_META_DB_USER"],
                                 dbname=env["PG_META_DB_NAME"], password=need("PG_META_DB_PASSWORD"),
                                 sslmode=env["PG_META_DB_SSL_MODE"], sslrootcert=env["NODE_EXTRA_CA_CERTS"])

    def answer(self, method, path, headers, body):
        if path != "/query":
            return super().answer(method, path, headers, body)
        # From Studio: a connection string that only who has the key can make. The real one asks for no TLS then.
        address, _, signature = headers.get("x-connection-encrypted", "").rpartition(" ")
        if not hmac.compare_digest(signature, signed(address, self.key)):
            return 401, {}
        return 200, Database(address, sslmode="disable").run(body["query"])


def signed(text, key):
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


class Studio(Service):
    port = 3000
    health_path = "/api/platform/profile"

    def __init__(self):
        for key in ("SUPABASE_ANON_KEY", "SUPABASE_SERVICE_KEY"):
            if not claims(need(key), need("AUTH_JWT_SECRET")):
                sys.exit(f"{key} is not signed with AUTH_JWT_SECRET")
        if env["ENABLED_FEATURES_LOGS_ALL"] != "false":
            sys.exit("there is no analytics service for the log pages")

    def healthy(self):
        # Its SQL editor goes through meta, with the address and the role that it was given.
        address = (f"postgresql://{env['POSTGRES_USER_READ_WRITE']}:{env['POSTGRES_PASSWORD']}@{env['POSTGRES_HOST']}:"
                   f"{env['POSTGRES_PORT']}/{env['POSTGRES_DB']}")
        request = urllib.request.Request(
            env["STUDIO_PG_META_URL"] + "/query", json.dumps({"query": "select pg_is_in_recovery()"}).encode(),
            {"x-connection-encrypted": address + " " + signed(address, need("PG_META_CRYPTO_KEY"))})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer) == [[False]]


class Handler(http.server.BaseHTTPRequestHandler):
    service = None

    def handle_any(self):
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
            status, answer = self.service.answer(self.command, urllib.parse.urlsplit(self.path).path, self.headers, body)
        except (psycopg2.Error, OSError, http.client.HTTPException) as error:
            status, answer = 503, {"error": type(error).__name__}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = handle_any

    def log_message(self, *_):
        """Addresses can have keys in them."""


SERVICES = {"auth": Auth, "rest": Rest, "realtime": Realtime, "storage": Storage, "imgproxy": Imgproxy, "meta": Meta,
            "studio": Studio}


def probe(url):
    """A health check of the real image's program."""
    try:
        with urllib.request.urlopen(url, timeout=4):
            sys.exit(0)
    except OSError as error:
        sys.exit(str(error))


def main():
    program = os.path.basename(sys.argv[0])
    if program == "postgrest" and sys.argv[1:] == ["--ready"]:
        probe(f"http://localhost:{env['PGRST_ADMIN_SERVER_PORT']}/ready")
    if program == "imgproxy" and sys.argv[1:] == ["health"]:
        probe(f"http://localhost{env['IMGPROXY_BIND']}/health")
    # The first process of a container ends by a signal only if it asked for that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Handler.service = SERVICES[env["STAND_IN"]]()
    Handler.service.start()
    ports = [Handler.service.port]
    if hasattr(Handler.service, "admin_port"):
        ports.append(Handler.service.admin_port)
    servers = [http.server.ThreadingHTTPServer(("", port), Handler) for port in ports]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"stands in for {env['STAND_IN']}", flush=True)
    servers[0].serve_forever()


main()
