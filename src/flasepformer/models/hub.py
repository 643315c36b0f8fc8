"""Models from and to the Hugging Face Hub, in our own format only.

A model is downloaded once into the cache of `huggingface_hub` and used from there without any request. Its
files count as usable when their digests are those that the Hub announced and their structure is sound; both
are looked at again on every use, so a file that was damaged later is noticed and fetched anew.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from flasepformer.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE, save_model
from flasepformer.models.errors import CheckpointError
from flasepformer.models.network import SeparationNetwork
from flasepformer.models.registry import count_parameters
from flasepformer.temporary import temporary_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_PREFIX = "hf://"
"""Begins the name of a model on the Hub: `hf://owner/name` or `hf://owner/name@revision`."""

CARD_FILE = "README.md"

_FILES = (CONFIG_FILE, WEIGHTS_FILE)

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_NO_ACCESS = f"access to it has to be granted: ask for it on its page, then {_LOGIN}"
_NOT_THE_HUB = "what answers is not the Hub; a proxy or a login page may stand in between"

_DIGEST = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""SHA-256 of a large file, or the SHA-1 that git gives to a small one."""

_REPO_ID = re.compile(r"(?!.*(--|\.\.|\.git$))(?=.{,96}$)\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)

_LICENCE = re.compile(
    r"apache-2\.0|mit|bsd-[23]-clause|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-4\.0|[al]?gpl-3\.0|mpl-2\.0|unlicense"
)
"""Licences that the Hub knows by these names; any other is "other" there, with its own name beside it."""


class HubError(CheckpointError):
    """The Hub did not give or did not take a model; the message says why, and what to do."""


def is_hub_name(name: str | Path) -> bool:
    """Tell whether a text names a model on the Hub rather than a file here.

    It does if it begins with "hf://", or if it reads "owner/name" and there is no folder `owner` here.
    """
    if not isinstance(name, str):
        return False
    owner_name = _REPO_ID.fullmatch(name.partition("@")[0])
    return name.startswith(HUB_PREFIX) or (owner_name is not None and not Path(name).parent.exists())


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """Split the name of a model on the Hub.

    >>> parse_hub_name("hf://owner/name@v1")
    ('owner/name', 'v1')

    Args:
        name: "owner/name" or "owner/name@revision", with or without "hf://" before it; a revision is a
            branch, a tag or a commit.

    Returns:
        "owner/name", and the revision or None.

    Raises:
        HubError: If that is no name on the Hub.
    """
    repo_id, at, revision = name.removeprefix(HUB_PREFIX).partition("@")
    if not _REPO_ID.fullmatch(repo_id) or (at and not revision):
        raise HubError(
            f"{name!r} is no model on the Hub; expected hf://owner/name or hf://owner/name@revision"
        )
    return repo_id, revision or None


def download_model(repo_id: str, revision: str | None = None) -> Path:
    """Give the folder of a model on the Hub, downloading it the first time.

    A model that is in the cache is used without a request, also when its branch has moved on: name a new
    revision to get that. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as
    usual.

    What is checked, after the download and on every later use: the digest that the Hub announced (later only
    where the cache keeps it, that is with symbolic links), the header of the weights and the length of the
    file against it, and that the config can be parsed.

    Args:
        repo_id: "owner/name".
        revision: Branch, tag or commit; by default the main branch.

    Returns:
        A folder in our format, for `load_model`.

    Raises:
        HubError: If the model is not in the cache and cannot be downloaded whole, or is not in our format.
    """
    from huggingface_hub import HfApi, constants, errors, hf_hub_url

    _check_repo_id(repo_id)
    revision = revision or constants.DEFAULT_REVISION
    cached = _find_cached(repo_id, revision)
    faults = [fault for path in cached if (fault := _find_fault(path, _recorded_digest(path)))]
    if cached and not faults:
        return cached[0].parent
    api = HfApi()
    try:
        return _download(api, repo_id, revision)
    except HubError:
        raise
    except _troubles() as error:
        cause = _innermost(error)
        state = f"damaged in the cache ({faults[0]})" if faults else "not in the cache"
        message = f"{repo_id} is {state} and cannot be downloaded: {_explain(cause, api.endpoint)}"
        if not isinstance(cause, errors.HfHubHTTPError) or cause.response.status_code >= 500:
            config, weights = (
                hf_hub_url(repo_id, name, revision=revision, endpoint=api.endpoint) for name in _FILES
            )
            message += f". By hand: put {config} and {weights} into one folder, and load that folder"
        raise HubError(message) from error


def push_to_hub(
    model: SeparationNetwork,
    repo_id: str,
    *,
    info: Mapping[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a model of flasepformer",
) -> str:
    """Publish a model on the Hub: weights, config and a model card, in one commit.

    Args:
        model: A network of one of the families.
        repo_id: "owner/name"; made if missing. Files of these names are replaced, others left alone.
        info: What is known of the weights, as in `save_model`. The card says this and no more: "description",
            "licence" and whatever else is there, such as scores.
        private: Whether a new repository is private; one that exists stays as it is.
        token: By default that of `HF_TOKEN` or of `hf auth login`.
        commit_message: Of the commit.

    Returns:
        The URL of the model.

    Raises:
        HubError: If the Hub did not take it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _check_repo_id(repo_id)
    api = HfApi(token=token)
    with temporary_folder() as folder:
        save_model(model, folder, info)
        description = json.loads((folder / CONFIG_FILE).read_bytes())
        card = _model_card(repo_id, description, count_parameters(model))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        operations = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
        try:
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.create_commit(repo_id, operations, commit_message=commit_message)
        except _troubles() as error:
            raise HubError(
                f"{repo_id} cannot be published: {_explain(_innermost(error), api.endpoint)}"
            ) from error
    return str(url)


def _check_repo_id(repo_id: str) -> None:
    if not _REPO_ID.fullmatch(repo_id):
        raise HubError(f"{repo_id!r} is no model on the Hub; expected owner/name")


def _find_cached(repo_id: str, revision: str) -> list[Path]:
    """Return our files in the cache if all are there, else nothing."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo_id, name, revision=revision) for name in _FILES]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths if len(paths) == len(found) else []


def _recorded_digest(path: Path) -> str | None:
    """Return the digest of a cached file: the name of what it links to. Without links, none is on record."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if _DIGEST.fullmatch(name) else None


def _find_fault(path: Path, digest: str | None) -> str | None:
    """Say what is wrong with a file, None if nothing is."""
    try:
        if digest and _digest(path, len(digest)) != digest:
            return f"{path.name} is not what the Hub announces, by its digest"
        if path.name == WEIGHTS_FILE:
            with safe_open(path, framework="pt"):  # checks the header, and the length of the file against it
                return None
        return None if isinstance(json.loads(path.read_bytes()), dict) else f"{path.name} is no JSON object"
    except (SafetensorError, ValueError, OSError) as error:
        return f"{path.name} is damaged: {error}"


def _digest(path: Path, length: int) -> str:
    """Return the SHA-256 of a file (64 digits), or the SHA-1 that git gives it (40)."""
    with path.open("rb") as file:
        if length == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()


def _download(api: "HfApi", repo_id: str, revision: str) -> Path:
    """Fetch both files of one commit; only then the cache learns that this is the revision."""
    commit, digests = _look_up(api, repo_id, revision)
    config = _fetch(api, repo_id, commit, CONFIG_FILE, digests[CONFIG_FILE])
    if not {"family", "config"} <= json.loads(config.read_bytes()).keys():
        raise HubError(f"{repo_id} is not a model of flasepformer: its {CONFIG_FILE} names no family")
    _fetch(api, repo_id, commit, WEIGHTS_FILE, digests[WEIGHTS_FILE])
    if revision != commit:
        reference = config.parents[2] / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="ascii")
    return config.parent


def _look_up(api: "HfApi", repo_id: str, revision: str) -> tuple[str, dict[str, str]]:
    """Ask for the commit of a revision, and for the digests of our files in it."""
    from huggingface_hub import constants, errors

    try:
        answer = api.model_info(
            repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except (KeyError, TypeError) as error:  # JSON, but of something else
        raise errors.FileMetadataError(_NOT_THE_HUB) from error
    files = {file.rfilename: file for file in answer.siblings or []}
    if not files and answer.gated:
        raise HubError(f"{repo_id} cannot be downloaded: {_NO_ACCESS}")
    missing = [name for name in _FILES if name not in files]
    if missing:
        raise HubError(f"{repo_id} is not a model of flasepformer: it has no {' and no '.join(missing)}")
    digests = {
        name: str(file.lfs.sha256 if file.lfs else file.blob_id)
        for name, file in files.items()
        if name in _FILES
    }
    if not all(_DIGEST.fullmatch(text) for text in (*digests.values(), str(answer.sha))):
        raise errors.FileMetadataError(_NOT_THE_HUB)
    return str(answer.sha), digests


def _fetch(api: "HfApi", repo_id: str, commit: str, name: str, digest: str) -> Path:
    """Return a file that is as announced: from the cache, else from the Hub, the second time in any case."""
    for force in (False, True):
        path = Path(api.hf_hub_download(repo_id, name, revision=commit, force_download=force))
        fault = _find_fault(path, digest)
        if fault is None:
            return path
        path.unlink()  # without symbolic links, huggingface_hub would not put the new file in its place
    raise OSError(fault)


def _troubles() -> tuple[type[Exception], ...]:
    """Return what `huggingface_hub` raises when the network, the Hub or the disk is at fault."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return httpx.HTTPError, OSError, ValueError, RuntimeError


def _innermost(error: Exception) -> Exception:
    """Return the fault itself where `huggingface_hub` has put it into another."""
    from huggingface_hub import errors

    wrappers = (errors.LocalEntryNotFoundError, ValueError, RuntimeError)
    while isinstance(error, wrappers) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _explain(error: Exception, endpoint: str) -> str:
    """Say for a person what went wrong between here and the Hub."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE forbids it"
        case errors.GatedRepoError():
            return _NO_ACCESS
        case errors.RevisionNotFoundError():
            return "it has no such revision"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 404):
            return f"{endpoint} knows no such model, or it is private: check its name, and {_LOGIN}"
        case errors.HfHubHTTPError() if error.response.status_code == 403:
            return f"{endpoint} does not permit it: {_LOGIN}, with a token that may"
        case errors.HfHubHTTPError():
            return f"{endpoint} answers with status {error.response.status_code}; try again later"
        case errors.FileMetadataError() | json.JSONDecodeError():
            return _NOT_THE_HUB
        case httpx.TimeoutException():
            return f"{endpoint} does not answer in time"
        case httpx.HTTPError():
            return f"the connection to {endpoint} failed ({error})"
        case _:
            return str(error).partition("\n")[0].rstrip(".")


def _model_card(repo_id: str, description: Mapping[str, Any], n_parameters: int) -> str:
    """Write the README of a model from its config file: nothing is said that is not there."""
    from huggingface_hub import ModelCardData

    config, info = description["config"], dict(description["info"])
    summary, licence = str(info.pop("description", "")), str(info.pop("licence", ""))
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    known = _LICENCE.fullmatch(slug) is not None
    metadata = ModelCardData(
        license=(slug if known else "other") if slug else None,
        license_name=slug if slug and not known else None,
        library_name="flasepformer",
        pipeline_tag="audio-to-audio",
        tags=["speech-separation", "audio-to-audio"],
    ).to_yaml()
    rows = {
        "family": description["family"],
        "talkers": config["n_sources"],
        "sample rate": f"{config['sample_rate']} Hz",
        "parameters": f"{n_parameters:,}",
        "licence": licence or "not stated",
        **info,
    }
    table = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())
    return f"""---
{metadata}
---

# {repo_id}

{summary}

A model of `flasepformer` that separates {config["n_sources"]} people who talk at the same time, from one
microphone:

    flasepformer separate talk.wav --model {HUB_PREFIX}{repo_id}

or in Python:

```python
from flasepformer import Separator

Separator.from_pretrained("{repo_id}").separate_file("talk.wav", "tracks/")
```

| | |
|---|---|
{table}
"""


def _cell(value: Any) -> str:
    """Write a value as one cell of a Markdown table."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
