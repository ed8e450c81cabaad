-- Repositories whose rows are deleted and whose directories are still to be removed. Written with the deletion, so that a
-- crash in between leaves no directory that nobody knows of.

create table removals (
    repository text primary key
);
