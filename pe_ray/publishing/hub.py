"""Hugging Face's hub, through its own client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pe_ray.errors import InputError


def require_hub(repo: str) -> None:
    """Raise InputError unless `repo` is a name that the hub takes and someone is logged in."""
    with _hub_errors_as_input_errors(repo):
        from huggingface_hub import HfApi

        HfApi().whoami()
        HfApi().repo_exists(repo, repo_type="dataset")


def push(directory: Path, repo: str) -> str:
    """Upload the folder to a data set's repository; return its address.

    The repository is created if need be. Data and evidence of an earlier set are deleted from it.
    """
    with _hub_errors_as_input_errors(repo):
        from huggingface_hub import HfApi

        address = HfApi().create_repo(repo, repo_type="dataset", exist_ok=True)
        HfApi().upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=directory,
            commit_message="Publish by pe_ray",
            delete_patterns=["data/*", "evidence/*"],
        )
    return str(address)


@contextmanager
def _hub_errors_as_input_errors(repo: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError:
        raise InputError("--push: needs huggingface_hub; pip install 'pe_ray[hub]'") from None
    except Exception as error:  # its versions raise those of different HTTP libraries
        reason = " ".join(str(error).split())
        raise InputError(
            f"--push {repo}: {type(error).__name__}: {reason}; log in by `hf auth login` as one "
            "who may write there, then repeat the command"
        ) from error
