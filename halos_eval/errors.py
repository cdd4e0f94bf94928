"""Everything that can go wrong, and what happens next.

    HalosEvalError            1   a defect of ours or something unforeseen
    ├── BadInput              2   a parameter or a file is wrong         not retried: mend the input
    ├── DataUnavailable       3   a model, dataset or file is not there  not retried: provide it or its token
    ├── JudgeRefused          4   the endpoint refuses the key or model  not retried: mend key, quota or model name
    ├── Incomplete            5   some items have no result yet          retried: the next run resumes
    ├── StoreError            6   the store cannot be read or written    retried: free space, mend credentials
    └── EvaluationFailed      7   the tool ran and gave no result        not retried: read the log above

The number is the exit code of the command line. Only ``halos_eval.cli.main`` exits.
"""

from __future__ import annotations

from pydantic import ValidationError


def describe(error: ValidationError) -> str:
    """Everything that is wrong in a document, on one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors())


class HalosEvalError(Exception):
    """Base class. The message names the remedy; it is printed without a traceback."""

    exit_code = 1
    retryable = False


class BadInput(HalosEvalError):
    """A parameter or a file is wrong. Found before a GPU or a dollar is spent."""

    exit_code = 2


class DataUnavailable(HalosEvalError):
    """A model, dataset or file that is needed cannot be had (absent, gated, hub out of reach)."""

    exit_code = 3


class JudgeRefused(HalosEvalError):
    """The judge endpoint refuses the key, the quota is spent, or it does not know the model."""

    exit_code = 4


class Incomplete(HalosEvalError):
    """Some items have no result. What was finished is kept; the next run does the rest."""

    exit_code = 5
    retryable = True


class StoreError(HalosEvalError):
    """The store cannot be read or written (disk full, no permission, credentials)."""

    exit_code = 6
    retryable = True


class EvaluationFailed(HalosEvalError):
    """The evaluation tool ended without the results that it owes."""

    exit_code = 7
