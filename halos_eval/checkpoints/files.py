"""Which files of a checkpoint are read."""

from __future__ import annotations

import re

# Files that determine a model's outputs. README, optimizer state and this project's metadata do not.
SCORED = re.compile(
    r".*\.safetensors|.*\.safetensors\.index\.json|.*config\.json|token.*|vocab.*|merges\.txt|tekken\.json|"
    r"special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)|.*\.model"
)
METADATA = "halos_eval.yaml"
# Files whose change makes it another checkpoint. Logs and optimizer states may change without that.
COUNTED = re.compile(rf"{SCORED.pattern}|{re.escape(METADATA)}|.*\.jinja")
