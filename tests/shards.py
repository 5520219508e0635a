"""Writing shards in tests, document by document."""

import numpy as np

from mpnet_ds.data.storage.token_file import TokenFileWriter


def add_document(writer: TokenFileWriter, sequences: list) -> None:
    """Appends one document, given as lists of ids; empty ones are allowed, though the builder makes none."""
    ids = np.concatenate([np.empty(0, int), *map(np.asarray, sequences)])
    writer.add_documents(ids, np.array([len(sequence) for sequence in sequences], int), np.array([len(sequences)]))
