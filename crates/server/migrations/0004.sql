-- What hosts report that guests read of system disks. Counts are JSON: rows of first region, regions, starts, uses.

create table popularity (
    repository text not null references repositories (id) on delete cascade,
    version bigint not null,
    region_blocks bigint not null,
    starts bigint not null,
    uses bigint not null,
    read_bytes bigint not null,
    foretold_bytes bigint not null,
    counts text not null,
    primary key (repository, version)
);

-- Who reported today, so that nobody counts twice. Days since 1970; those of earlier days go with the next report.
create table reporters (
    repository text not null references repositories (id) on delete cascade,
    version bigint not null,
    part text not null,
    host text not null references hosts (id) on delete cascade,
    day bigint not null,
    primary key (repository, version, part, host)
);
create index reporters_by_day on reporters (day);
