"""Time the encoding of every layout's tokenizers: python benchmarks/bench_layouts.py

WordPiece comes from the builder's memo of chunks, BPE and Unigram from the tokenizers library. A tokenizer of --vocab_size
pieces is trained for each layout and algorithm on the built-in sample, which all of them then encode, documents whole, in
turns, so that load on the machine affects all alike. MB/s on one core, and the ratio to MPNet's WordPiece.
"""

import os
import time
from statistics import median

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the library on one core, as the encoder

from report import add_json_argument, write_results

from mpnet_ds import start_up
from mpnet_ds.command_line import Parser, run
from mpnet_ds.data.builder.wordpiece_memo import TextEncoder
from mpnet_ds.data.text import builtin_sample
from mpnet_ds.tokenizer_layouts import LAYOUTS
from mpnet_ds.tokenizer_training import train_tokenizer

DOCUMENTS_AT_ONCE = 200


def main() -> None:
    parser = Parser("Time the encoding of every layout's tokenizers.", "python benchmarks/bench_layouts.py --repeats 5")
    parser.add_argument("--vocab_size", type=int, default=8000, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    add_json_argument(parser)
    arguments = parser.parse_args()
    documents = ["\n".join(document) for document in builtin_sample.iterate()]
    blocks = [documents[i : i + DOCUMENTS_AT_ONCE] for i in range(0, len(documents), DOCUMENTS_AT_ONCE)]
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    cases = [(layout, algorithm) for layout, family in LAYOUTS.items() for algorithm in family.classes]
    start_up.enter("training a tokenizer for each layout")
    encoders = {
        case: TextEncoder(train_tokenizer(documents, arguments.vocab_size, layout=case[0], algorithm=case[1]))
        for case in cases
    }
    start_up.enter("encoding")
    rates: dict[tuple, list[float]] = {case: [] for case in cases}
    for _ in range(1 + arguments.repeats):  # the first fills the memo
        for case, encoder in encoders.items():
            begin = time.process_time()
            for block in blocks:
                encoder.encode(block)
            rates[case].append(megabytes / (time.process_time() - begin))
    found = {case: median(values[1:]) for case, values in rates.items()}
    start_up.end()
    usual = found[cases[0]]
    print(f"{'layout':12} {'algorithm':12} {'MB/s':>8} {'ratio':>8}")
    for (layout, algorithm), rate in found.items():
        print(f"{layout:12} {algorithm:12} {rate:8.1f} {rate / usual:8.2f}")
    rows = [
        {"layout": case[0], "algorithm": case[1], "bytes_per_second": 1e6 * rate, "ratio": rate / usual}
        for case, rate in found.items()
    ]
    write_results(arguments.json, rows)


if __name__ == "__main__":
    run(main)
