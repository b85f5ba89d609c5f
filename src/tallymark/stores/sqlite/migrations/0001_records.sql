-- What a record has in common with many others, once.
CREATE TABLE tallymark_series (
    id INTEGER PRIMARY KEY,
    service TEXT NOT NULL,
    metric_type TEXT NOT NULL,
    name TEXT NOT NULL,
    unit TEXT NOT NULL,
    description TEXT
);
-- Nulls would be different from each other.
CREATE UNIQUE INDEX tallymark_series_key
ON tallymark_series (metric_type, name, service, unit, ifnull(description, 0));

-- The journals that records came from, and how far each is stored.
CREATE TABLE tallymark_journals (
    id INTEGER PRIMARY KEY,
    journal TEXT NOT NULL UNIQUE,
    position INTEGER
);

-- In the order of time, without an index beside: that is how records come, are asked for and are forgotten.
CREATE TABLE tallymark_rows (
    timestamp INTEGER NOT NULL, -- nanoseconds since 1970, UTC
    journal INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    series INTEGER NOT NULL,
    value NOT NULL, -- a float; declared REAL, -0.0 would lose its sign
    success INTEGER,
    error TEXT,
    trace_id TEXT,
    session_id TEXT,
    metadata TEXT NOT NULL, -- JSON, as it was recorded
    PRIMARY KEY (timestamp, journal, seq)
) WITHOUT ROWID;

-- The days (UTC) that have records; kept with every change. Rollups of a day are of one version of it.
CREATE TABLE tallymark_days (
    first INTEGER PRIMARY KEY, -- when it begins, nanoseconds since 1970
    rows INTEGER NOT NULL,
    version INTEGER NOT NULL, -- at random: another with every change
    changed INTEGER NOT NULL -- when that was, nanoseconds since 1970
);

-- How many records are stored, were deleted, and could not be kept ("dropped full"); kept with every change.
CREATE TABLE tallymark_books (
    name TEXT PRIMARY KEY,
    count INTEGER NOT NULL
) WITHOUT ROWID;
