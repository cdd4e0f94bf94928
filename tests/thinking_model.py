"""Makes a scripted model that thinks, as tests/scripted_model.py: the last character of a prompt selects its answer.

python tests/thinking_model.py FOLDER      in the environment `worker`
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

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
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL, *TAGS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=END, pad_token=END)
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Without attention and MLP, the logits are those of the embedding of the current token.
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        current = torch.nn.functional.normalize(torch.randn(len(fast), 64))
        model.model.embed_tokens.weight.copy_(current)
        model.lm_head.weight.zero_()
        for chain in CHAINS:
            ids = [fast.convert_tokens_to_ids(one) for one in chain]
            for before, after in pairwise(ids):
                model.lm_head.weight[after] += 50 * current[before]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
