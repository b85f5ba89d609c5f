"""What tallymark costs, measured beside its peers: ``python -m bench`` runs everything and prints one table.

Each bench is a module with a function ``run(quick)`` that returns rows, and has a process to itself. The machine may
be busy with other things: what is compared is measured in turns, and the best or the middle of many turns counts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        value: the figure of tallymark, in ``unit``.
        unit: of both figures.
        peer: what it is compared with.
        peer_value: the figure of the peer.
        limit: the most that is allowed: of value / peer_value where there is a peer, of the value where there is
            none. None: for information.
        note: what else has to be known to read the figure.
    """

    what: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The figure as a multiple of the peer's."""
        return self.value / self.peer_value if self.peer_value else None

    @property
    def ok(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.limit is None:
            return None
        return (self.value if self.ratio is None else self.ratio) <= self.limit
