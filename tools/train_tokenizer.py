"""Train a WordPiece tokenizer: python tools/train_tokenizer.py --input corpus/ --vocab_size 30527 --output my-tokenizer"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.train_tokenizer import main

if __name__ == "__main__":
    run(main)
