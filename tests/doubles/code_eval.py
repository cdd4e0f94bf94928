"""A stand-in for `code_eval`, the metric that humaneval loads when it is imported: it executes nothing."""

from __future__ import annotations

SCRIPT = """
import datasets
import evaluate
{imports}

class CodeEval(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = {{"predictions": datasets.Sequence(text), "references": text}}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references, k=(1,)):
        return {returned}
"""


def script(returned: str, imports: str = "") -> str:
    """The metric's script, whose result is the expression ``returned``."""
    return SCRIPT.format(returned=returned, imports=imports)
