"""Lines of a log that say that a GPU, its driver or the connection between GPUs failed."""

from __future__ import annotations

import re

from halos_eval.processes import last_error

# PyTorch's and NCCL's messages. Illegal accesses and launch failures can be a kernel's bug as well, so their number is
# limited (halos_eval.orchestration.restarts).
FAULT = re.compile(
    r"CUDA error: (?!out of memory|device-side assert|no kernel image|invalid )"
    r"|CUDA_ERROR_(?:ECC_UNCORRECTABLE|UNKNOWN|LAUNCH_FAILED|ILLEGAL_ADDRESS|HARDWARE_STACK_ERROR|NVLINK_UNCORRECTABLE)"
    r"|uncorrectable (?:ECC|NVLink) error"
    r"|CUDA unknown error|No CUDA GPUs are available|GPU is lost|fallen off the bus"
    r"|NCCL error|\bnccl(?:System|Internal|Remote|UnhandledCuda)Error\b|NCCL.{0,40}\btimed? ?out\b"
)
# The other GPUs report a fault of NCCL after one has run out of memory.
MEMORY = re.compile(r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|CUDA_ERROR_OUT_OF_MEMORY")


def gpu_fault(log: str) -> str:
    """Return the first line of ``log`` that names a fault of a GPU; empty if there is none, or memory was the cause."""
    if MEMORY.search(log):
        return ""
    return next((last_error(line) for line in log.splitlines() if FAULT.search(line)), "")
