"""Pushing a folder to the Hub: what is there already is not sent again, and nothing is lost when it fails."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from locus_lightning.errors import ConfigError


def check_name(name: str) -> None:
    """Refuse a name that is no OWNER/NAME, before anything is computed."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"--push is {name!r}; it is OWNER/NAME, such as ada/my-model.")


def check_login() -> None:
    """Refuse to begin without a token of the Hub.

    Raises:
        ConfigError: says how to log in.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError("--push needs a token of the Hub that may write: log in (hf auth login), or set HF_TOKEN.")


def push_folder(folder: Path, name: str, kind: Literal["model", "dataset"], private: bool) -> str:
    """Send a folder's files to a repository of the Hub, which is made where it is not there yet.

    Files that the Hub has already are not sent again, so that a push that failed is simply tried again.

    Args:
        folder: whose files are sent.
        name: OWNER/NAME.
        kind: of the repository.
        private: whether a new repository is private.

    Returns:
        The address of the commit, or of the repository.

    Raises:
        ConfigError: the Hub refuses, or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        made = api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message="Push with locus-lightning")
    except (HfHubHTTPError, OSError, ValueError) as cause:
        reason = " ".join(str(cause).split())[:300]
        raise ConfigError(
            f"{folder} could not be pushed to {name} ({type(cause).__name__}: {reason}); it stays as it is: check the name, your token's rights "
            "and the network, then give the same command again."
        ) from cause
    return str(getattr(made, "commit_url", None) or name)
