"""A folder, or an object store, with a Delta table of Parquet and rollups beside it."""
