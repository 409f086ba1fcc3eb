"""Models of the Hugging Face hub, named `ORGANIZATION/NAME[@REVISION]` in the place of a folder.

`huggingface_hub` does the rest: its cache (HF_HOME), its tokens (HF_TOKEN, or `hf auth login`), its
offline switch (HF_HUB_OFFLINE=1). Nothing is fetched unless such a name is given.
"""

import argparse
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tora2_jax.errors import CheckpointError, first_line
from tora2_jax.system.addresses import local_path

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")
# Weights of other frameworks beside those of PyTorch, and pictures of model cards.
_IGNORED = ("*.h5", "*.msgpack", "*.ot", "*.tflite", "*.mp4", "*.gif", "*.webp")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")  # where there are safetensors, the same once more


class HubError(CheckpointError):
    """A model of the hub cannot be had; the message says why."""


class HubName(NamedTuple):
    """A model of the hub."""

    repository: str
    revision: str | None  # branch, tag or commit; None: the main branch

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def hub_name(path: str | Path) -> HubName | None:
    """The model that a name means; None if it is a path.

    What is on the disk is a path, and so is what would lie in a folder that is there: a mistyped
    `checkpoints/toj` is not sought elsewhere.
    """
    match = _NAME.fullmatch(str(path))
    if match is None or Path(path).parent.is_dir():
        return None
    return HubName(match[1], match[2])


def local(path: str | Path) -> Path:
    """A path as it is; of the name of a model the folder of its files, which are fetched if needed.

    Raises:
        HubError: there is no such model or revision, it may not be read, or it cannot be reached.
    """
    name = hub_name(path)
    return Path(path) if name is None else _fetched(name)


def weights_path(text: str) -> Path:
    """The type of an argparse option that names a folder or file of weights, or a hub model."""
    try:
        return local(local_path(text))
    except HubError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _fetched(name: HubName) -> Path:
    from huggingface_hub import errors  # late: most starts have no use for it

    refused = {
        errors.GatedRepoError: "the hub gives this model only to those who have agreed to its "
        "terms; do so on its page, and log in with `hf auth login` or HF_TOKEN",
        errors.RevisionNotFoundError: "the hub has the model, but no such revision",
        errors.RepositoryNotFoundError: "there is no such folder, and the hub shows no model of "
        "this name (a private one needs `hf auth login` or HF_TOKEN)",
    }
    try:
        files, why = _listed(name, tuple(refused))
        if files is not None:
            safe = any(file.endswith(".safetensors") for file in files)
            return _snapshot(name, _PICKLES if safe else ())
        with suppress(errors.LocalEntryNotFoundError):
            return _snapshot(name, _PICKLES, local_files_only=True)  # if it has safetensors
        return _snapshot(name, (), local_files_only=True)
    except tuple(refused) as error:
        told = next(text for kind, text in refused.items() if isinstance(error, kind))
        raise HubError(f"{name}: {told}") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{name}: there is no such folder, {why}, and its cache has no such model"
        ) from error
    except OSError as error:
        raise HubError(f"{name}: cannot be stored: {first_line(error)}") from error


def _listed(name: HubName, refusals: tuple[type[Exception], ...]) -> tuple[list[str] | None, str]:
    """The files of a model; or None, and why the hub is not asked."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    try:
        return HfApi().list_repo_files(name.repository, revision=name.revision), ""
    except refusals:
        raise
    except Exception as error:  # of whichever HTTP library it uses
        return None, f"the hub cannot be reached ({first_line(error)})"


def _snapshot(name: HubName, ignored: tuple[str, ...], *, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name.repository,
        revision=name.revision,
        ignore_patterns=[*_IGNORED, *ignored],
        local_files_only=local_files_only,
    )
    return Path(folder)
