-- What PgBouncer asks (auth_query). Not for superusers and replication: those do not come through a pooler.
CREATE SCHEMA pgbouncer AUTHORIZATION postgres;
REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC;
CREATE FUNCTION pgbouncer.user_lookup(wanted text, OUT username text, OUT password text)
    RETURNS record LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS
    $$ SELECT rolname::text, rolpassword FROM pg_authid
       WHERE rolname = wanted AND rolcanlogin AND NOT rolsuper AND NOT rolreplication $$;
REVOKE ALL ON FUNCTION pgbouncer.user_lookup(text) FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer;
GRANT EXECUTE ON FUNCTION pgbouncer.user_lookup(text) TO pgbouncer;
