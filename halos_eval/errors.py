"""The errors of this project, with their exit codes and whether they are retried.

    HalosEvalError            1   a bug of this project, or an unexpected error
    ├── BadInput              2   a parameter or a file is wrong         not retried: fix the input
    ├── DataUnavailable       3   a model, dataset or file is missing    not retried: provide it or its token
    ├── JudgeRefused          4   the endpoint rejects the key or model  not retried: fix key, quota or model name
    ├── Incomplete            5   some items have no result yet          retried: the next run resumes
    ├── StoreError            6   the store cannot be read or written    retried: free space, fix credentials
    ├── EvaluationFailed      7   the tool ran but produced no result    not retried: read the log above
    ├── CostLimit             8   the next answers could exceed a limit  not retried: raise the limit
    └── Waiting               9   the vendor works on a batch            retried: at the time in the message

The number is the exit code of the command line. Only ``halos_eval.cli.main`` exits.
"""

from __future__ import annotations

from pydantic import ValidationError


def describe(error: ValidationError) -> str:
    """Return all validation errors of a document on one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'document'}: {one['msg']}" for one in error.errors())


class HalosEvalError(Exception):
    """Base class. The message names the remedy; it is printed without a traceback."""

    exit_code = 1
    retryable = False


class BadInput(HalosEvalError):
    """A parameter or a file is wrong. Raised before any GPU time or money is spent."""

    exit_code = 2


class DataUnavailable(HalosEvalError):
    """A model, dataset or file is unavailable: missing, gated, or the hub is unreachable."""

    exit_code = 3


class JudgeRefused(HalosEvalError):
    """The judge endpoint rejects the key, has no quota left, or does not know the model."""

    exit_code = 4


class Incomplete(HalosEvalError):
    """Some items have no result. Finished items are kept; the next run resumes."""

    exit_code = 5
    retryable = True


class StoreError(HalosEvalError):
    """The store cannot be read or written (disk full, no permission, credentials)."""

    exit_code = 6
    retryable = True


class EvaluationFailed(HalosEvalError):
    """The evaluation tool ended without the expected results."""

    exit_code = 7


class CostLimit(HalosEvalError):
    """The next answers of a judge could exceed the cost limit. Finished ones are kept; the next run resumes."""

    exit_code = 8


class Waiting(HalosEvalError):
    """The vendor works on a batch. The next run, after the time in the message, collects it."""

    exit_code = 9
    retryable = True
