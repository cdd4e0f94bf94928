"""Call alpaca_eval as a library: it builds the prompts, parses the answers and computes the win rates.

github.com/tatsu-lab/alpaca_eval; length control: arXiv 2404.04475.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from halos_eval.config.judge import Judge
from halos_eval.data import prompts
from halos_eval.stages.judge.chat import chat_judge
from halos_eval.stages.judge.client import Completions
from halos_eval.stages.judge.installed import as_installed, template_path
from halos_eval.stages.judge.swapped import number, read_answers, swapping

LEAST_READ = 0.95
"""Share of the judge's answers that must be readable: a win rate over fewer does not represent the set."""


class TooFewReadError(Exception):
    """Too few of the judge's answers were readable for a win rate that represents the set.

    ``read``: how many; ``asked``: of how many.
    """

    def __init__(self, read: int, asked: int) -> None:
        super().__init__(read, asked)
        self.read, self.asked = read, asked


def evaluate_pairs(
    judge: Judge,
    rows: list[dict[str, Any]],
    reference: prompts.PromptSet,
    completions: Completions,
    calibration: str | None,
    name: str,
    swap: bool = False,
    cut: Collection[str] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return alpaca_eval's figures for the pairs, and the annotation of each pair.

    ``calibration`` is the commit of the data for length control; None without length control. With ``swap`` the judge
    is asked in both orders. Pairs with instructions in ``cut`` have no preference.
    """
    import pandas as pd

    def metric(annotations: list[dict[str, Any]], **options: Any) -> Any:
        for one in annotations:
            if one["instruction"] in cut:
                one["preference"] = None
        check_read(annotations, cut, swap)
        return getattr(metrics, "get_length_controlled_winrate" if calibration else "get_winrate")(
            annotations, **options
        )

    # alpaca_eval reads each row on its own, which takes ten times as long with pandas' other strings.
    plain = pd.option_context("future.infer_string", False)
    with plain, _known_noise_silenced(), _calibration_at(calibration), tempfile.TemporaryDirectory() as folder:
        from alpaca_eval import evaluate, metrics

        # At its exit Python would look for cycles in all that alpaca_eval has imported, for half a second. Only here:
        # some of vLLM's libraries report what is not collected.
        atexit.register(gc.freeze)
        judge = as_installed(judge)
        completions.read = reader(judge)
        leaderboard, annotations = evaluate(
            model_outputs=_outputs(rows, name),
            reference_outputs=_outputs(list(reference.rows), f"reference of {name}"),
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
            Annotator=swapping(chat_judge()) if swap else chat_judge(),
            caching_path=None,
            fn_completions=completions,
        )
    pairs = pd.DataFrame(annotations)
    return leaderboard.loc[name].to_dict(), json.loads(pairs.to_json(orient="records"))


def check_read(annotations: list[dict[str, Any]], cut: Collection[str], swap: bool) -> None:
    """Raise TooFewReadError if too few of the judge's answers that count could be read.

    Equal outputs are draws that need no answer. On their own they would give a win rate of 50. Judgements of outputs
    with instructions in ``cut`` do not count, whether they could be read or not.
    """
    asked = [one for one in annotations if one["output_1"] != one["output_2"] and one["instruction"] not in cut]
    read = sum(number(one["preference"]) is not None for one in asked)
    if asked and read < LEAST_READ * len(asked):
        raise TooFewReadError(*((read_answers(asked), 2 * len(asked)) if swap else (read, len(asked))))


def _outputs(rows: list[dict[str, Any]], generator: str) -> Any:
    """Return the columns that alpaca_eval merges. Others, such as output_1, could clash with its own."""
    import pandas as pd

    return pd.DataFrame(
        {
            "instruction": [row["instruction"] for row in rows],
            "output": [row["output"] for row in rows],
            "generator": generator,
        }
    )


def reader(judge: Judge) -> Callable[[dict[str, Any]], bool]:
    """Return a function that tells whether the judge's parser can read an answer."""
    from alpaca_eval import completion_parsers

    config = judge.alpaca_config()
    parser = getattr(completion_parsers, config["fn_completion_parser"])
    options = deepcopy(config["completion_parser_kwargs"])  # a parser may compile them in place
    whole = judge.completion_key == "completions_all"

    def read(answer: dict[str, Any]) -> bool:
        try:
            found = list(parser(answer if whole else answer["text"], **options))
        except Exception:  # noqa: BLE001 (any error of a parser is an unreadable answer, as in alpaca_eval)
            return False
        return len(found) == 1 and isinstance(found[0], (int, float)) and not math.isnan(found[0])

    return read


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

    The template's path is absolute, because alpaca_eval joins relative ones to its own folder. Raise EvaluationFailed.
    """
    folder.mkdir()
    if judge.template_text is None:
        template = template_path(judge)
    else:
        template = folder / "template.txt"
        template.write_text(judge.template_text, encoding="utf-8")
    document = {judge.name: judge.alpaca_config() | {"prompt_template": str(template)}}
    config = folder / "configs.yaml"
    config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return config
