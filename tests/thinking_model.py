"""Makes a scripted model that thinks, as tests/scripted_model.py: the last character of a prompt selects its answer.

python tests/thinking_model.py FOLDER      in the environment `worker`
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripted_model import save, tokenizer_of  # beside this program

# The opening of the answer's turn ends with the last character of the question, because a token depends on the one
# before it only. With enable_thinking false the template closes the thinking itself.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}[/T]{% endif %}"
)
SPECIAL = ("<s>", "<|im_start|>", "<|im_end|>")
TAGS = ("[T]", "[/T]")
END = "<|im_end|>"
CHAINS = (
    ("a", "x", ",", "Q", "y", "[/T]", "5", END),  # thinks with a comma and a stop string, and leaves the opening out
    ("b", "[T]", "z", "w", "z"),  # thinks without an end
    ("d", "7", END),  # does not think
)  # fmt: skip


def make(folder: Path) -> None:
    """Write the checkpoint."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizer_of([*SPECIAL, *TAGS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    save(folder, fast, [fast.convert_tokens_to_ids(list(chain)) for chain in CHAINS], strength=50)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
