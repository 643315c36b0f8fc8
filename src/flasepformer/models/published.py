"""Weights published by others for our networks, by name: what there is, and a local copy of each.

`published.toml` lists them; FLASEPFORMER_MODELS may name a file of one's own, TOML or YAML. The first use of
a name fetches its files from where they were published, checks them, and turns them into our format; from
then on the local copy is used, without any request. The copies lie in FLASEPFORMER_HOME, by default in the
user's cache folder.

Hosts: GitHub, also with git-LFS (FLASEPFORMER_GITHUB_ENDPOINT instead of https://github.com; the variables of
GitHub's own tools have other uses), and ModelScope (MODELSCOPE_ENDPOINT, as for its own client).
"""

import dataclasses
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError, safe_open

from flasepformer.files import locked, write_whole
from flasepformer.models.checkpoints import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    convert_checkpoint,
    convert_published_weights,
)
from flasepformer.models.errors import CheckpointError, FetchError
from flasepformer.models.layouts import LAYOUTS
from flasepformer.models.registry import FAMILIES, ModelInfo
from flasepformer.temporary import temporary_folder

HOSTS = {
    "github": ("FLASEPFORMER_GITHUB_ENDPOINT", "https://github.com"),
    "modelscope": ("MODELSCOPE_ENDPOINT", "https://modelscope.cn"),
}
"""Where weights are published: the variable that names another address, and the address."""

CARD_FILE = "README.md"

Progress = Callable[[int, int], None]
"""Called with the bytes that are here, and how many there will be."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


class PublishedError(CheckpointError):
    """A published model cannot be had, or a list of them makes no sense."""


class LicenceNotAccepted(PublishedError):
    """The licence of the weights asks for a yes, and nobody has given one."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where files are published."""

    host: str
    """A key of `HOSTS`."""
    repository: str
    """ "owner/name"."""
    revision: str
    """Commit on GitHub; on ModelScope a branch will do, as digests are held to from the first download on."""

    def __str__(self) -> str:
        return f"{self.host} {self.repository} at {self.revision}"


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file, and what it must be; size and digest may be left to the listing of ModelScope."""

    path: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """What a model reaches by its publication, in dB, means over all mixtures of a published set."""

    set: str
    """Name of the set for `flasepformer prepare`."""
    task: str
    split: str
    si_snri: float
    sdri: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model costs on two cores of a CPU, with `separate` as it comes."""

    real_time_factor: float
    megabytes: float
    """Memory beside the program and the model, for a recording of a minute."""


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """An entry of the list: everything that is known of published weights before they are here.

    What network they belong to is said by `settings`, the file published beside them, or where that is YAML,
    which the package does without, by `layout` and `config`.
    """

    name: str
    use: str
    """What to take it for, in a few words."""
    source: Source
    weights: PublishedFile
    family: str
    """Key of `FAMILIES`."""
    parameters: int
    """Trainable ones, without auxiliary heads; the weights must have as many."""
    licence: str
    """Of the weights."""
    commercial_use: bool
    """Whether the licence permits it; if not, it has to be accepted before the download."""
    data: str
    """What it was trained on."""
    citation: str
    settings: PublishedFile | None = None
    layout: str = ""
    """Key of `LAYOUTS`, of those whose weights can be read alone."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the family's config; what the weights themselves tell is left out."""
    giga_multiply_adds: float | None = None
    sample_rate: int = 8000
    talkers: int = 2
    scores: tuple[PublishedScore, ...] = ()
    measured: Measured | None = None

    def __post_init__(self) -> None:
        fixed = [file.sha256 and file.size for file in self.files.values()]
        known = [name for name, layout in LAYOUTS.items() if layout.read_weights]
        faults = [
            (not _NAME.fullmatch(self.name), "a name has small letters, digits, dots and dashes"),
            (self.source.host not in HOSTS, f"host must be one of {', '.join(HOSTS)}"),
            (self.source.repository.count("/") != 1, "repository must be owner/name"),
            (self.family not in FAMILIES, f"family must be one of {', '.join(FAMILIES)}"),
            (self.source.host == "github" and not all(fixed), "files on GitHub need size and sha256"),
            (
                len({file.name for file in self.files.values()}) < len(self.files),
                "weights and settings must have two names",
            ),
            (bool(self.settings) == bool(self.layout), "give either settings, or layout and config"),
            (self.layout not in ("", *known), f"layout must be one of {', '.join(known)}"),
            *(
                (file.sha256 is not None and not _DIGEST.fullmatch(file.sha256), "sha256 has 64 digits")
                for file in self.files.values()
            ),
            *((not getattr(self, key), f"{key} is empty") for key in ("use", "licence", "data", "citation")),
        ]
        for is_wrong, message in faults:
            if is_wrong:
                raise ValueError(message)
        FAMILIES[self.family][0](**self.config)  # raises for what is no config

    @property
    def files(self) -> dict[str, PublishedFile]:
        """What is fetched, by the field's name."""
        files = {"settings": self.settings, "weights": self.weights}
        return {kind: file for kind, file in files.items() if file}

    @property
    def download_size(self) -> str:
        """Size of the download, for a person; where only the host knows it, that of the numbers."""
        known = self.weights.size
        return f"about {4 * self.parameters / 1e6:.0f} MB" if known is None else f"{known / 1e6:.0f} MB"

    def info(self) -> ModelInfo:
        """Describe the model as `list_models` does."""
        return ModelInfo(
            name=self.name,
            family=self.family,
            sample_rate=self.sample_rate,
            n_sources=self.talkers,
            n_parameters=self.parameters,
            giga_multiply_adds=self.giga_multiply_adds,
            trained=True,
            description=self.use,
            licence=self.licence,
            data=self.data,
            citation=self.citation,
            source=str(self.source),
        )


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All published models."""

    models: Mapping[str, PublishedModel]
    aliases: Mapping[str, tuple[str, str]]
    """Short names: the model that each stands for, and why that one."""
    not_published: Mapping[str, str]
    """Names that one may look for in vain, and what there is to say."""

    def find(self, name: str) -> PublishedModel | None:
        """Return the model of a name or alias, None if there is none.

        Raises:
            PublishedError: The weights of that name were never published.
        """
        if name in self.not_published:
            raise PublishedError(self.not_published[name])
        return self.models.get(self.aliases[name][0] if name in self.aliases else name)


def published_models() -> Catalogue:
    """Read the list of the package and, if FLASEPFORMER_MODELS names one, the user's.

    Raises:
        PublishedError: A list cannot be read, or an entry makes no sense; the message names it.
    """
    content = _read_list(Path(str(files("flasepformer") / "models" / "published.toml")))
    if own := os.environ.get("FLASEPFORMER_MODELS"):
        for table, entries in _read_list(Path(own)).items():
            content[table] = {**content[table], **entries}
    catalogue = Catalogue(**content)
    for alias, (name, _) in catalogue.aliases.items():
        if name not in catalogue.models:
            raise PublishedError(f"alias {alias} stands for {name}, which is not in the list")
    return catalogue


def find_published(name: str | Path) -> PublishedModel | None:
    """Return the published model of a name or alias; None if there is none, or a file here has that name.

    Raises:
        PublishedError: The weights of that name were never published, or a list cannot be read.
    """
    return published_models().find(name) if isinstance(name, str) and not os.path.lexists(name) else None


def local_copy(model: PublishedModel) -> Path | None:
    """Return the folder of a model that is on this computer, None if it is not.

    A copy of something else than the list now says, or one that was damaged, is none.
    """
    folder = home() / "models" / model.name
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        with safe_open(folder / WEIGHTS_FILE, framework="pt"):  # checks header and length
            pass
        origin = config["info"]["published"]
        same = (origin["source"], origin["config"]) == (str(model.source), dict(model.config)) and all(
            origin[kind]["path"] == file.path and file.sha256 in (None, origin[kind]["sha256"])
            for kind, file in model.files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return folder if same else None


def obtain(
    model: PublishedModel,
    *,
    accept_licence: bool = False,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Path:
    """Give the folder of a published model in our format; the first time, fetch it and convert it.

    Of several processes one fetches, the others wait for it. An interrupted one goes on with the next call.

    Args:
        model: See `find_published`.
        accept_licence: Whether a licence that forbids commercial use is accepted; FLASEPFORMER_ACCEPT_LICENCE
            (1, yes or true) says so, too.
        progress: Called with the bytes that are here, and how many there will be.
        notify: Called with sentences for a person.

    Raises:
        LicenceNotAccepted: It is not, and the model is not here; nothing was fetched.
        PublishedError: The model cannot be had; the message says why and what to do, in one line.
    """
    notify = notify or _tell_nobody
    folder = local_copy(model)
    if folder is not None:
        return folder
    if not (model.commercial_use or accept_licence or licence_is_accepted()):
        raise LicenceNotAccepted(
            f"the weights of {model.name} are under {model.licence}, which has to be accepted before they "
            "are fetched: --accept-licence, FLASEPFORMER_ACCEPT_LICENCE=1, or accept_licence=True in Python"
        )
    work = home() / "downloads" / model.name
    try:
        work.mkdir(parents=True, exist_ok=True)
        with locked(
            work.with_name(f"{work.name}.lock"),
            lambda: notify(f"another process is fetching {model.name}; waiting for it"),
        ):
            folder = local_copy(model)  # another process may have fetched it meanwhile
            if folder is None:
                folder = _make_local_copy(model, work, progress or _show_nobody, notify)
    except FetchError as error:
        urls = " and ".join(_url(model.source, file) for file in model.files.values())
        by_hand = (
            f"{urls} into one folder, and name that folder as the model"
            if model.settings
            else f"{urls} into {work}, and give the same command again"
        )
        raise PublishedError(
            f"{model.name} cannot be downloaded: {error}. The same command goes on from there; by hand: put "
            f"{by_hand}"
        ) from error
    except OSError as error:
        where = error.filename or home()
        raise PublishedError(
            f"{model.name} cannot be kept in {home()} (FLASEPFORMER_HOME): {where}: {error.strerror or error}"
        ) from error
    return folder


def export(folder: Path, target: Path) -> Path:
    """Copy a local copy to a folder for a machine without network; it appears there when it is whole.

    Raises:
        PublishedError: Something else is there already, or it cannot be written.
    """
    try:
        if target.exists():
            if all(_same(folder / name, target / name) for name in (CONFIG_FILE, WEIGHTS_FILE)):
                return target
            raise PublishedError(
                f"{target} exists and is not this model; move it away, or name another folder"
            )
        with temporary_folder(f".{target.name}-copy-", target.parent) as growing:
            shutil.copytree(folder, growing / "whole")
            (growing / "whole").rename(target)
    except OSError as error:
        raise PublishedError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def licence_is_accepted() -> bool:
    """Tell whether the environment accepts licences that forbid commercial use."""
    return os.environ.get("FLASEPFORMER_ACCEPT_LICENCE", "").strip().lower() in ("1", "yes", "true")


def home() -> Path:
    """Return the folder of local copies, downloads under way and digests on record."""
    if own := os.environ.get("FLASEPFORMER_HOME"):
        return Path(own).absolute()
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "flasepformer"


def _make_local_copy(
    model: PublishedModel, work: Path, progress: Progress, notify: Callable[[str], None]
) -> Path:
    from flasepformer.models.fetching import fetch  # here: for those who fetch nothing it need not be read

    files = _settle(model, notify)
    for kind, file in files.items():
        show = progress if kind == "weights" else _show_nobody
        assert file.size is not None
        assert file.sha256 is not None
        fetch(
            _url(model.source, file), work / file.name, size=file.size, sha256=file.sha256,
            progress=show, notify=notify,
        )  # fmt: skip
    _put_on_record(model, *files.values())
    growing, folder = work / "converted", home() / "models" / model.name
    shutil.rmtree(growing, ignore_errors=True)  # of a process that was killed
    published = {kind: vars(file) for kind, file in files.items()}
    info = {
        "description": f"{model.use[:1].upper()}{model.use[1:]}; published at {model.source}",
        "licence": model.licence,
        "data": model.data,
        "citation": model.citation,
        "source": str(model.source),
        "scores": [dataclasses.asdict(score) for score in model.scores],
        "published": {"source": str(model.source), "config": dict(model.config), **published},
    }
    path = work / model.weights.name
    found = (
        convert_published_weights(
            path, growing, layout=model.layout, family=model.family, fields=model.config, info=info
        )
        if model.layout
        else convert_checkpoint(path, growing, info=info)
    )
    if (found.family, found.n_parameters) != (model.family, model.parameters):
        raise PublishedError(
            f"{model.name} is listed as {model.family} of {model.parameters:,} parameters, but "
            f"what is published is {found.family} of {found.n_parameters:,}"
        )
    (growing / CARD_FILE).write_text(_card(model, files["weights"]), encoding="utf-8")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():  # of another entry of this name, or damaged
        shutil.rmtree(folder)
    growing.rename(folder)
    shutil.rmtree(work)
    return folder


def _settle(model: PublishedModel, notify: Callable[[str], None]) -> dict[str, PublishedFile]:
    """Return the files to fetch with size and digest: the list's, else those on record, else the host's."""
    if all(file.size and file.sha256 for file in model.files.values()):
        return model.files
    listed = _list_files(model.source, notify)
    settled = {}
    for kind, file in model.files.items():
        if file.path not in listed:
            raise FetchError(f"{model.source.repository} has no {file.path}: it was moved or taken away")
        offered = listed[file.path]
        expected = file.sha256 or _on_record(model).get(file.path)
        if expected not in (None, offered.sha256):
            raise FetchError(
                f"{model.source.repository} now has another {file.path} than at the first download (SHA-256 "
                f"{offered.sha256}, not {expected}); delete {_record(model)} to accept it"
            )
        settled[kind] = offered
    return settled


def _list_files(source: Source, notify: Callable[[str], None]) -> dict[str, PublishedFile]:
    """Ask ModelScope what a repository holds."""
    from flasepformer.models.fetching import fetch_json

    base = f"{_endpoint(source)}/api/v1/models/{source.repository}/repo"
    answer = fetch_json(f"{base}/files?Revision={quote(source.revision)}&Recursive=True", notify)
    try:
        listed = {
            entry["Path"]: PublishedFile(
                path=entry["Path"], size=int(entry["Size"]), sha256=str(entry["Sha256"]).lower()
            )
            for entry in answer["Data"]["Files"]
            if entry["Type"] == "blob"
        }
    except (KeyError, TypeError, ValueError) as error:
        said = answer.get("Message") if isinstance(answer, dict) else None
        raise FetchError(
            f"{_endpoint(source)} lists no files: {said or 'its answer has another form'}"
        ) from error
    for file in listed.values():
        if not _DIGEST.fullmatch(file.sha256 or ""):
            raise FetchError(f"{_endpoint(source)} tells no SHA-256 of {file.path}")
    return listed


def _record(model: PublishedModel) -> Path:
    return home() / "digests" / f"{model.name}.json"


def _on_record(model: PublishedModel) -> dict[str, str]:
    """Return the digests written down at the first download, by path."""
    try:
        content = json.loads(_record(model).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PublishedError(
            f"{_record(model)} is damaged; delete it to accept what is published now"
        ) from error
    return dict(content["sha256"]) if content.get("source") == str(model.source) else {}


def _put_on_record(model: PublishedModel, *checked: PublishedFile) -> None:
    path = _record(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"source": str(model.source), "sha256": {file.path: file.sha256 for file in checked}}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _endpoint(source: Source) -> str:
    variable, address = HOSTS[source.host]
    address = (os.environ.get(variable) or address).rstrip("/")
    return address if "://" in address else f"https://{address}"


def _url(source: Source, file: PublishedFile) -> str:
    if source.host == "github":
        return f"{_endpoint(source)}/{source.repository}/raw/{quote(source.revision)}/{quote(file.path)}"
    base = f"{_endpoint(source)}/api/v1/models/{source.repository}/repo"
    return f"{base}?Revision={quote(source.revision)}&FilePath={quote(file.path, safe='')}"


def _parsed(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() not in (".yaml", ".yml"):
        return tomllib.loads(text)
    import yaml  # an extra: what is in the package is TOML

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _read_list(path: Path) -> dict[str, Any]:
    try:
        content = _parsed(path)
    except (OSError, ValueError) as error:
        raise PublishedError(f"the list of models {path} cannot be read: {_first_line(error)}") from error
    tables = ("models", "aliases", "not_published")
    if not isinstance(content, dict) or not content.keys() <= {*tables}:
        raise PublishedError(f"the list of models {path} must hold {', '.join(tables)} and nothing else")
    result: dict[str, Any] = {table: content.get(table) or {} for table in tables}
    for table, entries in result.items():
        if not isinstance(entries, dict):
            raise PublishedError(f"{path}: {table} must be a table")
        for name, entry in entries.items():
            try:
                if table == "models":
                    entries[name] = _parse(name, entry)
                elif table == "aliases":
                    entries[name] = (str(entry["model"]), str(entry["reason"]))
            except (TypeError, ValueError, KeyError) as error:
                raise PublishedError(f"{path}: {table}: {name}: {_first_line(error)}") from error
    return result


def _parse(name: str, entry: Any) -> PublishedModel:
    fields = dict(entry)
    for key, kind in (("source", Source), ("weights", PublishedFile), ("settings", PublishedFile)):
        if key in fields:
            fields[key] = _checked(kind(**fields[key]))
    fields["config"] = dict(fields.get("config") or {})
    fields["scores"] = tuple(_checked(PublishedScore(**score)) for score in fields.get("scores", ()))
    if fields.get("measured") is not None:
        fields["measured"] = _checked(Measured(**fields["measured"]))
    return _checked(PublishedModel(name=name, **fields))


def _checked(value: Any) -> Any:
    """Refuse a field of another type than is declared; YAML turns 1.0 into a number and yes into true."""
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.type is float and isinstance(item, int):
            continue
        known = {str: str, int: int, float: float, bool: bool}.get(field.type)  # type: ignore[arg-type]
        if known is not None and type(item) is not known:
            raise ValueError(f"{field.name} must be {known.__name__}, got {item!r}")
        if known is None and isinstance(item, str) and field.type == int | None:
            raise ValueError(f"{field.name} must be a number, got {item!r}")
    return value


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _tell_nobody(message: str) -> None:
    pass


def _show_nobody(done: int, total: int) -> None:
    pass


def _card(model: PublishedModel, weights: PublishedFile) -> str:
    """Write the model card of a local copy."""
    scores = "\n".join(
        f"| {score.set}, {score.task}, {score.split} | {score.si_snri} | "
        f"{'' if score.sdri is None else score.sdri} |"
        for score in model.scores
    )
    use = "permitted" if model.commercial_use else "not permitted"
    return f"""# {model.name}

{model.use[:1].upper()}{model.use[1:]}. Weights that others published, in the format of
`flasepformer`, every number as it was.

| | |
|---|---|
| published at | {model.source}, `{weights.path}` |
| SHA-256 of what was published | {weights.sha256} |
| licence of the weights | {model.licence} |
| commercial use | {use} |
| trained on | {model.data} |
| cite | {model.citation} |

| set | SI-SNRi, as published, dB | SDRi |
|---|---|---|
{scores}
"""
