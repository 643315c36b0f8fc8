"""The training loop: a recipe and speech go in, a checkpoint comes out."""

import contextlib
import csv
import dataclasses
import errno
import io
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from flasepformer.data import DynamicMixing, SpeechStore, check_disjoint, read_utterances
from flasepformer.metrics import best_permutation, pairwise, si_snr
from flasepformer.models import SepReformer, load_model, save_model
from flasepformer.training.losses import multi_stage_loss, si_snr_loss
from flasepformer.training.recipe import OptimizationConfig, Recipe, save_recipe
from flasepformer.training.schedules import learning_rate

CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_CHECKPOINT_FILE = "checkpoint-previous.pt"
BEST_FOLDER = "best"
CURVE_FILE = "curve.csv"
RECIPE_FILE = "recipe.yaml"
BAD_BATCH_FILE = "bad-batch.pt"

CURVE_COLUMNS = (
    "step", "hours_heard", "minutes", "learning_rate", "train_loss_db", "gradient_norm",
    "valid_si_snr_improvement_db", "best_db",
)  # fmt: skip

VALID_SEED = 1
"""Of the validation mixtures; the same for every run, so that runs compare."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


@dataclass
class _Progress:
    """What changes from step to step and is not a weight."""

    step: int = 0
    n_heard: int = 0
    seconds: float = 0.0
    best_db: float = -np.inf
    n_bad: int = 0


class _TrainingStep(nn.Module):
    """The network and its loss as one module, which is what runs in parallel."""

    def __init__(self, model: SepReformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, mixtures: Tensor, sources: Tensor, auxiliary_weight: float) -> Tensor:
        if auxiliary_weight == 0:  # the heads idle
            return si_snr_loss(self.model(mixtures), sources)
        estimates, auxiliaries = self.model.forward_with_auxiliary(mixtures)
        return multi_stage_loss(estimates, auxiliaries, sources, auxiliary_weight)


class _Examples(Dataset[tuple[Tensor, Tensor]]):
    """Dynamic mixing as a table, so that worker processes can fill batches from it."""

    def __init__(self, mixing: DynamicMixing) -> None:
        self.mixing = mixing

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.mixing.example(index)


def train(
    recipe: Recipe, folder: str | Path, *, resume: bool = False, speech_cache: str | Path | None = None
) -> Path:
    """Train a model.

    The run's folder receives the resolved recipe, `curve.csv`, TensorBoard events, a checkpoint to resume
    from every few minutes and the best weights so far in our format (`best/`). A resumed run continues as if
    it had never stopped: every random number depends on the seed and the step alone. With several processes
    (`torchrun`) each takes `batch_size` mixtures.

    Args:
        recipe: What to train, on what, and how.
        folder: Where the run is kept.
        resume: Continue the run in that folder; its recipe may change in what does not alter the network.
        speech_cache: Folder that keeps the decoded speech for the next run.

    Returns:
        The folder of the best weights.

    Raises:
        TrainingError: If the folder holds another run already or none to resume, or the loss stays not
        finite. ValueError: If there is no speech, or a speaker is in both splits.
    """
    accelerator = _accelerator(recipe, folder)
    folder = Path(folder)
    checkpoint_path = folder / CHECKPOINT_FILE
    if resume and not checkpoint_path.exists():
        raise TrainingError(f"nothing to resume: {checkpoint_path} does not exist")
    if not resume and checkpoint_path.exists():
        raise TrainingError(f"{folder} holds a run already; resume it or choose another folder")
    with accelerator.main_process_first():  # the first decodes the speech, the others find it in the cache
        mixing, valid_mixing = _mixings(recipe, speech_cache if speech_cache else folder / "speech-cache")
    if accelerator.is_main_process:
        save_recipe(recipe, folder / RECIPE_FILE)
        (folder / "environment.txt").write_text(_environment(accelerator), encoding="utf-8")

    torch.manual_seed(recipe.seed)
    model = load_model(recipe.initial_checkpoint) if recipe.initial_checkpoint else SepReformer(recipe.model)
    assert isinstance(model, SepReformer)
    if recipe.fourier_filters and not recipe.initial_checkpoint:
        model.initialize_fourier()
    if model.config != recipe.model:
        raise TrainingError(f"{recipe.initial_checkpoint} has another config than the recipe: {model.config}")
    model.to(accelerator.device)
    optimizers = _optimizers(model, recipe.optimization)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(recipe.optimization.average_decay), use_buffers=True
    )
    progress = _Progress()
    if resume:
        progress = _restore(checkpoint_path, model, average, optimizers)
    network = accelerator.prepare(_TrainingStep(model).train())
    optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
    run = _Run(recipe, folder, accelerator, network, model, average, optimizers, progress)
    with _stop_on_signals(run.request_stop), _logging(accelerator, folder):
        run.loop(mixing, valid_mixing)
    return folder / BEST_FOLDER


class _Run:
    """A run under way; see `train`."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Any,
        network: nn.Module,
        model: SepReformer,
        average: AveragedModel,
        optimizers: list[Any],
        progress: _Progress,
    ) -> None:
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.network, self.model, self.average, self.optimizers = network, model, average, optimizers
        self.progress = progress
        self.n_losses, self.sum_losses = 0, 0.0

    def request_stop(self) -> None:
        """Stop all processes after the step under way."""
        self.accelerator.set_trigger()

    def loop(self, mixing: DynamicMixing, valid_mixing: DynamicMixing) -> None:
        """Train from the current step to the last one."""
        recipe, progress = self.recipe, self.progress
        n_steps = recipe.optimization.n_steps
        last_save = last_time = time.monotonic()
        for mixtures, sources in self._batches(mixing):
            gradient_norm = self._step(mixtures, sources)
            progress.step += 1
            progress.n_heard += len(mixtures) * self.accelerator.num_processes
            now = time.monotonic()
            progress.seconds, last_time = progress.seconds + now - last_time, now
            done = progress.step == n_steps
            stop = self.accelerator.check_trigger()
            valid_db = None
            if progress.step % recipe.validate_every == 0 or done:
                valid_db = self._validate(valid_mixing)
            if progress.step % recipe.log_every == 0 or valid_db is not None:
                self._log(gradient_norm, valid_db)
            if done or stop or now - last_save > 60 * recipe.checkpoint_minutes:
                last_save = time.monotonic()
                self._save()
            if stop:
                raise KeyboardInterrupt
            if done:
                break

    def _batches(self, mixing: DynamicMixing) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's batches of every step left."""
        optimization, accelerator = self.recipe.optimization, self.accelerator
        width, n_processes = optimization.batch_size, accelerator.num_processes
        batches = range(self.progress.step * n_processes, optimization.n_steps * n_processes)
        indices = [
            list(range(batch * width, (batch + 1) * width))
            for batch in batches[accelerator.process_index :: n_processes]
        ]
        loader = DataLoader(_Examples(mixing), batch_sampler=indices, num_workers=self.recipe.data.n_workers)
        for mixtures, sources in loader:
            yield mixtures.to(accelerator.device), sources.to(accelerator.device)

    def _step(self, mixtures: Tensor, sources: Tensor) -> float:
        """Take one step of the optimizer; return the norm of the gradient before clipping."""
        optimization, progress = self.recipe.optimization, self.progress
        torch.manual_seed(
            hash((self.recipe.seed, progress.step, self.accelerator.process_index))
        )  # of the dropout
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        with self.accelerator.autocast():
            loss = self.network(mixtures, sources, self._auxiliary_weight())
        self.accelerator.backward(loss)
        gradient_norm = float(
            self.accelerator.clip_grad_norm_(self.model.parameters(), optimization.clip_norm)
        )
        if np.isfinite(gradient_norm):  # the same in every process: gradients are averaged over them
            for optimizer in self.optimizers:
                optimizer.step()
            self.average.update_parameters(self.model)
            progress.n_bad = 0
            self.n_losses, self.sum_losses = self.n_losses + 1, self.sum_losses + float(loss.detach())
        else:
            progress.n_bad += 1
            print(
                f"step {progress.step}: loss {float(loss.detach())}, gradient {gradient_norm}; skipped",
                file=sys.stderr,
            )
            if progress.n_bad > optimization.max_bad_steps:
                torch.save({"mixtures": mixtures, "sources": sources}, self.folder / BAD_BATCH_FILE)
                raise TrainingError(
                    f"{progress.n_bad} steps in a row were not finite; the last batch is in "
                    f"{self.folder / BAD_BATCH_FILE}. Try a lower learning rate, or precision 'no'"
                )
        self.network.zero_grad()
        return gradient_norm

    def learning_rate(self) -> float:
        """Return the learning rate of the current step."""
        optimization = self.recipe.optimization
        return learning_rate(
            self.progress.step,
            peak=optimization.learning_rate,
            n_steps=optimization.n_steps,
            warmup_steps=optimization.warmup_steps,
            decay_steps=optimization.decay_steps,
        )

    def _auxiliary_weight(self) -> float:
        optimization = self.recipe.optimization
        decay = optimization.auxiliary_decay_steps
        left = max(0.0, 1 - self.progress.step / decay) if decay else 1.0
        return optimization.auxiliary_weight * left

    @torch.inference_mode()
    def _validate(self, mixing: DynamicMixing) -> float:
        """Return the mean SI-SNRi of the averaged weights on the validation mixtures; keep the best."""
        network: nn.Module = self.average.module if self.recipe.optimization.average_decay else self.model
        network.eval()
        total = torch.zeros((), device=self.accelerator.device)
        n_mixtures = self.recipe.data.n_valid_mixtures
        for index in range(self.accelerator.process_index, n_mixtures, self.accelerator.num_processes):
            mixture, sources = (t.to(total.device) for t in mixing.example(index))
            with self.accelerator.autocast():
                estimates = network(mixture[None])[0].float()
            scores = pairwise(si_snr, estimates, sources)
            best = scores.gather(0, best_permutation(scores).unsqueeze(0)).mean()
            total += best - si_snr(mixture.expand_as(sources), sources).mean()
        valid_db = float(self.accelerator.reduce(total)) / n_mixtures
        self.model.train()
        if valid_db > self.progress.best_db:
            self.progress.best_db = valid_db
            if self.accelerator.is_main_process:
                info = {
                    "description": self.recipe.description,
                    "licence": self.recipe.licence,
                    "step": self.progress.step,
                    "valid_si_snr_improvement_db": round(valid_db, 3),
                }
                _unless_disk_full(lambda: save_model(network, self.folder / BEST_FOLDER, info))
        return valid_db

    def _log(self, gradient_norm: float, valid_db: float | None) -> None:
        progress = self.progress
        row = {
            "step": progress.step,
            "hours_heard": round(progress.n_heard * self.recipe.mixing.segment_seconds / 3600, 3),
            "minutes": round(progress.seconds / 60, 2),
            "learning_rate": round(self.learning_rate(), 8),
            "train_loss_db": round(self.sum_losses / max(self.n_losses, 1), 3),
            "gradient_norm": round(gradient_norm, 3),
            "valid_si_snr_improvement_db": None if valid_db is None else round(valid_db, 3),
            "best_db": round(progress.best_db, 3) if np.isfinite(progress.best_db) else None,
        }
        self.n_losses, self.sum_losses = 0, 0.0
        if self.accelerator.is_main_process:
            path = self.folder / CURVE_FILE
            is_new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, CURVE_COLUMNS)
                if is_new:
                    writer.writeheader()
                writer.writerow(row)
            print("  ".join(f"{key} {value}" for key, value in row.items() if value is not None), flush=True)
        self.accelerator.log(
            {key: value for key, value in row.items() if value is not None}, step=progress.step
        )

    def _save(self) -> None:
        """Write the checkpoint to resume from; the one before it stays until this one is whole."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": vars(self.progress),
        }
        buffer = io.BytesIO()  # in memory first: a full disk then is an OSError, not one of the serializer's
        torch.save(state, buffer)
        path = self.folder / CHECKPOINT_FILE

        def write() -> None:
            temporary = path.with_suffix(".part")
            try:
                with temporary.open("wb") as file:
                    file.write(buffer.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                if path.exists():
                    path.replace(self.folder / PREVIOUS_CHECKPOINT_FILE)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

        _unless_disk_full(write)


def _accelerator(recipe: Recipe, folder: str | Path) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise ImportError('training needs the extra "train": pip install "flasepformer[train]"') from error
    Path(folder).mkdir(parents=True, exist_ok=True)
    settings = recipe.optimization
    may_idle = settings.auxiliary_weight == 0 or settings.auxiliary_decay_steps > 0
    idle_heads = DistributedDataParallelKwargs(
        find_unused_parameters=recipe.model.auxiliary_heads and may_idle
    )
    return Accelerator(
        mixed_precision=settings.precision,
        log_with="tensorboard",
        project_dir=str(folder),
        kwargs_handlers=[idle_heads],
    )


def _mixings(recipe: Recipe, cache: str | Path) -> tuple[DynamicMixing, DynamicMixing]:
    """Return the mixtures to train on and those to validate on."""
    if not recipe.data.speech:
        raise ValueError("the recipe names no speech; set data.speech to a folder or a manifest")
    exclude = {"licence": recipe.data.exclude_licences} if recipe.data.exclude_licences else None
    splits = [
        read_utterances(recipe.data.speech, split, exclude=exclude)
        for split in (recipe.data.train_split, recipe.data.valid_split)
    ]
    check_disjoint(*splits)
    stores = [
        SpeechStore.load(split, recipe.model.sample_rate, cache=cache, progress=True) for split in splits
    ]
    valid_config = dataclasses.replace(
        recipe.mixing, segment_seconds=recipe.data.valid_segment_seconds, speed_range=(1.0, 1.0)
    )
    return (
        DynamicMixing(stores[0], recipe.mixing, recipe.seed),
        DynamicMixing(stores[1], valid_config, VALID_SEED),
    )


def _optimizers(model: SepReformer, settings: OptimizationConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together hold every parameter once."""
    rest = dict(model.named_parameters())
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        inner = ("encoder_stages.", "bottleneck.", "source_split.", "decoder_stages.")
        matrices = [name for name, p in rest.items() if p.ndim == 2 and name.startswith(inner)]
        optimizers.append(
            torch.optim.Muon(
                [rest.pop(name) for name in matrices],
                settings.learning_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",  # one learning rate suits both
            )
        )
    optimizers.append(
        torch.optim.AdamW(
            rest.values(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
    )
    return optimizers


def _restore(
    path: Path, model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> _Progress:
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
    except RuntimeError as error:
        raise TrainingError(f"{path} is of another network than the recipe's: {error}") from error
    return _Progress(**state["progress"])


def _environment(accelerator: Any) -> str:
    return (
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores\n"
        f"device {accelerator.device}, {accelerator.num_processes} processes "
        f"of {torch.get_num_threads()} threads\nstarted {time.strftime('%Y-%m-%d %H:%M:%S %Z')}\n"
    )


def _unless_disk_full(write: Callable[[], None]) -> None:
    """Write a file of the run; a full disk costs this file, not the run."""
    try:
        write()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"disk full, the run goes on without this checkpoint: {error}", file=sys.stderr)


@contextlib.contextmanager
def _logging(accelerator: Any, folder: Path) -> Iterator[None]:
    accelerator.init_trackers("tensorboard")
    try:
        yield
    finally:
        accelerator.end_training()


@contextlib.contextmanager
def _stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run after the step under way, with a checkpoint."""
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
