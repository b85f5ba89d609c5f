"""ClickHouse: one server, or a cluster."""
