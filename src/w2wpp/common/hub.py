"""Spaces and datasets on the Hugging Face hub: a folder or a hub id in, a folder out; and files up in one commit.

Only safetensors, JSON and the card travel. The hub's own cache keeps what was fetched, so a second time needs no network.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from w2wpp.common.assets import TINY_FACES
from w2wpp.common.errors import W2WError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Token = str | bool | None  # a token, True for the saved one, False for none


def is_hub_id(source: str | Path) -> bool:
    """Whether this could name a repository of the hub, and names nothing on disk."""
    return not Path(source).exists() and HUB_ID.fullmatch(str(source)) is not None


def fetched(
    source: str | Path, patterns: Sequence[str], *, revision: str | None = None, token: Token = None, local_files_only: bool = False
) -> str | Path:
    """What a loader takes: `source` as it is where it is on disk or no hub id, else the folder that its files were fetched to.

    patterns: which files of the repository. revision: a branch, tag or commit. local_files_only: only what was fetched before.
    Raises W2WError if the repository has none of them, or cannot be reached.
    """
    if str(source) == TINY_FACES or not is_hub_id(source):
        return source
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                str(source),
                revision=revision,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
                endpoint=endpoint(),
            )
        )
    except Exception as error:  # the hub's own, its HTTP library's, and the system's
        raise W2WError(f"{source} is not here, and cannot be fetched from {endpoint()}: {_reason(error)} Check the name.") from error
    if not any(folder.rglob("*.safetensors")):
        raise W2WError(f"{source} on {endpoint()} has none of {', '.join(patterns)}. Is it a repository of w2wpp?")
    return folder


def pushed(
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    revision: str | None = None,
    token: Token = None,
    private: bool | None = None,
) -> str:
    """Upload files, by their names in the repository, in one commit; returns its URL. The repository is made if it is not there.

    Raises W2WError if the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint(), token=token)
    operations = [CommitOperationAdd(name, content if isinstance(content, bytes) else str(content)) for name, content in files.items()]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url)
    except Exception as error:  # the hub's own, its HTTP library's, and the system's
        raise W2WError(
            f"cannot upload to {repo} on {endpoint()}: {_reason(error)} Log in with `hf auth login`, or give a token."
        ) from error


def endpoint() -> str:
    """Where the hub is: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
