-- Accounts, rights, hosts, repositories and locks. The same text for SQLite and PostgreSQL: bigint and text only.
-- Times are milliseconds since 1970. A device or host that is not in its table is shut out.

create table users (
    name text primary key,
    administrator bigint not null,
    parameters text not null,
    proof text not null,
    keybag text not null,
    created bigint not null
);

create table user_groups (
    name text primary key,
    created bigint not null
);

create table members (
    group_name text not null references user_groups (name) on delete cascade,
    user_name text not null references users (name) on delete cascade,
    primary key (group_name, user_name)
);
create index members_by_user on members (user_name);

-- head is 0 before the first version. It is the truth; `latest` in the directory follows.
create table repositories (
    id text primary key,
    descriptor text not null,
    head bigint not null,
    created bigint not null
);

create table appliances (
    name text primary key,
    repository text not null unique references repositories (id),
    created bigint not null
);

create table grants (
    appliance text not null references appliances (name) on delete cascade,
    group_name text not null references user_groups (name) on delete cascade,
    primary key (appliance, group_name)
);
create index grants_by_group on grants (group_name);

create table tokens (
    id bigint primary key,
    hash text not null unique,
    note text not null,
    expires bigint not null,
    used_by text
);

-- member: joined with a token; else a guest, made by a log-in, whose name is nobody's promise.
create table hosts (
    id text primary key,
    name text not null,
    member bigint not null,
    joined bigint not null,
    seen bigint
);
create unique index member_host_names on hosts (name) where member = 1;

create table devices (
    id text primary key,
    user_name text not null references users (name) on delete cascade,
    host text not null references hosts (id) on delete cascade,
    created bigint not null
);
create index devices_by_user on devices (user_name);

-- The appliance is a plain name: a subscription outlives its appliance, and so does the user disk.
-- epoch is the last fencing number given out; holder is null while nobody holds the lock.
create table subscriptions (
    id text primary key,
    user_name text not null references users (name) on delete cascade,
    appliance text not null,
    repository text not null unique references repositories (id),
    created bigint not null,
    epoch bigint not null,
    holder text,
    holder_name text,
    since bigint,
    seen bigint,
    expires bigint,
    backlog bigint,
    unique (user_name, appliance)
);

create table audit (
    time bigint not null,
    nonce text not null,
    who text not null,
    what text not null,
    primary key (time, nonce)
);
