"""The hub and its cache: the errors of its client, the commits of branches, and paths in the cache.

Only this module names the client's errors, because the client has changed its HTTP library before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from halos_eval.errors import BadInput, DataUnavailable, Incomplete

RepoType = Literal["dataset", "model", "space"]
SCHEME = "hf://"
"""Start of the URLs of a model's files on the hub: hf://NAMESPACE/NAME@COMMIT/FILE."""


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions for data that the hub does not deliver: unknown, gated, offline or unreachable."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled


def out_of_reach(error: BaseException | None) -> bool:
    """Return whether ``error`` means that the hub is unreachable or failing, so that a retry may succeed."""
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
    """Return the current commit of ``branch`` (default: main) of a repository whose files can be downloaded.

    Raises DataUnavailable, or Incomplete if a retry may succeed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"the {kind} {repo}"
    try:
        found = HfApi().repo_info(repo, repo_type=kind, revision=branch).sha
        HfApi().auth_check(repo, repo_type=kind)  # the commit of a gated repository is public
    except GatedRepoError as error:
        raise DataUnavailable(f"{what} is gated. Accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise DataUnavailable(f"{what} has no revision {branch}. Check its spelling") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataUnavailable(
            f"the hub has no {kind} {repo}, or it is private. Check its spelling, and set HF_TOKEN if it is private"
        ) from error
    except hub_errors() as error:
        kind_of_error = Incomplete if out_of_reach(error) else DataUnavailable
        raise kind_of_error(
            f"{what} is unavailable ({type(error).__name__}). Check HF_ENDPOINT, HF_HUB_OFFLINE and the network"
        ) from error
    return str(found)


def model_url(repo: str, commit: str) -> str:
    """Return the URL of a model's files at a commit, for ``read``."""
    return f"{SCHEME}{repo}@{commit}"


def listing(repo: str, revision: str | None) -> tuple[str, dict[str, int]]:
    """Return the commit of a model, and the sizes of the files in its top folder. Raises ``hub_errors``."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or [] if "/" not in file.rfilename}
    return str(info.sha), sizes


def gated(error: DataUnavailable) -> bool:
    """Return whether ``read`` failed because the hub shows this machine's token only the list of a model's files."""
    from huggingface_hub.errors import GatedRepoError

    return isinstance(error.__cause__, GatedRepoError)


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Return the bytes of a model's file from ``start`` up to ``end``. Other bytes are not downloaded.

    Raises DataUnavailable, or Incomplete if a retry may succeed.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    model, _, name = url.removeprefix(SCHEME).rpartition("/")
    repo, _, revision = model.partition("@")
    first, last = start or 0, None if end is None else end - 1
    span = {"Range": f"bytes={first}-{'' if last is None else last}"}
    data = b""
    try:
        where = hf_hub_url(repo, name, revision=revision)
        headers = build_hf_headers() | span | {"Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", where, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            offset = first if response.status_code == 206 else 0  # a server without ranges sends the whole file
            for piece in response.iter_bytes():
                data += piece
                if end is not None and offset + len(data) >= end:
                    break
    except hub_errors() as error:
        kind = Incomplete if out_of_reach(error) else DataUnavailable
        raise kind(
            f"{url} is unavailable ({type(error).__name__}). Check HF_ENDPOINT, HF_TOKEN and the network"
        ) from error
    return data[first - offset : None if end is None else end - offset]


def cache_root() -> Path:
    """Return the folder of all caches (HF_HOME). The paths of a manifest are relative to it."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def below_cache(path: Path) -> str:
    """Return ``path`` relative to the cache's root. Raises BadInput if it is outside."""
    try:
        return path.absolute().relative_to(cache_root().absolute()).as_posix()
    except ValueError as error:
        raise BadInput(
            f"{path} is outside HF_HOME ({cache_root()}), which must contain all fetched data. "
            "Unset HF_DATASETS_CACHE, HF_HUB_CACHE and HF_MODULES_CACHE"
        ) from error


def switch_off() -> None:
    """Make the hub's client, datasets and transformers read only their caches. Call it before they are imported."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
