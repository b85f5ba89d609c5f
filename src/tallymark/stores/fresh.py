"""What of a batch a store does not have yet: what makes every write idempotent."""

from typing import Any

import numpy as np
import pyarrow as pa

from tallymark.batch import CLOSED, Batch


def fresh(batch: Batch, stored: dict[str, int]) -> Batch:
    """The rows at or after the stored position of their journal, none of a journal that is stored so far, and the
    positions that come further. Where none does, the batch was written before, and there is nothing.

    Args:
        stored: the stored positions of the journals of the batch; a journal that is not known is left out.
    """
    positions = {name: end for name, end in batch.positions.items() if end > stored.get(name, 0)}
    if not stored:
        return Batch(batch.table, positions)
    if not positions:
        return Batch(batch.table.slice(0, 0), {})
    # The few texts that there are as numbers: comparing those takes a fraction of the time.
    journals: Any = batch.table["journal"].combine_chunks().dictionary_encode()
    never = CLOSED * 2**16
    starts = [
        never if name in stored and name not in positions else stored.get(name, 0)
        for name in journals.dictionary.to_pylist()
    ]
    keep = batch.table["seq"].to_numpy() >= np.array(starts, np.int64)[journals.indices.to_numpy()]
    return Batch(batch.table if keep.all() else batch.table.filter(pa.array(keep)), positions)
