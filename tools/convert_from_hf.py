"""Makes a start for --init_from of a Hugging Face folder or a fairseq file: python tools/convert_from_hf.py HF_DIR start"""

from mpnet_ds.command_line import run
from mpnet_ds.programs.convert_from_hf import main

if __name__ == "__main__":
    run(main)
