"""Import token files of Megatron-LM or fairseq:

python tools/import_dataset.py --input data-bin/train --tokenizer my-tokenizer --output my-data
"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.import_dataset import main

if __name__ == "__main__":
    run(main)
