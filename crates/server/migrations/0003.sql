-- Retention rules, and what is known of the health of repositories. Rules, states and damages are JSON.

-- Which versions stay when the server prunes the appliance by itself; null: it never does.
alter table appliances add column retention text;

-- What administrators set for the whole server; a name that is not there has its usual value.
create table settings (
    name text primary key,
    value text not null
);

-- checking: how far a check under way is. checked: when the last complete one ended; what it found goes with it.
create table upkeep (
    repository text primary key references repositories (id) on delete cascade,
    checking text,
    checking_bytes bigint,
    checked bigint,
    objects bigint not null,
    bytes bigint not null,
    damaged bigint not null,
    damages text not null,
    pruned bigint
);
