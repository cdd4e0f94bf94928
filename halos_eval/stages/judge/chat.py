"""The messages that a judge gets. Instructions and outputs are filled in as they are, whatever they contain.

alpaca_eval 0.6.6 fills one text after the other into the template, so that a ``{output_1}`` in an instruction is filled
too, and then splits the whole text into messages, so that a ``<|im_end|>`` in an output ends the prompt there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from halos_eval.config.alpaca_index import PLACEHOLDERS

PLACEHOLDER = re.compile(f"{{({'|'.join(PLACEHOLDERS)})}}")


def fill(template: list[dict[str, str]], texts: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the messages of a template with the texts in place of its placeholders.

    For texts without template syntax, the result is that of alpaca_eval, which strips each message.
    """

    def filled(content: str) -> str:
        return PLACEHOLDER.sub(lambda found: texts[found[1]], content).strip()

    return [{**message, "content": filled(message["content"])} for message in template]


def chat_judge() -> Any:
    """Return alpaca_eval's class that judges pairs, with ``fill`` in place of its own way to make prompts.

    alpaca_eval draws by the instruction which output of a pair is shown first. Its column is named by itself here,
    instead of in a list: the drawn text is the same, and pandas finds it ten times as fast.
    """
    from alpaca_eval.annotators import PairwiseAnnotator, SinglePairwiseAnnotator
    from alpaca_eval.processors import RandomSwitchTwoColumnsProcessor
    from alpaca_eval.utils import prompt_to_chatml

    class Single(SinglePairwiseAnnotator):  # type: ignore[misc]
        def _make_prompts(self, df_to_annotate: Any, prompt_template: str | None = None) -> tuple[list[Any], Any]:
            template = prompt_to_chatml((prompt_template or self.prompt_template).strip())
            rows = df_to_annotate[list(PLACEHOLDERS)].to_dict(orient="records")
            return [fill(template, row) for row in rows], df_to_annotate.copy()

        def _preprocess(self, df_to_annotate: Any) -> Any:
            for one in self.processors:
                if isinstance(one, RandomSwitchTwoColumnsProcessor):
                    one.random_seed_columns = _alone(one.random_seed_columns)
            return super()._preprocess(df_to_annotate)

    class Pairs(PairwiseAnnotator):  # type: ignore[misc]
        SingleAnnotator = Single

        @property
        def random_seed_keys(self) -> Any:
            return _alone(super().random_seed_keys)

    return Pairs


def _alone(columns: Any) -> Any:
    return columns[0] if isinstance(columns, list) and len(columns) == 1 else columns
