-- What the old server has: two databases with what is easily lost on the way.
create role crm_owner login password 'of-the-old-server-0123456789';
create role "crm readers" nologin;
grant pg_read_all_settings to crm_owner;
create table public.in_postgres(n int primary key, t text);
insert into public.in_postgres select i, repeat('ä', i % 50) from generate_series(1, 500) i;
create extension "uuid-ossp" schema public;
create table public.ids(id uuid primary key default public.uuid_generate_v4(), at timestamptz default now());
insert into public.ids default values;
grant usage on schema public to "crm readers";

create database crm owner crm_owner;
alter database crm set work_mem = '8MB';
\connect crm
set role crm_owner;
create schema sales;
create type sales.state as enum ('new', 'paid');
create table sales.customers(id bigint generated always as identity primary key, name text not null, born date,
    tags text[], about jsonb, photo bytea, weight double precision);
insert into sales.customers(name, born, tags, about, photo, weight)
    select 'name ' || i, date '1950-01-01' + i, array['a', 'b' || i], jsonb_build_object('n', i), decode(md5(i::text), 'hex'), i / 7.0
    from generate_series(1, 20000) i;
create table sales.orders(id bigserial, customer bigint references sales.customers, at timestamptz not null,
    state sales.state not null default 'new') partition by range (at);
create table sales.orders_2025 partition of sales.orders for values from ('2025-01-01') to ('2026-01-01');
create table sales.orders_2026 partition of sales.orders for values from ('2026-01-01') to ('2027-01-01');
insert into sales.orders(customer, at) select i, timestamptz '2025-06-01' + i * interval '20 minutes' from generate_series(1, 20000) i;
create materialized view sales.per_year as select date_trunc('year', at) as year, count(*) from sales.orders group by 1;
alter table sales.customers enable row level security;
create policy readers on sales.customers for select to "crm readers" using (id % 2 = 0);
grant usage on schema sales to "crm readers";
grant select on sales.customers to "crm readers";
create function sales.touch() returns trigger language plpgsql as $$ begin new.name := trim(new.name); return new; end $$;
create trigger touch before insert on sales.customers for each row execute function sales.touch();
create table sales.writes(n bigserial primary key, who text not null);
select lo_from_bytea(0, decode(repeat('ab', 5000), 'hex')) as one \gset
select setval('sales.writes_n_seq', 1000);
