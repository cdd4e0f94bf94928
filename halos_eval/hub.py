"""The hub and its cache: what its client raises, which commit a branch stands at, where things are kept.

The client has changed its HTTP library before, so its errors are named here only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from halos_eval.errors import BadInput, DataUnavailable, Incomplete

RepoType = Literal["dataset", "model", "space"]


def hub_errors() -> tuple[type[Exception], ...]:
    """Exceptions that mean "the hub does not give it": unknown, gated, offline, out of reach."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled


def out_of_reach(error: BaseException | None) -> bool:
    """Whether ``error`` comes from a hub that cannot be reached or is not well, so that a later try may succeed."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    while error and not isinstance(error, OfflineModeIsEnabled):
        if isinstance(error, ConnectionError | TransportError | Incomplete):
            return True
        if isinstance(error, HfHubHTTPError) and (
            error.response.status_code >= 500 or error.response.status_code == 429
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def commit(kind: RepoType, repo: str, branch: str | None = None) -> str:
    """The commit at which ``branch`` (default: main) of a repository stands now, if its files may be had.

    Raises DataUnavailable, Incomplete.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"the {kind} {repo}"
    try:
        found = HfApi().repo_info(repo, repo_type=kind, revision=branch).sha
        HfApi().auth_check(repo, repo_type=kind)  # a gated repository tells everybody its commit
    except GatedRepoError as error:
        raise DataUnavailable(f"{what} is gated: accept its terms on the hub, and give HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise DataUnavailable(f"{what} has no revision {branch}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataUnavailable(f"the hub has no {kind} {repo}, or it is private and needs HF_TOKEN") from error
    except hub_errors() as error:
        kind_of_error = Incomplete if out_of_reach(error) else DataUnavailable
        raise kind_of_error(
            f"{what} cannot be had ({type(error).__name__}): check HF_ENDPOINT, HF_HUB_OFFLINE and the network"
        ) from error
    return str(found)


def cache_root() -> Path:
    """The folder of all caches (HF_HOME): staging fills it, and what the manifest names is below it."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def below_cache(path: Path) -> str:
    """``path`` as seen from the cache's root. Raises BadInput where it is outside."""
    try:
        return path.absolute().relative_to(cache_root().absolute()).as_posix()
    except ValueError as error:
        raise BadInput(
            f"{path} is outside HF_HOME ({cache_root()}), which holds all that is staged: unset HF_DATASETS_CACHE, "
            "HF_HUB_CACHE and HF_MODULES_CACHE"
        ) from error


def switch_off() -> None:
    """Make the hub's client, datasets and transformers read their caches only; before they are imported."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
