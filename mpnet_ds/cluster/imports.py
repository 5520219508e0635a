"""Imports the libraries of a training run one after another and prints a line of JSON for each: ``python -m …imports``.

What is at hand is printed first (``{"begin": "torch"}``), so that it is known if this process does not survive it.
"""

import json
from importlib import import_module

LIBRARIES = ("numpy", "torch", "deepspeed", "transformers", "tokenizers")


def main() -> None:
    """Prints ``{"name", "version"}`` or ``{"name", "error"}`` for each library, torch's with its devices."""
    for name in LIBRARIES:
        print(json.dumps({"begin": name}), flush=True)
        print(json.dumps({"name": name} | _describe(name)), flush=True)


def _describe(name: str) -> dict:
    try:
        if name == "deepspeed":
            from mpnet_ds.quiet import quiet_libraries

            quiet_libraries()
        library = import_module(name)
        devices = _devices(library) if name == "torch" else {}
        return {"version": str(library.__version__)} | devices
    except Exception as error:  # whatever a broken installation raises
        return {"error": f"{type(error).__name__}: {error}"}


def _devices(torch) -> dict:
    """CUDA's and NCCL's versions, and each GPU with its memory in bytes, of which ``free`` is not taken by others."""
    if not torch.cuda.is_available():
        return {"cuda": torch.version.cuda, "gpus": []}
    gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append({"name": torch.cuda.get_device_name(number), "memory": total, "free": free})
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None
    return {"cuda": torch.version.cuda, "nccl": nccl, "gpus": gpus}


if __name__ == "__main__":
    main()
