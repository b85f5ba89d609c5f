"""Moving records: out of a store into a file, out of a file into a store, from one store to another."""
