"""Stand-ins for the kinds of clients that Supabase's services and applications are, for deploy/gardenos-prod/test.

Each subcommand runs until SIGTERM, then writes one JSON object with what it saw to its standard output. All go
through HAProxy with the server's certificate verified, and reconnect as a service would.

  writer    inserts numbered rows and remembers which were acknowledged, and when
  pool      eight threads over a pool of connections, every statement prepared on the server (PostgREST, Auth)
  listener  LISTEN on one session, NOTIFY from another every 100 ms (PostgREST's and Realtime's listeners)
  consumer  a logical replication consumer of a permanent slot (Debezium, ETL)
  cdc       a temporary slot made anew after each loss, polled by SQL (Realtime's postgres_changes)
  check     reads the ledger of a writer and tells which acknowledged rows are missing
"""

import argparse
import json
import select
import signal
import sys
import threading
import time

import psycopg
import psycopg2
import psycopg2.extras
import psycopg_pool

STOP = threading.Event()
RETRY_SECONDS = 0.05
# What a service would use, too: a server that vanished silently is found out by these.
KEEPALIVES = "connect_timeout=2 keepalives_idle=2 keepalives_interval=1 keepalives_count=2 tcp_user_timeout=3000"


class Gaps:
    """When something last worked, and the longest time between two of those moments."""

    def __init__(self):
        self.lock = threading.Lock()
        self.count = 0
        self.errors = {}
        self.last = None
        self.longest = 0.0
        self.longest_from = None

    def worked(self):
        """Counts one success."""
        now = time.time()
        with self.lock:
            if self.last is not None and now - self.last > self.longest:
                self.longest, self.longest_from = now - self.last, self.last
            self.last = now
            self.count += 1

    def failed(self, error):
        """Counts an error by its SQLSTATE, or its class."""
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or type(error).__name__
        with self.lock:
            self.errors[code] = self.errors.get(code, 0) + 1

    def report(self, **more):
        """What to print at the end."""
        at = self.longest_from and time.strftime("%H:%M:%S", time.gmtime(self.longest_from))
        return dict(worked=self.count, longest_gap_s=round(self.longest, 3), gap_began=at, errors=self.errors, **more)


def writer(args):
    """Inserts rows n, n+1, …; an insert whose outcome is unknown is not retried under the same number."""
    gaps, n, connection = Gaps(), args.first, None
    with open(args.ledger, "a", buffering=1, encoding="ascii") as ledger:
        while not STOP.is_set():
            try:
                if connection is None:
                    connection = psycopg.connect(args.dsn, autocommit=True)
                n += 1
                connection.execute("INSERT INTO ledger(n) VALUES (%s)", (n,))
                ledger.write(f"{n}\n")
                gaps.worked()
                time.sleep(args.pause)
            except psycopg.Error as error:
                gaps.failed(error)
                connection = None
                time.sleep(RETRY_SECONDS)
    return gaps.report(last=n)


def pool(args):
    """A pool checks what it hands out; every statement is prepared at its first use on a session."""
    gaps = Gaps()
    connections = psycopg_pool.ConnectionPool(
        args.dsn, min_size=2, max_size=8, timeout=5, max_lifetime=300,
        kwargs={"autocommit": True, "prepare_threshold": 0},
        check=psycopg_pool.ConnectionPool.check_connection, open=True)

    def work(number):
        while not STOP.is_set():
            try:
                with connections.connection() as connection:
                    connection.execute("UPDATE counters SET hits = hits + 1 WHERE id = %s", (number,))
                    connection.execute("SELECT hits FROM counters WHERE id = %s", (number,)).fetchone()
                gaps.worked()
                time.sleep(0.02)
            except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
                gaps.failed(error)
                time.sleep(RETRY_SECONDS)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    STOP.wait()
    for thread in threads:
        thread.join(timeout=10)
    return gaps.report()


def listener(args):
    """Counts notifications that arrive; those of the gap are lost, as for every listener of PostgreSQL."""
    gaps, sent, session = Gaps(), 0, None

    def speak():
        nonlocal sent
        speaker = None
        while not STOP.is_set():
            try:
                if speaker is None:
                    speaker = psycopg.connect(args.dsn, autocommit=True)
                speaker.execute("SELECT pg_notify('gardenos', %s)", (str(sent),))
                sent += 1
                time.sleep(0.1)
            except psycopg.Error:
                speaker = None
                time.sleep(RETRY_SECONDS)

    threading.Thread(target=speak, daemon=True).start()
    while not STOP.is_set():
        try:
            if session is None:
                session = psycopg2.connect(args.dsn)
                session.autocommit = True
                session.cursor().execute("LISTEN gardenos")
            if select.select([session], [], [], 0.5)[0]:
                session.poll()
                for _ in session.notifies:
                    gaps.worked()
                session.notifies.clear()
        except psycopg2.Error as error:
            gaps.failed(error)
            session = None
            time.sleep(RETRY_SECONDS)
    return gaps.report(sent=sent)


def consumer(args):
    """Reads ledger rows from the permanent slot; confirms only what it has written down."""
    gaps, seen, twice, session = Gaps(), set(), 0, None
    while not STOP.is_set():
        try:
            if session is None:
                session = psycopg2.connect(args.dsn, connection_factory=psycopg2.extras.LogicalReplicationConnection)
                cursor = session.cursor()
                cursor.start_replication(
                    slot_name=args.slot, decode=True, status_interval=1,
                    options={"add-tables": "public.ledger", "format-version": "2", "include-transaction": "0"})
            message = cursor.read_message()
            if message is None:
                select.select([cursor], [], [], 0.5)
                continue
            change = json.loads(message.payload)
            if change.get("action") == "I":
                n = change["columns"][0]["value"]
                twice += n in seen
                seen.add(n)
                gaps.worked()
            cursor.send_feedback(flush_lsn=message.data_start)
        except psycopg2.Error as error:
            gaps.failed(error)
            session = None
            time.sleep(RETRY_SECONDS)
    acknowledged = read_ledger(args.ledger)
    # What was acknowledged in the last seconds may still be on its way.
    # Rows of before the slot was made are none of its business.
    missing = sorted(n for n in acknowledged - seen if args.first <= n <= max(seen, default=0))
    return gaps.report(seen=len(seen), seen_twice=twice, missing=missing[:20], missing_count=len(missing))


def cdc(args):
    """Realtime's way: a temporary slot, polled; after a loss a new one, what happened in between is not told."""
    gaps, slots, session = Gaps(), 0, None
    while not STOP.is_set():
        try:
            if session is None:
                session = psycopg.connect(args.dsn, autocommit=True)
                session.execute("SELECT pg_create_logical_replication_slot('supabase_realtime_replication_slot', 'wal2json', true)")
                slots += 1
            rows = session.execute(
                "SELECT count(*) FROM pg_logical_slot_get_changes('supabase_realtime_replication_slot', NULL, 500)").fetchone()
            if rows[0]:
                gaps.worked()
            time.sleep(0.1)
        except psycopg.Error as error:
            gaps.failed(error)
            session = None
            time.sleep(RETRY_SECONDS)
    return gaps.report(slots_made=slots)


def read_ledger(path):
    """Acknowledged numbers; the last line may be cut."""
    with open(path, encoding="ascii") as ledger:
        return {int(line) for line in ledger if line.endswith("\n")}


def check(args):
    """Acknowledged rows that are not there."""
    acknowledged = read_ledger(args.ledger)
    with psycopg.connect(args.dsn) as connection:
        there = {row[0] for row in connection.execute("SELECT n FROM ledger")}
    lost = sorted(acknowledged - there)
    return {"acknowledged": len(acknowledged), "in_table": len(there), "lost": len(lost), "which": lost[:20]}


def main():
    """Parses the command line and runs one of the clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["writer", "pool", "listener", "consumer", "cdc", "check"])
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--ledger")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.005)
    parser.add_argument("--slot", default="cdc")
    args = parser.parse_args()
    args.dsn = f"{args.dsn} {KEEPALIVES}"
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: STOP.set())
    json.dump(globals()[args.what](args), sys.stdout)
    print()


if __name__ == "__main__":
    main()
