"""Call alpaca_eval as a library: it builds the prompts, parses the answers and computes the win rates.

github.com/tatsu-lab/alpaca_eval; length control: arXiv 2404.04475.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from halos_eval.config.judge import Judge
from halos_eval.data import prompts
from halos_eval.errors import BadInput
from halos_eval.stages.judge.client import Completions

LEAST_READ = 0.95
"""Share of the judge's answers that must be readable: a win rate over fewer does not represent the set."""


class TooFewReadError(Exception):
    """Too few of the judge's answers were readable for a win rate that represents the set."""

    def __init__(self, read: int) -> None:
        super().__init__(read)
        self.read = read


def evaluate_pairs(
    judge: Judge,
    rows: list[dict[str, Any]],
    reference: prompts.PromptSet,
    completions: Completions,
    calibration: str | None,
    name: str,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return alpaca_eval's figures for the pairs, and the annotation of each pair.

    ``calibration`` is the commit of the data for length control; None without length control.
    """
    import pandas as pd

    def metric(annotations: list[dict[str, Any]], **options: Any) -> Any:
        # Equal outputs are draws that need no answer of the judge. On their own they would give a win rate of 50.
        read = int(sum(pd.notna(one["preference"]) for one in annotations)) - (len(reference.rows) - completions.asked)
        if completions.asked and read < LEAST_READ * completions.asked:
            raise TooFewReadError(read)
        return getattr(metrics, "get_length_controlled_winrate" if calibration else "get_winrate")(
            annotations, **options
        )

    with _known_noise_silenced(), _calibration_at(calibration), tempfile.TemporaryDirectory() as folder:
        from alpaca_eval import evaluate, metrics

        leaderboard, annotations = evaluate(
            model_outputs=pd.DataFrame([{**row, "generator": name} for row in rows]),
            reference_outputs=pd.DataFrame(list(reference.rows)).assign(generator=f"reference of {name}"),
            annotators_config=_write_config(judge, Path(folder) / judge.name),
            name=name,
            output_path=None,
            precomputed_leaderboard=None,
            is_overwrite_leaderboard=True,
            is_cache_leaderboard=False,
            is_return_instead_of_print=True,
            fn_metric=metric,
            metric_kwargs={"save_weights_dir": None} if calibration else {},
            sort_by="win_rate",
            annotation_kwargs={"chunksize": None},
            caching_path=None,
            fn_completions=completions,
        )
    pairs = pd.DataFrame(annotations)
    return leaderboard.loc[name].to_dict(), json.loads(pairs.to_json(orient="records"))


@contextmanager
def _known_noise_silenced() -> Iterator[None]:
    """Silence alpaca_eval 0.6.6's deprecation warnings, and its traceback for each unreadable answer.

    The warnings are about setuptools and scikit-learn, which the lock pins. The tracebacks go to the root logger; the
    record has the number of unreadable answers, and annotations.json has the answers.
    """

    def no_traceback(record: logging.LogRecord) -> bool:
        return record.exc_info is None

    root = logging.getLogger()
    root.addFilter(no_traceback)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"sklearn\.linear_model\._logistic")
            yield
    finally:
        root.removeFilter(no_traceback)


@contextmanager
def _calibration_at(revision: str | None) -> Iterator[None]:
    """Make alpaca_eval fetch the data for length control at ``revision`` instead of the branch's current commit."""
    from alpaca_eval.metrics import glm_winrate

    download = glm_winrate.hf_hub_download
    glm_winrate.hf_hub_download = partial(download, revision=revision)
    try:
        yield
    finally:
        glm_winrate.hf_hub_download = download


def _write_config(judge: Judge, folder: Path) -> Path:
    """Write the judge's configuration to a file, because alpaca_eval reads it only from one; return its path.

    The template's path is absolute, because alpaca_eval joins relative ones to its own folder. Raise BadInput.
    """
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    folder.mkdir()
    if judge.template_text is None:
        template = EVALUATORS_CONFIG_DIR / judge.prompt_template
        if not template.is_file():
            raise BadInput(
                f"judge {judge.name}: alpaca_eval does not include the prompt template {judge.prompt_template}"
            )
    else:
        template = folder / "template.txt"
        template.write_text(judge.template_text, encoding="utf-8")
    document = {judge.name: judge.alpaca_config() | {"prompt_template": str(template)}}
    config = folder / "configs.yaml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    return config
