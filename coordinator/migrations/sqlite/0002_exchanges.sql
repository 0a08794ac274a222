-- Masked rounds: what sites sent in each phase, and the certificates by which they are members.

CREATE TABLE exchanges (
    study    TEXT NOT NULL,
    number   INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    phase    TEXT NOT NULL,
    site     TEXT NOT NULL,
    messages BLOB NOT NULL,
    PRIMARY KEY (study, number, attempt, phase, site)
) STRICT;

-- For each site's newest update, when it connects.
CREATE INDEX updates_by_site ON updates (site, log_index);
