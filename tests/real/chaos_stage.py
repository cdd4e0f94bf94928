"""Stands in for ``halos-eval`` of the environment `worker` in a night of chaos: all of it but vLLM and lm_eval.

Claims, journals, records and failure notes are the stages' own. What a model answers follows from the checkpoint's name
and the question, and each answer takes some time.
"""

from __future__ import annotations

import sys
import time
import zlib
from pathlib import Path

DOCUMENTS = 6
SECONDS = 0.2
"""Per document or prompt."""


def install(folder, environments):
    """Make the environments ``worker`` and ``judge`` below ``folder``, for a cluster's images of these names."""
    here = f"PYTHONPATH={Path(__file__).parents[2]} exec {environments}/worker/bin/python {__file__}"
    for name, line in (("worker", here), ("judge", f"exec {environments}/judge/bin/halos-eval")):
        program = folder / name / "bin" / "halos-eval"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\n{line} "$@"\n')
        program.chmod(0o755)


def correct(name, task, number):
    """What the double of lm_eval finds for a document: 0 or 1."""
    return zlib.crc32(f"{name} {task} {number}".encode()) % 2


def text_of(name, prompt):
    """What the model of this name answers to a prompt."""
    return f"{name} thinks of {zlib.crc32(f'{name} {prompt}'.encode())}"


def harness_work(config, weights, job, manifest, load):
    """Do what lm_eval would do for a task, with the stage's journal."""
    from halos_eval.stages.run import Outcome
    from halos_eval.storage import filesystem
    from halos_eval.storage.journal import Journal
    from halos_eval.storage.records import Coverage, Score, Usage

    url = job.journal(filesystem.join(config.output_dir, "parts"), config.force)
    with Journal(url, seconds=0) as journal:
        done = journal.load()
        for number in range(DOCUMENTS):
            if str(number) not in done:
                time.sleep(SECONDS)
                done[str(number)] = correct(config.name, config.task, number)
                journal.add(str(number), done[str(number)])
    return Outcome(
        scores=(Score(task=config.task, metric="acc", value=sum(done.values()) / DOCUMENTS),),
        coverage=Coverage(attempted=DOCUMENTS, scored=DOCUMENTS),
        usage=Usage(load_seconds=1, work_seconds=1),
        parts=url,
    )


def load_double(weights, options):
    """Return an engine that needs no vLLM."""
    from halos_eval.stages.engine import Finished, Sample
    from tests.doubles.engine import Answering
    from tests.doubles.tokenizer import CHATML, Tokenizer

    name = Path(weights.model).parent.name

    class Slow(Answering):
        def answer(self, ask):
            time.sleep(SECONDS)
            prompt = self.tokenizer.decode(ask.token_ids)
            text = text_of(name, prompt)
            return Finished(ask.key, len(ask.token_ids), samples=(Sample(text, len(text), "stop"),))

    return Slow(Tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>", chat_template=CHATML), max_model_len=4096)


def main():
    """Run a command of halos-eval without vLLM and lm_eval."""
    from halos_eval.stages import vllm

    vllm.load_engine = load_double  # before the stages are imported, which keep it
    from halos_eval.cli.main import main
    from halos_eval.stages.harness import stage

    stage._with_data = harness_work
    main()


if __name__ == "__main__":
    sys.argv[0] = "halos-eval"
    main()
