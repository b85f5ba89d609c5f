-- Names are written with their schema, and nothing outlives the transaction: a pooler may be in between.

-- The columns of tallymark.batch.SCHEMA, those of fixed size first, which saves padding. Texts sort by code point, as
-- everywhere in tallymark. Metadata is json and not jsonb, which would change its text: the order of keys, numbers.
CREATE TABLE tallymark.records (
    timestamp bigint NOT NULL,  -- nanoseconds since 1970, UTC
    seq bigint NOT NULL,
    value double precision NOT NULL,
    success boolean,
    journal text COLLATE "C" NOT NULL,
    service text COLLATE "C" NOT NULL,
    metric_type text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    unit text COLLATE "C" NOT NULL,
    error text COLLATE "C",
    trace_id text COLLATE "C",
    session_id text COLLATE "C",
    metadata json NOT NULL,
    description text COLLATE "C"
) PARTITION BY RANGE (timestamp);

-- By a hash: that takes half of the disk that the texts would, and less time.
CREATE INDEX records_type_time ON tallymark.records (hashtext(metric_type), timestamp);
CREATE INDEX records_name_time ON tallymark.records (hashtext(name), timestamp);
-- For the views, which show a time of the database's own type. It takes next to nothing.
CREATE INDEX records_moment ON tallymark.records USING brin (to_timestamp(timestamp / '1e9'::float8));

-- How far each journal is stored.
CREATE TABLE tallymark.positions (
    journal text COLLATE "C" PRIMARY KEY,
    position bigint NOT NULL
);

-- The partitions of records, and how many rows each has; kept in the transactions that change them.
CREATE TABLE tallymark.parts (
    name text COLLATE "C" PRIMARY KEY,
    first bigint NOT NULL UNIQUE,  -- the range of its timestamps: from the first until before this
    until bigint NOT NULL,
    rows bigint NOT NULL DEFAULT 0,
    has_gaps boolean NOT NULL DEFAULT false,  -- single rows were deleted since it was last written anew
    version bigint NOT NULL DEFAULT 0,  -- of its rows, at random: another with every change
    changed bigint NOT NULL DEFAULT 0  -- when that was, nanoseconds since 1970
);

-- Rollups of partitions: Parquet files, of this version of one, in a format of tallymark's.
CREATE TABLE tallymark.rollups (
    first bigint PRIMARY KEY REFERENCES tallymark.parts (first) ON DELETE CASCADE,
    version bigint NOT NULL,
    format integer NOT NULL,
    data bytea NOT NULL
);
ALTER TABLE tallymark.rollups ALTER data SET STORAGE EXTERNAL;  -- it is compressed

-- Of the whole store.
CREATE TABLE tallymark.books (
    name text COLLATE "C" PRIMARY KEY,
    count bigint NOT NULL
);
INSERT INTO tallymark.books VALUES ('deleted', 0);

-- The place of a record in the order of time, and its value.
CREATE TYPE tallymark.place AS (timestamp bigint, journal text COLLATE "C", seq bigint, value double precision);

-- A JSON number as float8, for those that may be out of its range, which a cast refuses: too large is infinite, too
-- small is zero.
CREATE FUNCTION tallymark.number(text) RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog
AS $$
    SELECT CASE
        WHEN digits = 0 THEN 0
        WHEN exponent + size > 400 THEN sign * 'Infinity'::float8
        WHEN exponent + size < -400 THEN 0
        WHEN abs($1::numeric) >= 1.7976931348623158e308 THEN sign * 'Infinity'::float8
        WHEN abs($1::numeric) <= 2.4703282292062328e-324 THEN 0
        ELSE $1::float8
    END
    FROM (
        SELECT
            mantissa::numeric AS digits,
            CASE WHEN mantissa LIKE '-%' THEN -1 ELSE 1 END AS sign,
            -- Of the first digit that is not zero, before or behind the point.
            CASE
                WHEN mantissa ~ '^-?[1-9]' THEN length(substring(mantissa FROM '^-?([0-9]+)'))
                ELSE -length(substring(mantissa FROM '^-?0\.?(0*)'))
            END AS size,
            CASE
                WHEN power IS NULL THEN 0
                WHEN length(ltrim(power, '+-0')) > 6 THEN CASE WHEN power LIKE '-%' THEN -1000000 ELSE 1000000 END
                ELSE power::integer
            END AS exponent
        FROM (
            SELECT substring($1 FROM '^[^eE]+') AS mantissa, substring($1 FROM '[eE](.*)$') AS power
        ) AS parts
    ) AS found
$$;
