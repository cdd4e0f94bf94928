"""The process that replays a model's answers to lm_eval, and lets it execute them in confined processes.

    python -I -m halos_eval.stages.harness.scorer FOLDER PARENT

`halos_eval.stages.harness.score` starts it and reads its outcome. It has no secrets. Once lm_eval has read the task's
data, it has no network either.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from types import FrameType

import halos_eval
from halos_eval.config.settings import Settings
from halos_eval.data.replay import replayed
from halos_eval.errors import HalosEvalError
from halos_eval.stages.harness import sandbox
from halos_eval.stages.harness.items import Items
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.harness.replay import FILE, parse_answers, replayer
from halos_eval.stages.harness.results import scored
from halos_eval.stages.harness.score import ERROR, OUTCOME, REQUEST
from halos_eval.stages.harness.task_index import task_manager
from halos_eval.stages.harness.tasks import dataset_revisions, evaluate, include_paths, leaves, load_tasks
from halos_eval.stages.harness.thinking import Thoughts
from halos_eval.stages.harness.warned import warnings_counted
from halos_eval.stages.run import Outcome, named
from halos_eval.storage.manifest import Manifest

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
"""Programs and libraries."""


def main() -> None:
    """Score the request in FOLDER, unless the process PARENT has ended. Write the outcome or the error beside it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)
    sandbox.die_with_parent()
    if os.getppid() != int(sys.argv[2]):  # the stage was killed before the line above
        raise SystemExit(1)
    sandbox.protect()
    folder = Path(sys.argv[1])
    try:
        outcome = _score(folder)
    except Exception as error:
        logging.getLogger(__name__).debug("not scored", exc_info=True)
        failed = error if isinstance(error, HalosEvalError) else named(error)
        document = {"error": type(failed).__name__, "message": str(failed)}
        (folder / ERROR).write_text(json.dumps(document), encoding="utf-8")
        if failed is not error:
            raise
        raise SystemExit(failed.exit_code) from error
    (folder / OUTCOME).write_text(outcome.model_dump_json(), encoding="utf-8")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _score(folder: Path) -> Outcome:
    config = HarnessConfig.model_validate_json((folder / REQUEST).read_bytes())
    answers = parse_answers((folder / FILE).read_bytes())
    sandbox.check(Settings().accept_weak_sandbox)
    manifest = config.load_manifest()
    with replayed(manifest, config.task):
        import evaluate as metrics

        # A metric writes what it is given to a file, which an item must be allowed to do.
        item = folder / "item"
        metrics.config.HF_METRICS_CACHE = item / "metrics"
        manager = task_manager([config.task], include_paths(config.include_path))
        tasks = load_tasks(config, manager)
        sandbox.install(sandbox.network_filter())
        thoughts = answers.thoughts or Thoughts()
        with closing(Items(item, readable(config, manifest))) as items, warnings_counted() as warned:
            for task in leaves(tasks):
                items.wrap(task)
            thoughts.leave_out(tasks)
            results = evaluate(config, replayer(answers), manager, tasks)
    about = dict(answers.about)
    results["config"] |= about.pop("config", {})
    outcome = scored(config.output_dir, results | about, warned, thoughts)
    details = outcome.details | {"stopped_items": items.stopped}
    return outcome.model_copy(update={"details": details, "inputs": dataset_revisions(tasks) | outcome.inputs})


def readable(config: HarnessConfig, manifest: Manifest | None) -> tuple[str, ...]:
    """Return what the code of an item may read: Python, programs, and the task's own files and data."""
    own = [str(one.location) for one in manifest.needs(config.task)] if manifest else []
    own += [config.include_path] if config.include_path else []
    return (*SYSTEM, sys.prefix, sys.base_prefix, str(Path(halos_eval.__file__).parent), *own)


if __name__ == "__main__":
    main()
