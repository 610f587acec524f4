-- Roles that Supabase's services log in as or switch to. Passwords come from role-passwords.psql.

CREATE ROLE supabase_admin LOGIN SUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS PASSWORD :'password_supabase_admin';
CREATE ROLE anon NOLOGIN NOINHERIT;
CREATE ROLE authenticated NOLOGIN NOINHERIT;
CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
CREATE ROLE authenticator LOGIN NOINHERIT PASSWORD :'password_authenticator';
CREATE ROLE supabase_auth_admin LOGIN NOINHERIT CREATEROLE PASSWORD :'password_supabase_auth_admin';
CREATE ROLE supabase_storage_admin LOGIN NOINHERIT CREATEROLE PASSWORD :'password_supabase_storage_admin';
CREATE ROLE supabase_functions_admin LOGIN NOINHERIT CREATEROLE PASSWORD :'password_supabase_functions_admin';
CREATE ROLE supabase_realtime_admin NOLOGIN NOINHERIT;
CREATE ROLE supabase_replication_admin NOLOGIN REPLICATION;
CREATE ROLE supabase_read_only_user NOLOGIN BYPASSRLS;
CREATE ROLE dashboard_user CREATEDB CREATEROLE REPLICATION;
CREATE ROLE pgbouncer LOGIN PASSWORD :'password_pgbouncer';
CREATE ROLE gardenos_monitor LOGIN CONNECTION LIMIT 10 PASSWORD :'password_gardenos_monitor';

-- `postgres` stays a superuser here, other than in Supabase's own image: the agents work as it.
GRANT anon, authenticated, service_role TO authenticator, postgres;
GRANT authenticator TO supabase_storage_admin;
GRANT supabase_auth_admin, supabase_storage_admin, supabase_realtime_admin TO postgres;
GRANT pg_read_all_data TO supabase_read_only_user;
GRANT pg_monitor TO gardenos_monitor;

-- An API's query that takes longer is a mistake or an attack.
ALTER ROLE anon SET statement_timeout = '3s';
ALTER ROLE authenticated SET statement_timeout = '8s';
ALTER ROLE authenticator SET statement_timeout = '8s';
ALTER ROLE authenticator SET lock_timeout = '8s';
ALTER ROLE supabase_auth_admin SET idle_in_transaction_session_timeout = '60s';
ALTER ROLE supabase_auth_admin SET search_path = auth;
ALTER ROLE supabase_storage_admin SET search_path = storage;
ALTER ROLE supabase_functions_admin SET search_path = supabase_functions;
ALTER ROLE supabase_admin SET search_path = public, extensions;

-- PgBouncer asks for the password of whoever connects, in whatever database that is: so also in those
-- that are made later.
\connect template1
\ir pooler.sql
\connect postgres
\ir pooler.sql

-- The database of Supabase, if it is another one than `postgres`.
SELECT format('CREATE DATABASE %I', :'database')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
SELECT format('ALTER DATABASE %I SET "app.settings.jwt_exp" = %L', :'database', :'jwt_exp') \gexec
