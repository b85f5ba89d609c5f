"""What may be asked, and what each word of it means. The sole owner of the semantics of a query.

A :class:`Query` is a value: stores translate it, everybody else only builds it. ``Query.build`` takes the loose forms
that people type (``"now-1h"``, ``"5m"``, ``"metadata.region=eu"``) and raises :class:`~tallymark.errors.QueryError`
naming the part that is wrong.
"""
