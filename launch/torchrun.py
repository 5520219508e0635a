"""torchrun with the exit code of the rank that failed first, for which torchrun itself has 1; 1 where a signal has ended it.

python launch/torchrun.py ARGUMENT OF torchrun…
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        sys.exit(max(error.get_first_failure()[1].exitcode, 1))
    except SignalException as error:  # it has been passed on to the ranks, which have ended
        sys.exit(128 + error.sigval)
