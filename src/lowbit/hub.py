"""Publishing backbones, merged models and task adapters on the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # its httpx, whichever it is
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from lowbit.adapter import INFO_FILE, ITS_BACKBONE, adapter_card, adapter_files, is_adapter, read_info
from lowbit.checkpoint import CARD_FILE, SIDE_FILES, THIS_REPOSITORY, backbone_card, checkpoint_folder, weight_files
from lowbit.errors import AdapterError, HubError, OutputExistsError
from lowbit.inspection import verify

_INDEX_FILE = "model.safetensors.index.json"
# What a repository may hold of ours: a file of such a name decides what loading finds there.
_OURS = ("config.json", "plan.json", "*.safetensors", _INDEX_FILE, INFO_FILE, "adapter_config.json", *SIDE_FILES)


@dataclass(frozen=True)
class Pushed:
    """Where a directory went: full name and address on the hub, the commit, and the ``files`` that were uploaded."""

    repo_id: str
    url: str
    commit: str
    files: tuple[str, ...]


def push(
    directory: str | Path,
    repo_id: str,
    *,
    backbone: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    replace: bool = False,
) -> Pushed:
    """Publish a backbone, merged model or task adapter as one commit, after every byte was verified.

    Only the files that belong to it are uploaded, with a card that names the repository. ``backbone`` is the hub id of
    an adapter's backbone, for its card; it is fetched and compared. ``private`` is for a repository that is new;
    ``token`` is by default the one you are logged in with. A repository that holds the same files already is left as
    it is. One that holds others raises :class:`OutputExistsError` unless ``replace`` is set: adapters that were tuned
    on the backbone there would no longer load. What the hub refuses raises :class:`HubError`; damaged files
    CheckpointError.
    """
    path = Path(directory)
    fingerprint = verify(path).fingerprint
    if backbone is not None:
        _check_backbone(path, backbone, fingerprint)
    files = _files(path)
    with _typed_errors(repo_id):
        api = HfApi(token=token, library_name="lowbit")
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        info = api.model_info(name, files_metadata=True)
        if private and not info.private:
            raise HubError(f"{name} exists and is public; make it private in its settings, or choose another name")
        operations = _operations(name, info, files, replace)
        if CARD_FILE not in {sibling.rfilename for sibling in info.siblings or []} or replace:
            operations.append(CommitOperationAdd(CARD_FILE, _card(path, name, backbone).encode()))
        commit = str(info.sha)
        if operations:
            message = "Upload task adapter with lowbit" if is_adapter(path) else "Upload model with lowbit"
            commit = api.create_commit(name, operations, commit_message=message, parent_commit=info.sha).oid
    added = tuple(operation.path_in_repo for operation in operations if isinstance(operation, CommitOperationAdd))
    return Pushed(name, f"{api.endpoint}/{name}", commit, added)


def _check_backbone(path: Path, backbone: str, fingerprint: str) -> None:
    """Make sure that the repository ``backbone`` is the one that the adapter in ``path`` was trained on."""
    if not is_adapter(path):
        raise AdapterError(f"{path} is no task adapter; `backbone` is for adapters only")
    found = verify(checkpoint_folder(backbone)).fingerprint
    if found != fingerprint:
        raise AdapterError(
            f"{path} was trained on the backbone {fingerprint[:12]}, {backbone} is {found[:12]}; name its own backbone"
        )


def _files(path: Path) -> dict[str, Path]:
    """The files of a directory that belong to it, by name, the card apart."""
    if is_adapter(path):
        return {name: path / name for name in adapter_files(path)}
    weights = [file.name for file in weight_files(path)]
    names = ["config.json", "plan.json", *weights, *([_INDEX_FILE] if len(weights) > 1 else []), *SIDE_FILES]
    return {name: path / name for name in names if (path / name).is_file()}


def _operations(
    name: str, info: ModelInfo, files: dict[str, Path], replace: bool
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What has to be changed in a repository; changing a file that is there needs ``replace``."""
    there = {sibling.rfilename: sibling for sibling in info.siblings or []}
    new = [file for file in files if file not in there]
    changed = [file for file in files if file in there and not _same(files[file], there[file])]
    stale = [file for file in there if file not in files and any(fnmatch.fnmatchcase(file, ours) for ours in _OURS)]
    if (changed or stale) and not replace:
        listed = ", ".join(sorted([*changed, *stale]))
        raise OutputExistsError(f"{name} holds another model ({listed}); choose another name, or ask to replace it")
    return [
        *(CommitOperationAdd(file, files[file]) for file in [*new, *changed]),
        *(CommitOperationDelete(file) for file in stale),
    ]


def _same(file: Path, there: RepoSibling) -> bool:
    """Whether a file has the content that the hub describes: SHA-256 of large files, git's SHA-1 of others."""
    with file.open("rb") as stream:
        if there.lfs is not None:
            return hashlib.file_digest(stream, "sha256").hexdigest() == there.lfs.sha256
        data = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == there.blob_id


def _card(path: Path, name: str, backbone: str | None) -> str:
    """The directory's own card, or a generated one, with the names on the hub filled in."""
    card = path / CARD_FILE
    if card.is_file():
        text = card.read_text(encoding="utf-8")
    else:
        text = adapter_card(read_info(path)) if is_adapter(path) else backbone_card(path, None)
    if backbone is not None:
        known = ModelCard(text)
        known.data["base_model"], known.data["base_model_relation"] = backbone, "adapter"
        text = str(known).replace(ITS_BACKBONE, backbone)
    return text.replace(THIS_REPOSITORY, name)


@contextmanager
def _typed_errors(repo_id: str) -> Iterator[None]:
    """What goes wrong between here and the hub as one error that says the fix."""
    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: {error}") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id}: the hub is switched off by HF_HUB_OFFLINE; unset it to upload") from error
    except HfHubHTTPError as error:
        raise HubError(f"{repo_id}: {_refusal(error)}") from error
    except (ValueError, RuntimeError) as error:  # a card or a file that the hub does not take
        raise HubError(f"{repo_id}: nothing was published: {error}") from error
    except TransportError as error:
        raise HubError(
            f"{repo_id}: the hub cannot be reached ({error}); look at the connection and HF_ENDPOINT"
        ) from error


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    known = {
        401: "you are not logged in, or the token is not valid; run `hf auth login` or give a token",
        403: "you may not write there; use a token with write permission, or a name of your own",
        412: "the repository changed meanwhile; try again",
    }
    return known.get(status, f"the hub answered {error}")
