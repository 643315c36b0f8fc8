"""Several processes, and what becomes of an evaluation when one of them or all of them are killed."""

import json
import math
import os
import resource
import signal
from dataclasses import replace

import pytest
import torch
from tests.processes import CONTEXT, start

from flasepformer.data import Mixture, MixtureFolder, MixtureList, MixtureSpec
from flasepformer.evaluation import evaluate
from flasepformer.evaluation.provenance import set_digest
from flasepformer.inference import OutputError, Separator
from flasepformer.inference.workers import map_in_processes
from flasepformer.models import load_model


class Deadly(MixtureFolder):
    """Mixtures one of which kills the process that reads it."""

    def __init__(self, folder, deadly):
        super().__init__(folder)
        self.deadly = deadly

    def __getitem__(self, index):
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def evaluate_deadly(model, mixtures, journal, deadly, jobs, answer):
    result = evaluate(load_model(model), Deadly(mixtures, deadly), metrics=(), jobs=jobs, journal=journal)
    answer.write_text(json.dumps(result.failures))


def scores(result):
    return [(row.name, row.scores, row.error) for row in result.rows]


@pytest.fixture
def quick_processes(monkeypatch):
    """Let workers begin in a moment."""
    monkeypatch.setattr("flasepformer.inference.workers._CONTEXT", CONTEXT)


@pytest.mark.slow
def test_the_scores_do_not_depend_on_the_number_of_jobs(quick_processes, checkpoint, mixtures):
    (mixtures / "s1/c.wav").write_bytes(b"")
    model = Separator.from_pretrained(checkpoint, "cpu")
    one, two = (evaluate(model, MixtureFolder(mixtures), metrics=(), jobs=jobs) for jobs in (1, 2))
    assert scores(one) == scores(two)
    assert [row.name for row in two.rows] == list("abcd")
    assert [name for name, _ in two.failures] == ["c"]


@pytest.mark.long
def test_a_worker_that_is_killed_costs_its_own_mixture(checkpoint, mixtures, tmp_path):
    process = start(evaluate_deadly, checkpoint, mixtures, tmp_path / "journal", 2, 2, tmp_path / "answer")
    process.join(timeout=120)
    assert process.exitcode == 0
    ((name, error),) = json.loads((tmp_path / "answer").read_text())
    assert (name, error.startswith("the process that worked on it died")) == ("c", True)
    assert [json.loads(line).get("name") for line in (tmp_path / "journal").open()] == [None, *"abcd"]


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on_where_it_was(checkpoint, mixtures, tmp_path, mark):
    journal = tmp_path / "journal"
    process = start(evaluate_deadly, checkpoint, mixtures, journal, 3, 1, tmp_path / "answer")
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    mark(journal)
    with journal.open("ab") as file:
        file.write(b'{"name": "d", "sec')  # a row that was being written
    model = Separator.from_pretrained(checkpoint, "cpu")
    resumed = evaluate(model, MixtureFolder(mixtures), metrics=(), journal=journal)
    assert [row.name for row in resumed.rows] == list("abcd")
    assert not resumed.failures
    assert [row.mean("si_snr") == 77 for row in resumed.rows] == [True, False, False, False]
    again = evaluate(model, MixtureFolder(mixtures), metrics=(), journal=journal)  # nothing is left to do
    assert again == resumed


def test_a_journal_of_another_evaluation_is_refused(checkpoint, mixtures, tmp_path):
    model, journal = Separator.from_pretrained(checkpoint, "cpu"), tmp_path / "journal"
    evaluate(model, MixtureFolder(mixtures), metrics=(), limit=1, journal=journal)
    with pytest.raises(ValueError, match="unfinished evaluation with other metrics, versions"):
        evaluate(model, MixtureFolder(mixtures), metrics=("sdr",), journal=journal)
    next(model.model.parameters()).data += 1
    with pytest.raises(ValueError, match="unfinished evaluation with other weights"):
        evaluate(model, MixtureFolder(mixtures), metrics=(), journal=journal)
    journal.write_text("no journal at all\n")
    with pytest.raises(ValueError, match="damaged"):
        evaluate(model, MixtureFolder(mixtures), metrics=(), journal=journal)


class Constant:
    """A kind of set that nobody knows, of one mixture."""

    names, n_sources = ("a",), 2

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Mixture("a", 2 * self.source, self.source.repeat(2, 1), 8000)


def test_mixtures_of_the_same_names_are_another_set(checkpoint, mixtures, tmp_path):
    """In another folder, against other targets, remade in place, or made otherwise: no row is kept."""
    model = load_model(checkpoint)
    for name in ("mix_noisy", "s1_reverb", "s2_reverb"):
        (mixtures / name).symlink_to(
            mixtures / name.replace("mix_noisy", "mix_clean").removesuffix("_reverb")
        )
    files = (mixtures / "s1/a.wav", mixtures / "s2/a.wav")
    sets = [
        MixtureFolder(mixtures, "mix_clean"),
        MixtureFolder(mixtures, "mix_noisy"),
        MixtureFolder(mixtures, "mix_clean", ["s1_reverb", "s2_reverb"]),
        MixtureList([MixtureSpec("a", files, ("x", "y"), (0.0, 0.0), (0.0, 0.0))], 8000),
        MixtureList([MixtureSpec("a", files, ("x", "y"), (0.0, 1.0), (0.0, 0.0))], 8000),
        Constant(torch.arange(100.0)),
        Constant(torch.arange(100.0).flip(0)),
    ]
    assert len({set_digest(one) for one in sets}) == len(sets)
    assert set_digest(MixtureFolder(mixtures, "mix_clean")) == set_digest(sets[0])
    journal = tmp_path / "journal"
    evaluate(model, sets[0], metrics=(), limit=1, journal=journal)
    with pytest.raises(ValueError, match="unfinished evaluation with other mixtures"):
        evaluate(model, sets[1], metrics=(), limit=1, journal=journal)
    os.utime(mixtures / "s1/b.wav", (1e9, 1e9))  # as long as before, but of another time
    with pytest.raises(ValueError, match="with other mixtures or files; finish"):
        evaluate(model, sets[0], metrics=(), limit=1, journal=journal)


def test_the_config_of_a_model_counts_where_its_weights_do_not_show_it(checkpoint, mixtures, tmp_path):
    model, journal = load_model(checkpoint), tmp_path / "journal"
    evaluate(model, MixtureFolder(mixtures), metrics=(), limit=1, journal=journal)
    model.config = replace(model.config, hop_length=model.config.hop_length + 1)
    with pytest.raises(ValueError, match="unfinished evaluation with other config"):
        evaluate(model, MixtureFolder(mixtures), metrics=(), limit=1, journal=journal)


def test_a_full_disk_is_an_output_error_and_what_is_scored_is_kept(checkpoint, mixtures, tmp_path):
    """Files may not grow beyond some bytes here: to a program, the disk is full."""
    model, journal = Separator.from_pretrained(checkpoint, "cpu"), tmp_path / "journal"
    evaluate(model, MixtureFolder(mixtures), metrics=(), limit=2, journal=journal)
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = journal.stat().st_size + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[0][1]))
    try:
        with pytest.raises(OutputError, match="what is scored is kept"):
            evaluate(model, MixtureFolder(mixtures), metrics=(), journal=journal)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
    assert len(evaluate(model, MixtureFolder(mixtures), metrics=(), journal=journal).rows) == 4


@pytest.mark.slow
def test_results_come_in_order_and_an_exception_is_raised_here():
    """Of one process, started as users start it, which takes long; above, the order is that of two."""
    results = map_in_processes(math.sqrt, [9.0, 4.0, 1.0, -1.0], 1)
    assert [next(results) for _ in range(3)] == [3, 2, 1]
    with pytest.raises(ValueError, match="math domain error"):
        next(results)
