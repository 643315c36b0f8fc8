"""The training loop: a recipe and what it names go in, a checkpoint comes out."""

import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from flasepformer.data import Examples, FixedMixtures, Mixture
from flasepformer.metrics import best_permutation, pairwise, si_snr, wrong_turns
from flasepformer.models import SeparationNetwork, load_model, save_model
from flasepformer.models.registry import FAMILIES
from flasepformer.training.activations import checkpoint_activations
from flasepformer.training.averaging import average_checkpoints
from flasepformer.training.balance import GradientBalance
from flasepformer.training.beginning import write_beginning
from flasepformer.training.board import Board
from flasepformer.training.examples import (
    BatchTable,
    CorruptMixtures,
    Draw,
    FurtherValidation,
    n_valid_mixtures,
    open_examples,
    open_further_validation,
    take_example,
)
from flasepformer.training.losses import multi_stage_loss
from flasepformer.training.optimizers import build_optimizers, set_rate
from flasepformer.training.process_group import process_group
from flasepformer.training.recipe import OptimizationConfig, Recipe
from flasepformer.training.run_folder import (
    CHECKPOINT_FILE,
    PREVIOUS_CHECKPOINT_FILE,
    RunFolder,
    TrainingError,
    unless_disk_full,
)
from flasepformer.training.schedules import (
    Plateau,
    learning_rate,
    linear_decay,
    segment_seconds,
    stepwise_decay,
)

_LONGEST_LOGGED_SECONDS = 10.0


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    speech_cache: str | Path | None = None,
) -> Path:
    """Train a model.

    The run's folder receives the resolved recipe, `curve.csv`, TensorBoard events, a checkpoint to resume
    from every few minutes and the best weights so far in our format (`best/`). A resumed run continues as if
    it had never stopped: every random number depends on the seed and the step alone. A run that is refused
    leaves nothing.

    With several processes (`torchrun`) each takes `batch_size` mixtures; N of them train to the same weights
    as one that accumulates N times as many batches, and, in a network without batch normalisation, as one
    whose batch is N times as large. Batch normalisation sees the batch of its own process; the running
    statistics that are kept are those of the first one.

    Args:
        recipe: What to train, on what, and how.
        folder: Where the run is kept.
        resume: Continue the run in that folder; its recipe may change in what does not alter the network.
            One that has reached its end is left as it is. The recipe of before is kept beside the new one.
        overwrite: Begin anew in a folder that holds a run, which is removed.
        device: "auto" takes a GPU if there is one; "cpu", "cuda", "cuda:1".
        speech_cache: Folder that keeps the decoded speech for the next run.

    Returns:
        The folder of the best weights.

    Raises:
        TrainingError: If the folder holds another run already or none to resume, the processes do not find
            each other, the loss stays not finite, too much speech or too many mixtures are corrupt, or no
            weights could be kept.
        ValueError: If there is nothing to train on, or a speaker is in both splits.
    """
    # segments of ever other lengths need more kernels than oneDNN keeps by itself; it asks only once
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    run_folder = RunFolder(folder)
    with process_group(recipe, run_folder, device) as accelerator:
        if overwrite and not resume:
            with accelerator.main_process_first():
                run_folder.clear()
        _train(recipe, run_folder, accelerator, resume, speech_cache)
    return _best(run_folder) if accelerator.is_main_process else run_folder.best


def _train(
    recipe: Recipe, run_folder: RunFolder, accelerator: Any, resume: bool, speech_cache: str | Path | None
) -> None:
    """Train in one of the processes of a run; see `train`."""
    with run_folder.unmade_if_refused():
        state = run_folder.load_checkpoint() if resume else None
        if not resume and run_folder.checkpoint is not None:
            raise TrainingError(
                f"{run_folder.path} holds a run already; resume it, overwrite it or choose another folder"
            )
        progress = _Progress.restored(state["progress"]) if state else _Progress()
        progress.seconds_heard = progress.seconds_heard or progress.n_heard * recipe.mixing.segment_seconds
        parts = _build(recipe, accelerator, state)
        if end := _end(recipe.optimization, progress):
            if accelerator.is_main_process:
                print(f"nothing to do: the run {end}", file=sys.stderr)
            return
        with accelerator.main_process_first():  # which decodes the speech; the others find it in the cache
            examples = open_examples(recipe, speech_cache or run_folder.speech_cache)
            further = open_further_validation(recipe, speech_cache or run_folder.speech_cache)
        run = _begin(recipe, run_folder, accelerator, parts, progress, further)
    with (
        _stop_on_signals(accelerator.set_trigger),
        contextlib.closing(Board(accelerator, progress.step)) as board,
        run.bar,
    ):
        run.loop(*examples, board)


WEIGHTLESS = ("forget_seconds", "dropout")
"""Settings of a network that may differ from those of the weights it begins with."""


@dataclass
class _Progress:
    """What changes from step to step and is not a weight."""

    step: int = 0
    n_heard: int = 0
    """Mixtures, in all processes."""
    n_drawn: int = 0
    """Numbers of mixtures that are used up, by a step of few long ones as many as by another; the next step
    takes those that follow."""
    seconds_heard: float = 0.0
    """Of all these mixtures."""
    seconds: float = 0.0
    best_db: float = -math.inf
    n_epochs_since_best: int = 0
    n_bad: int = 0
    """Steps in a row that were not finite."""
    n_losses: int = 0
    sum_losses: float = 0.0
    """Of the steps since the last row of the curve."""
    plateau: Plateau = field(default_factory=Plateau)
    candidates: list[tuple[float, int]] = field(default_factory=list)
    """Score and step of the best validations, whose mean is shipped, best first."""

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "_Progress":
        """Undo `dataclasses.asdict`; the checkpoint of an older version has fewer entries."""
        drawn = {"n_drawn": state.get("n_heard", 0)}
        return cls(**{**drawn, **state, "plateau": Plateau(**state.get("plateau", {}))})


def _end(optimization: OptimizationConfig, progress: _Progress) -> str:
    """Say that a run has reached its end, and what would make it go on; empty if it has not."""
    step, patience = progress.step, optimization.early_stop_epochs
    if step >= optimization.n_steps:
        return f"is at step {step} and optimization.n_steps is {optimization.n_steps}; raise it to go on"
    if 0 < patience <= progress.n_epochs_since_best:
        return (
            f"was ended at step {step} by optimization.early_stop_epochs, after {patience} epochs without a "
            "better one; raise it to go on"
        )
    return ""


def _best(folder: RunFolder) -> Path:
    if not folder.best.is_dir():
        raise TrainingError(f"no weights in {folder.best}: no validation was finite, or the disk is full")
    return folder.best


class _TrainingStep(nn.Module):
    """The network and its loss as one module, which is what runs in parallel."""

    def __init__(self, model: Any, limit_db: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.limit_db = limit_db

    def forward(self, mixtures: Tensor, sources: Tensor, auxiliary_weight: float) -> Tensor:
        if auxiliary_weight == 0:  # the heads idle
            estimates, auxiliaries = self.model(mixtures), []
        else:
            estimates, auxiliaries = self.model.forward_with_auxiliary(mixtures)
        return multi_stage_loss(estimates, auxiliaries, sources, auxiliary_weight, self.limit_db)


_WRONG_TURNS_WEIGHT_DB = 10.0


class _Scores(NamedTuple):
    """Of a validation, means in dB."""

    si_snr_improvement_db: float
    si_snr_db: float
    held_out_db: float | None = None
    """SI-SNR improvement for the speakers that are held out of the training split."""
    wrong_turns: float | None = None
    """Share of the turns of the conversations."""

    @property
    def choice_db(self) -> float:
        """What the best weights are chosen by.

        The mean of the improvements, less a tenth of a dB for every percent of the turns that are wrong.
        """
        improvements = [self.si_snr_improvement_db]
        if self.held_out_db is not None:
            improvements.append(self.held_out_db)
        return sum(improvements) / len(improvements) - _WRONG_TURNS_WEIGHT_DB * (self.wrong_turns or 0.0)


@dataclass
class _Pace:
    """How fast a run goes, validations and checkpoints aside."""

    n_steps: int = 0
    seconds: float = 0.0
    audio_seconds: float = 0.0

    def add(self, seconds: float, audio_seconds: float) -> None:
        """Take in a step and the mixtures that all processes computed in it."""
        self.n_steps += 1
        self.seconds += seconds
        self.audio_seconds += audio_seconds

    def per_second(self) -> dict[str, float]:
        """Return the columns of the curve."""
        seconds = max(self.seconds, 1e-9)
        return {
            "audio_seconds_per_second": round(self.audio_seconds / seconds, 2),
            "steps_per_second": round(self.n_steps / seconds, 3),
        }


class _Run:
    """A run under way; see `train`."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        accelerator: Any,
        network: nn.Module,
        model: nn.Module,
        average: AveragedModel,
        optimizers: list[Any],
        progress: _Progress,
        further: FurtherValidation,
    ) -> None:
        self.further = further
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.network, self.model, self.average, self.optimizers = network, model, average, optimizers
        self.progress = progress
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self.pace = _Pace()
        limit = recipe.optimization.mixture_clip
        self.balance = GradientBalance(model, limit) if limit else None
        hidden = None if accelerator.is_main_process else True  # None: where there is no terminal
        n_steps = recipe.optimization.n_steps
        self.bar = tqdm(total=n_steps, initial=progress.step, unit="step", desc="training", disable=hidden)
        """Steps, pace and the time that is left, on a terminal."""
        self.corrupt: dict[str, str] = {}
        """Name and fault of every mixture to train on that this process has found corrupt."""

    def loop(self, examples: Examples, valid_examples: Examples, board: Board) -> None:
        """Train from the current step to the last one."""
        recipe, progress = self.recipe, self.progress
        batches = self._batches(examples)
        count_corrupt = self._corrupt_counter(examples, valid_examples)
        last_save = last_time = time.monotonic()
        while not self._is_done():
            started = time.monotonic()
            mixtures, sources = next(batches)
            rate = self.learning_rate()
            gradient_norm = self._step(mixtures, sources)
            n_mixtures = len(mixtures) * self.accelerator.num_processes
            progress.step += 1
            self.bar.update()
            progress.n_heard += n_mixtures
            progress.n_drawn += self._n_drawn_in_a_step
            progress.seconds_heard += n_mixtures * mixtures.shape[-1] / recipe.model.sample_rate
            now = time.monotonic()
            progress.seconds, last_time = progress.seconds + now - last_time, now
            self.pace.add(now - started, n_mixtures * mixtures.shape[-1] / recipe.model.sample_rate)
            stop = self.accelerator.check_trigger()
            scores = None
            if progress.step % recipe.epoch_steps == 0 or progress.step == recipe.optimization.n_steps:
                scores = self._validate(valid_examples)
                self._take_in(scores.choice_db)
                self._show(valid_examples, board)
            if progress.step % recipe.log_every == 0 or scores is not None:
                self._log(rate, gradient_norm, scores, board)
                count_corrupt()
            averages = scores is not None and recipe.optimization.average_best > 1
            is_time = time.monotonic() - last_save > 60 * recipe.checkpoint_minutes
            is_sound = progress.n_bad == 0  # else the weights may be lost, and the last checkpoint has better
            if self._is_done() or (is_sound and (stop or averages or is_time)):
                last_save = time.monotonic()
                self._save()
            if stop:
                raise KeyboardInterrupt

    def _is_done(self) -> bool:
        return bool(_end(self.recipe.optimization, self.progress))

    def _batches(self, examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what this process computes in every step left."""
        optimization, accelerator = self.recipe.optimization, self.accelerator
        stride = self._n_drawn_in_a_step
        width = stride // accelerator.num_processes
        n_long = optimization.long_batch_size * optimization.accumulate_steps
        usual = self.recipe.mixing.segment_seconds

        def draws() -> Iterator[Draw]:
            first = self.progress.n_drawn + accelerator.process_index * width
            for step in range(self.progress.step, optimization.n_steps):
                seconds = segment_seconds(
                    step,
                    seed=self.recipe.seed,
                    usual=usual,
                    long_every=optimization.long_every,
                    long=optimization.long_seconds,
                )
                is_long = seconds != usual
                n_mixtures = n_long if is_long else width
                yield Draw(range(first, first + n_mixtures), seconds if is_long else None)
                first += stride

        workers = self.recipe.data.n_workers
        for batch in DataLoader(BatchTable(examples), sampler=draws(), batch_size=None, num_workers=workers):
            if isinstance(batch, TrainingError):
                raise batch
            mixtures, sources, corrupt = batch
            self.corrupt |= corrupt
            yield mixtures.to(accelerator.device), sources.to(accelerator.device)

    @property
    def _n_drawn_in_a_step(self) -> int:
        """Numbers of mixtures, in all processes."""
        optimization = self.recipe.optimization
        n_own = optimization.batch_size * optimization.accumulate_steps
        return n_own * int(self.accelerator.num_processes)

    def _corrupt_counter(self, examples: Examples, valid_examples: Examples) -> Callable[[], None]:
        """Return what looks for corrupt mixtures in all processes, and ends a run that has met too many."""
        data, tell = self.recipe.data, self.accelerator.is_main_process
        counts = []
        if isinstance(examples, FixedMixtures):
            counted = CorruptMixtures(data.train_split, len(examples), data.max_corrupt_share)
            counts.append((counted, self.corrupt))
        if isinstance(valid_examples, FixedMixtures):
            counted = CorruptMixtures(data.valid_split, len(valid_examples), data.max_corrupt_share)
            counts.append((counted, valid_examples.corrupt))

        def count() -> None:
            for counted, found in counts:
                counted.check(found, tell=tell)

        return count

    def _step(self, mixtures: Tensor, sources: Tensor) -> float:
        """Take one step of the optimizers; return the norm of the gradient before clipping."""
        progress = self.progress
        seed = hash((self.recipe.seed, progress.step, self.accelerator.process_index))
        torch.manual_seed(seed)  # of the dropout
        for optimizer in self.optimizers:
            set_rate(optimizer, self.learning_rate())
        statistics = [buffer.clone() for buffer in self.statistics]
        loss = self._backward(mixtures, sources)
        clip_norm = self.recipe.optimization.clip_norm
        gradient_norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), clip_norm))
        if math.isfinite(gradient_norm):  # the same in every process: gradients are averaged over them
            for optimizer in self.optimizers:
                optimizer.step()
            self.average.update_parameters(self.model)
            progress.n_bad = 0
            progress.n_losses, progress.sum_losses = progress.n_losses + 1, progress.sum_losses + loss
        else:
            for buffer, before in zip(self.statistics, statistics, strict=True):
                buffer.copy_(before)
            number = progress.step + 1  # as in the curve
            print(f"step {number}: loss {loss}, gradient {gradient_norm}; skipped", file=sys.stderr)
            self._count_bad(mixtures, sources)
        self.network.zero_grad()
        return gradient_norm

    def _backward(self, mixtures: Tensor, sources: Tensor) -> float:
        """Compute the gradient of the mean loss of a step, a batch at a time; return that loss."""
        width, weight = len(mixtures) // self.recipe.optimization.accumulate_steps, self._auxiliary_weight()
        batches = list(zip(mixtures.split(width), sources.split(width), strict=True))
        total = 0.0
        for k, batch in enumerate(batches, start=1):
            is_last = k == len(batches)
            if self.balance:
                self.balance.n_mixtures = width
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.network):
                with self.accelerator.autocast():
                    loss = self.network(*batch, weight) / len(batches)
                self.accelerator.backward(loss)
            total += float(loss.detach())
        return total

    def _count_bad(self, mixtures: Tensor, sources: Tensor) -> None:
        self.progress.n_bad += 1
        if self.progress.n_bad > self.recipe.optimization.max_bad_steps:
            batch = {"mixtures": mixtures, "sources": sources}
            path = self.folder.save_batch(batch, self.accelerator.process_index)
            raise TrainingError(
                f"{self.progress.n_bad} steps in a row were not finite; the last batch is in {path}. "
                f"Try a lower learning rate, or precision 'no'; {self._way_on()}"
            )

    def _way_on(self) -> str:
        """Say from where a run that has lost its weights can go on."""
        if self.folder.checkpoint is None:
            return "begin anew, as there is no checkpoint yet"
        way = f"resuming goes on from step {self.folder.load_checkpoint()['progress']['step']}"
        previous = self.folder.path / PREVIOUS_CHECKPOINT_FILE
        if previous.exists():
            way += f"; if that is too late, put {previous} in the place of {CHECKPOINT_FILE}"
        return way

    def learning_rate(self) -> float:
        """Return the learning rate of the current step."""
        optimization = self.recipe.optimization
        return self.progress.plateau.scale * learning_rate(
            self.progress.step,
            peak=optimization.learning_rate,
            n_steps=optimization.n_steps,
            warmup_steps=optimization.warmup_steps,
            decay_steps=optimization.decay_steps,
        )

    def _auxiliary_weight(self) -> float:
        optimization, step = self.recipe.optimization, self.progress.step
        steps_down = stepwise_decay(
            step // self.recipe.epoch_steps,
            factor=optimization.auxiliary_decay_factor,
            start_epoch=optimization.auxiliary_decay_start_epoch,
            every=optimization.auxiliary_decay_epochs,
        )
        left = linear_decay(step, n_steps=optimization.auxiliary_decay_steps)
        return optimization.auxiliary_weight * left * steps_down

    @property
    def _validated(self) -> SeparationNetwork:
        """The network that is validated and shipped."""
        network = self.average.module if self.recipe.optimization.average_decay else self.model
        assert isinstance(network, SeparationNetwork)
        return network

    def _validate(self, examples: Examples) -> "_Scores":
        """Return all that is validated."""
        scores = self._score(examples)
        held_out, conversations = self.further
        if held_out is not None:
            scores = scores._replace(held_out_db=self._score(held_out).si_snr_improvement_db)
        if conversations:
            scores = scores._replace(wrong_turns=self._wrong_turns(conversations))
        return scores

    @torch.inference_mode()
    def _wrong_turns(self, conversations: Sequence[Mixture]) -> float:
        """Return the share of the turns of all conversations that are on the wrong track."""
        network, accelerator = self._validated.eval(), self.accelerator
        counts = torch.zeros(2, device=accelerator.device)
        for item in conversations[accelerator.process_index :: accelerator.num_processes]:
            estimates = self._estimates(network, item.mixture.to(accelerator.device))
            counts += counts.new_tensor([wrong_turns(estimates, item.turns), len(item.turns)])
        self.model.train()
        n_wrong, n_turns = accelerator.reduce(counts).tolist()
        return float(n_wrong / n_turns)

    @torch.inference_mode()
    def _score(self, examples: Examples) -> "_Scores":
        """Return the means over the validation mixtures; one with a silent source has no scores."""
        network = self._validated.eval()
        totals = torch.zeros(3, device=self.accelerator.device)  # improvement, SI-SNR, mixtures
        n_mixtures = n_valid_mixtures(self.recipe, examples)
        for index in range(self.accelerator.process_index, n_mixtures, self.accelerator.num_processes):
            mixture, sources = (t.to(totals.device) for t in take_example(examples, index))
            if not (sources != sources[:, :1]).any(dim=-1).all():
                continue
            scores = pairwise(si_snr, self._estimates(network, mixture), sources)
            best = scores.gather(0, best_permutation(scores).unsqueeze(0)).mean()
            improvement = best - si_snr(mixture.expand_as(sources), sources).mean()
            totals += torch.stack([improvement, best, torch.ones_like(best)])
        self.model.train()
        improvement_db, si_snr_db, n_scored = self.accelerator.reduce(totals).tolist()
        if n_scored < n_mixtures and self.accelerator.is_main_process:
            silent = f"{n_mixtures - round(n_scored)} of {n_mixtures} validation mixtures"
            print(f"{silent} have a silent source, and so no score", file=sys.stderr)
        if n_scored == 0:
            return _Scores(math.nan, math.nan)
        return _Scores(improvement_db / n_scored, si_snr_db / n_scored)

    @torch.inference_mode()
    def _show(self, examples: Examples, board: Board) -> None:
        """Show the first validation mixtures, or how they begin, on TensorBoard."""
        if not self.accelerator.is_main_process:
            return
        network, sample_rate = self._validated.eval(), self.recipe.model.sample_rate
        n_mixtures = min(self.recipe.n_logged_mixtures, n_valid_mixtures(self.recipe, examples))
        n_samples = round(_LONGEST_LOGGED_SECONDS * sample_rate)
        for index in range(n_mixtures):
            tracks = (track[..., :n_samples] for track in take_example(examples, index))
            mixture, sources = (track.to(self.accelerator.device) for track in tracks)
            estimates = self._estimates(network, mixture)
            scores = pairwise(si_snr, estimates, sources).nan_to_num(0.0)
            ordered = estimates[best_permutation(scores)]
            board.mixture(f"mixture_{index + 1}", mixture, sources, ordered, sample_rate, self.progress.step)
        self.model.train()

    def _estimates(self, network: nn.Module, mixture: Tensor) -> Tensor:
        """Separate one mixture (time,) into estimates (source, time)."""
        with self.accelerator.autocast():
            return network(mixture[None])[0].float()

    def _take_in(self, valid_db: float) -> None:
        """Let the schedules know how an epoch ended, and keep its weights if they are among the best."""
        optimization, progress = self.recipe.optimization, self.progress
        if progress.step > optimization.plateau_start_epoch * self.recipe.epoch_steps:
            progress.plateau.update(
                valid_db, factor=optimization.plateau_factor, patience=optimization.plateau_patience
            )
        is_better = valid_db > progress.best_db
        progress.best_db = valid_db if is_better else progress.best_db
        progress.n_epochs_since_best = 0 if is_better else progress.n_epochs_since_best + 1
        if not self.accelerator.is_main_process:
            return
        if optimization.average_best > 1:
            self._keep_candidate(valid_db)
        elif is_better:
            info = self._info(valid_si_snr_improvement_db=round(valid_db, 3))
            unless_disk_full(lambda: save_model(self._validated, self.folder.best, info))

    def _keep_candidate(self, valid_db: float) -> None:
        """Keep the weights if they are among the best k, and make the mean of those the best ones."""
        progress = self.progress
        ranked = sorted([*progress.candidates, (valid_db, progress.step)], key=lambda c: (-c[0], c[1]))
        kept = ranked[: self.recipe.optimization.average_best]
        if math.isnan(valid_db) or (valid_db, progress.step) not in kept:
            return
        info = self._info(mean_of={step: round(score, 3) for score, step in kept})

        def write() -> None:
            save_model(self._validated, self.folder.candidate(progress.step))
            mean = average_checkpoints([self.folder.candidate(step) for _, step in kept])
            save_model(mean, self.folder.best, info)

        if unless_disk_full(write):
            progress.candidates = kept

    def _info(self, **scores: Any) -> dict[str, Any]:
        """Return what is known of the weights, for the model's card."""
        return {**self.recipe.card, "step": self.progress.step, **scores}

    def _log(self, rate: float, gradient_norm: float, scores: "_Scores | None", board: Board) -> None:
        """Write a row of the curve: the last step, at that learning rate, and the mean of those before it."""
        progress = self.progress
        mean_loss = progress.sum_losses / progress.n_losses if progress.n_losses else None  # all were skipped
        shown = scores or _Scores(math.nan, math.nan)
        improvement_db = None if scores is None else round(shown.si_snr_improvement_db, 3)
        row = {
            "step": progress.step,
            "hours_heard": round(progress.seconds_heard / 3600, 3),
            "minutes": round(progress.seconds / 60, 2),
            "learning_rate": round(rate, 8),
            "train_loss_db": None if mean_loss is None else round(mean_loss, 3),
            "gradient_norm": round(gradient_norm, 3),
            "valid_si_snr_improvement_db": improvement_db,
            "held_out_si_snr_improvement_db": _rounded(shown.held_out_db),
            "wrong_turns": _rounded(shown.wrong_turns),
            "best_db": round(progress.best_db, 3) if math.isfinite(progress.best_db) else None,
            **self.pace.per_second(),
        }
        progress.n_losses, progress.sum_losses = 0, 0.0
        self.pace = _Pace()
        if not self.accelerator.is_main_process:
            return
        known = {key: value for key, value in row.items() if value is not None}
        n_left = self.recipe.optimization.n_steps - progress.step
        hours_left = n_left * progress.seconds / max(progress.step, 1) / 3600
        self.folder.append_to_curve(row)
        with self.bar.external_write_mode():  # so that the line takes the bar's place
            print(
                "  ".join(
                    f"{key} {value}" for key, value in [*known.items(), ("hours_left", round(hours_left, 2))]
                ),
                flush=True,
            )
        if scores is not None:
            known["valid_loss_db"] = -scores.si_snr_db
        board.numbers(known, progress.step)

    def _save(self) -> None:
        """Write the checkpoint to resume from, then drop the candidates that it no longer names."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": dataclasses.asdict(self.progress),
        }
        if self.folder.save_checkpoint(state):
            self.folder.remove_candidates(except_steps=[step for _, step in self.progress.candidates])


_Parts = tuple[nn.Module, AveragedModel, list[torch.optim.Optimizer]]


def _build(recipe: Recipe, accelerator: Any, state: dict[str, Any] | None) -> _Parts:
    """Return the network, its running average and its optimizers, as they were at that state, or new."""
    torch.manual_seed(recipe.seed)
    model = _initial_model(recipe, resumed=state is not None).to(accelerator.device)
    emulated = recipe.optimization.precision == "auto" and accelerator.mixed_precision == "no"
    dtype = torch.float32 if emulated else torch.bfloat16
    optimizers = build_optimizers(model, recipe.optimization, dtype)
    average = AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(recipe.optimization.average_decay), use_buffers=True
    )
    if state is not None:
        _restore(state, model, average, optimizers)
    return model, average, optimizers


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _begin(
    recipe: Recipe,
    folder: RunFolder,
    accelerator: Any,
    parts: _Parts,
    progress: _Progress,
    further: FurtherValidation,
) -> "_Run":
    """Return a run that can begin, with its recipe in its folder."""
    model, average, optimizers = parts
    if accelerator.is_main_process:  # only now: a run that the recipe does not fit keeps its own
        folder.cut_curve(progress.step)
        progress.candidates = folder.present(progress.candidates)
        write_beginning(recipe, folder, accelerator, progress.step)
    if recipe.optimization.checkpoint_activations:
        checkpoint_activations(model)
    network = accelerator.prepare(_TrainingStep(model, recipe.optimization.loss_limit_db).train())
    prepared = [accelerator.prepare(optimizer) for optimizer in optimizers]
    return _Run(recipe, folder, accelerator, network, model, average, prepared, progress, further)


def _initial_model(recipe: Recipe, *, resumed: bool) -> Any:
    """Return the network that training starts from; that of a run that is resumed gets its weights later."""
    if recipe.initial_checkpoint and not resumed:
        model = load_model(recipe.initial_checkpoint)
        if model.config == recipe.model:
            return model
        if not isinstance(recipe.model, type(model.config)) or recipe.model != dataclasses.replace(
            model.config, **{name: getattr(recipe.model, name) for name in WEIGHTLESS}
        ):
            raise TrainingError(
                f"{recipe.initial_checkpoint} has another config than the recipe: {model.config}"
            )
        changed: Any = FAMILIES[recipe.family][1](recipe.model)
        changed.load_state_dict(model.state_dict())
        return changed
    network: Any = FAMILIES[recipe.family][1](recipe.model)
    if recipe.fourier_filters and not resumed:
        network.initialize_fourier()
    return network


def _restore(
    state: dict[str, Any], model: nn.Module, average: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            "the run is of another network or optimizer than the recipe's; the recipe.yaml in its folder fits"
        ) from error


@contextlib.contextmanager
def _stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the run after the step under way, with a checkpoint."""
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
