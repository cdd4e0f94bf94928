"""Compute the figures of annotated pairs by alpaca_eval alone. Prints JSON: the figures of each model.

python tests/real/alpaca_alone.py FILE      MODEL -> [[instruction, output, reference, preference or null], ...]

The rows are in the order of AlpacaEval's instructions, because alpaca_eval finds an instruction's difficulty by it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")


def figures(model: str, rows: list[list]) -> dict[str, float]:
    """Return alpaca_eval's figures."""
    import pandas as pd
    from alpaca_eval.metrics import get_length_controlled_winrate

    pairs = pd.DataFrame(rows, columns=["instruction", "output_2", "output_1", "preference"])
    pairs = pairs.assign(generator_1="reference", generator_2=model, annotator="published")
    found = get_length_controlled_winrate(pairs, save_weights_dir=None)
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    documents = json.loads(Path(sys.argv[1]).read_bytes())
    json.dump({model: figures(model, rows) for model, rows in documents.items()}, sys.stdout)
