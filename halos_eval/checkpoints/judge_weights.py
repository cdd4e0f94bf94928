"""The weights of a judge that is served: found, checked and digested as those of a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from halos_eval.checkpoints.known import KnownWeights, Reader, known_weights
from halos_eval.checkpoints.weights import Weights, hub_model, hub_name, in_storage, inspect
from halos_eval.config.served_judge import JudgeChoice, ServedJudge
from halos_eval.errors import BadInput, StoreError
from halos_eval.storage import layout
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import readable, update_model

log = logging.getLogger(__name__)


def judge_weights(judge: ServedJudge, manifest: Manifest | None = None, root: str | None = None) -> Weights:
    """Return the weights of ``judge``. The store ``root`` keeps the digest of a folder, which may take minutes to read.

    Raise BadInput if they cannot be served, DataUnavailable.
    """
    if in_storage(judge.model):
        raise BadInput(
            f"judge {judge.model} is in object storage; expected a folder or NAMESPACE/NAME on the hub. Copy it to a "
            "folder"
        )
    url = root and layout.judge_weights_url(root, judge.model, judge.revision)
    known = readable(url, KnownWeights)[0] if url else None
    weights = inspect(judge.model, judge.revision, manifest, Reader(known))
    if weights.adapter:
        raise BadInput(
            f"judge {judge.model} is a LoRA adapter; expected full weights. Merge it into its base with PEFT's "
            "merge_and_unload, and name that folder"
        )
    found = known_weights(judge.model, judge.revision, weights)
    if url and found.folders and found != known:
        try:
            update_model(url, found)
        except StoreError as error:  # somebody who may only read the store can look at a plan
            log.info("the digest of the judge's weights is not kept: %s", error)
    return weights


def to_fetch(judge: JudgeChoice) -> tuple[str, str | None] | None:
    """Return the hub repository and the revision that ``judge`` needs; None for a folder or a judge by name."""
    return hub_model(judge.model, judge.revision) if isinstance(judge, ServedJudge) else None


def to_load(model: str, revision: str | None, manifest: Manifest | None) -> tuple[str, str | None]:
    """Return the folder, or the hub repository and its revision, that vLLM loads. Read no weights.

    Raise DataUnavailable unless this machine's cache has what ``manifest`` pins.
    """
    if manifest and not Path(model).exists():
        return str(manifest.find("model", hub_name(model, revision)).open()), None
    return model, revision
