"""Loads the data of the demo tasks. lm_eval executes this file by its path, so it imports nothing of halos_eval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict


def load_jsonl(files: dict[str, str], **_: object) -> DatasetDict:
    """Splits from JSONL files beside this module, so that they are found wherever the package is installed.

    ``files`` maps a split to a file name and comes from the task's ``dataset_kwargs``. lm_eval passes the task's
    metadata, and through it the model's arguments, as further keywords; they are of no use here.
    """
    from datasets import Dataset, DatasetDict

    here = Path(__file__).parent
    splits = {}
    for split, name in files.items():
        lines = (here / name).read_text(encoding="utf-8").splitlines()
        splits[split] = Dataset.from_list([json.loads(line) for line in lines])
    return DatasetDict(splits)
