"""An engine that is loaded in a process of its own: a module that is imported in a moment."""

from __future__ import annotations

import os
from pathlib import Path

from halos_eval.stages.engine import Finished


class Counting:
    """Scores a text by its length, one request after the other. It may end at one."""

    def __init__(self, ends=None):
        self.tokenizer, self.max_model_len, self.capacity = "tokenizer", 1000, 4
        self.ends = ends

    def finished(self, asks, at_once=None):
        for ask in asks:
            if ask.key == self.ends:
                raise ValueError("CUDA out of memory")
            yield Finished(ask.key, len(ask.token_ids), score=(-float(len(ask.token_ids)), True))


def load(folder, ends=None):
    """Load the engine, and note its GPUs in ``folder``."""
    (Path(folder) / f"{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    if ends == "loading":
        raise ValueError("no free blocks")
    return Counting(ends)
