"""torchrun with the exit code of the rank that failed first, for which torchrun itself has 1.

python launch/torchrun.py ARGUMENT OF torchrun…
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)  # as shells have it, where a signal has ended a rank
