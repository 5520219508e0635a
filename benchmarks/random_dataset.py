"""A dataset of random ids, for benchmarks that need one of any size.

Documents have 500 tokens on average, lines 25, and one id in six continues a word. The same 2,000 documents are written
repeatedly: the speed of neither loader nor verification depends on the ids.
"""

from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from mpnet_ds.data.storage.manifest import TOKENIZER, DatasetManifest, ShardRecord
from mpnet_ds.data.storage.token_file import TokenFile, TokenFileWriter, token_dtype
from mpnet_ds.files import new_folder
from mpnet_ds.tokenizer import EOS_ID, PretrainingTokenizer

VOCAB_SIZE, CONTINUATIONS = 30527, 5828  # of bert-base-uncased, whose layout MPNet's vocabulary has
FIRST_PIECE = 5
TOKENS_OF_A_DOCUMENT, TOKENS_OF_A_LINE, SHARE_OF_CONTINUATIONS = 500, 25, 1 / 6
DOCUMENTS_AT_ONCE = 2_000


def make_dataset(folder: Path, num_tokens: int, num_shards: int, vocab_size: int = VOCAB_SIZE) -> None:
    """Make the dataset folder: slightly more than ``num_tokens`` of 2 bytes, plus a tenth for the indexes.

    Each shard has at least a million tokens.
    """
    documents = random_documents(vocab_size)
    with new_folder(folder) as work:
        tokenizer = made_up_tokenizer(vocab_size)
        tokenizer.save(work / TOKENIZER)
        shards = []
        for number in range(num_shards):
            writer = TokenFileWriter(work / f"shard-{number:05d}", token_dtype(vocab_size))
            while writer.num_tokens < num_tokens / num_shards:
                writer.add_documents(*documents)
            writer.close()
            shards.append(ShardRecord.of(TokenFile(writer.prefix), tokenizer))
        DatasetManifest.of(tokenizer, shards, sources=[], options={}).save(work)


def first_continuation(vocab_size: int) -> int:
    """Return the first id of pieces that continue words."""
    return vocab_size - 1 - vocab_size * CONTINUATIONS // VOCAB_SIZE


def random_documents(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw documents, as ``TokenFileWriter.add_documents`` takes them.

    A document's last line ends in ``</s>``; no line begins inside a word.
    """
    generator, continuation = np.random.default_rng(0), first_continuation(vocab_size)
    lengths = generator.geometric(TOKENS_OF_A_LINE / TOKENS_OF_A_DOCUMENT, DOCUMENTS_AT_ONCE)
    sizes = 1 + generator.geometric(1 / (TOKENS_OF_A_LINE - 1), lengths.sum())
    ids = generator.integers(FIRST_PIECE, continuation, sizes.sum())
    continues = generator.random(ids.size) < SHARE_OF_CONTINUATIONS
    continues[np.cumsum(sizes) - sizes] = False
    ids[continues] = generator.integers(continuation, vocab_size - 1, continues.sum())
    ids[np.cumsum(sizes)[np.cumsum(lengths) - 1] - 1] = EOS_ID
    return ids, sizes, lengths


def made_up_tokenizer(vocab_size: int) -> PretrainingTokenizer:
    """Make a tokenizer of that many pieces, with ids as above."""
    first = first_continuation(vocab_size)
    starts, continuations = (f"w{i}" for i in range(FIRST_PIECE, first)), (f"##x{i}" for i in range(vocab_size - 1 - first))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", *starts, *continuations, "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PretrainingTokenizer(backend, "random words")
