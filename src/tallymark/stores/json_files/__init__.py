"""Batch files of JSON."""
