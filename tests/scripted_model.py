"""Makes a Llama whose next token depends on the current one alone, so that its answers are known.

Its tokenizer is that of a base model: it adds <s>, and its end token is </s>. The chat template is ChatML, and rejects
the system role.

python tests/scripted_model.py FOLDER      in the environment `worker`
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
END = "<|im_end|>"
# Each text, a token after the other. After the end of its turn, the model goes on with another turn: cdcd...
TEXTS = ("\nhi" + END, "ab" + END, "xyzw" + END, "m" + END, "pqp", END + "cdc")


def tokenizer_of(special: Iterable[str]) -> Any:
    """Return a tokenizer with a token for each byte, and these special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def save(folder: Path, tokenizer: Any, chains: Iterable[Sequence[int]], strength: float = 1) -> None:
    """Write a checkpoint whose model goes on along these chains of tokens; ``strength`` scales its logits."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Without attention and MLP, the logits are those of the embedding of the current token.
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        current = torch.nn.functional.normalize(torch.randn(len(tokenizer), 64))
        model.model.embed_tokens.weight.copy_(current)
        model.lm_head.weight.zero_()
        for chain in chains:
            for before, after in pairwise(chain):
                model.lm_head.weight[after] += strength * current[before]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make(folder: Path) -> None:
    """Write the checkpoint."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = tokenizer_of(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATE
    save(folder, fast, [fast.encode(text, add_special_tokens=False) for text in TEXTS])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
