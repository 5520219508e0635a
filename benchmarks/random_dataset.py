"""A dataset of random ids, for benchmarks that need one of any size.

Documents have 500 tokens on average, lines 25, and one id in six continues a word. The same 2,000 documents are written
again and again: neither the loader's speed nor the verification's depends on what the ids are.
"""

from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from mpnet_ds.data.manifest import TOKENIZER, DatasetManifest, ShardRecord
from mpnet_ds.data.token_file import TokenFileWriter, token_dtype
from mpnet_ds.files import new_folder
from mpnet_ds.tokenizer import EOS_ID, PretrainingTokenizer

VOCAB_SIZE, CONTINUATIONS = 30527, 5828  # of bert-base-uncased, whose layout MPNet's vocabulary has
FIRST_PIECE, FIRST_CONTINUATION = 5, VOCAB_SIZE - 1 - CONTINUATIONS
TOKENS_OF_A_DOCUMENT, TOKENS_OF_A_LINE, SHARE_OF_CONTINUATIONS = 500, 25, 1 / 6
DOCUMENTS_AT_ONCE = 2_000


def make_dataset(folder: Path, num_tokens: int, num_shards: int) -> None:
    """Makes the dataset folder; a little more than ``num_tokens`` of 2 bytes, and a tenth more for the indexes."""
    documents = random_documents()
    with new_folder(folder) as work:
        tokenizer = made_up_tokenizer()
        tokenizer.save(work / TOKENIZER)
        shards = []
        for number in range(num_shards):
            writer = TokenFileWriter(work / f"shard-{number:05d}", token_dtype(VOCAB_SIZE))
            while writer.num_tokens < num_tokens / num_shards:
                writer.add_documents(*documents)
            writer.close()
            shards.append(ShardRecord.of(writer))
        DatasetManifest.of(tokenizer, shards, sources=[], options={}).save(work)


def random_documents() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some documents, as ``TokenFileWriter.add_documents`` takes them.

    A document's last line ends in ``</s>``; no line begins within a word.
    """
    generator = np.random.default_rng(0)
    lengths = generator.geometric(TOKENS_OF_A_LINE / TOKENS_OF_A_DOCUMENT, DOCUMENTS_AT_ONCE)
    sizes = 1 + generator.geometric(1 / (TOKENS_OF_A_LINE - 1), lengths.sum())
    ids = generator.integers(FIRST_PIECE, FIRST_CONTINUATION, sizes.sum())
    continues = generator.random(ids.size) < SHARE_OF_CONTINUATIONS
    continues[np.cumsum(sizes) - sizes] = False
    ids[continues] = generator.integers(FIRST_CONTINUATION, VOCAB_SIZE - 1, continues.sum())
    ids[np.cumsum(sizes)[np.cumsum(lengths) - 1] - 1] = EOS_ID
    return ids, sizes, lengths


def made_up_tokenizer() -> PretrainingTokenizer:
    """30,527 pieces with the ids of the constants above."""
    starts = [f"w{i}" for i in range(FIRST_PIECE, FIRST_CONTINUATION)]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *starts, *(f"##x{i}" for i in range(CONTINUATIONS)), "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PretrainingTokenizer(backend, "random words")
