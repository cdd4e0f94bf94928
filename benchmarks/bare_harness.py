"""The bare ``lm_eval`` command, which also writes when it asked the model first and when it ended.

python -m benchmarks.bare_harness TIMES.json run OPTION...      in the environment `worker`
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(times: Path) -> None:
    """Run the command of the remaining arguments. Write its seconds as a record's usage has them."""
    began = time.monotonic()
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.models.vllm_causallms import VLLM

    asked: list[float] = []

    def noted(ask: Callable[..., Any]) -> Callable[..., Any]:
        def first(*words: Any, **options: Any) -> Any:
            asked.append(time.monotonic())
            return ask(*words, **options)

        return first

    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(VLLM, name, noted(getattr(VLLM, name)))
    cli_evaluate()
    seconds = {"load_seconds": asked[0] - began, "work_seconds": time.monotonic() - asked[0]}
    times.write_text(json.dumps(seconds), encoding="utf-8")


if __name__ == "__main__":
    path = Path(sys.argv.pop(1))
    sys.argv[0] = "lm_eval"
    main(path)
