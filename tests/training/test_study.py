"""The small study of the paper's ablation: its recipes, and the tables that are made of its results."""

import dataclasses
import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import torch
from tests.training.conftest import SEPREFORMER, changed

from flasepformer.evaluation import EvaluationRow, write_scores
from flasepformer.models import SepReformer, count_parameters, save_model
from flasepformer.training import load_recipe

ROOT = Path(__file__).parents[2]
_specification = importlib.util.spec_from_file_location("study", ROOT / "recipes" / "study.py")
study = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(study)

# what each variant has otherwise than FLA-SepReformer, in its network
CHANGES = {
    "sepreformer": {"attention": "softmax", "max_distance": 48},
    "fla": {},
    "fla-no-gate": {"gated": False},
    "fla-no-conv": {"value_kernel_size": 0},
    "fla-no-gate-no-conv": {"gated": False, "value_kernel_size": 0},
    "linear": {"attention": "linear"},
}


def recipe_of(variant):
    return load_recipe(study.RECIPES / f"{variant}.yaml")


def test_the_variants_are_the_recipes_of_the_folder():
    assert set(study.VARIANTS) == set(CHANGES) == {path.stem for path in study.RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("variant", CHANGES)
def test_a_variant_differs_from_fla_only_in_what_it_is_about(variant):
    recipe, reference = recipe_of(variant), recipe_of("fla")
    assert reference.model.attention == "focused_linear"
    assert reference.model.gated
    assert reference.model.value_kernel_size == 5
    assert reference.model.focusing_power == 3
    network = dataclasses.replace(reference.model, **CHANGES[variant])
    assert recipe == dataclasses.replace(reference, model=network, description=recipe.description)


@pytest.mark.parametrize("variant", CHANGES)
def test_the_variants_are_of_equal_size(variant):
    with torch.device("meta"):
        sizes = [count_parameters(SepReformer(recipe_of(name).model)) for name in (variant, "fla")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03 if "no-gate" in variant else 0.002)


def test_every_distance_of_softmax_attention_occurs_in_training():
    recipe = recipe_of("sepreformer")
    model, n_samples = recipe.model, recipe.mixing.segment_seconds * recipe.model.sample_rate
    n_frames = (n_samples - model.filter_length) // model.hop_length // 2**model.n_stages
    assert model.max_distance < n_frames


def test_runs_are_planned_seed_by_seed():
    runs = study.planned_runs(1, 2)
    assert runs[:6] == [(variant, 0) for variant in CHANGES]
    assert runs[6:] == [("sepreformer", 1), ("fla", 1)]
    assert [study.parse_run_name(study.run_name(*run)) for run in runs] == runs


def test_a_run_goes_on_when_it_was_cut_short_and_is_not_done_twice(recipe, tmp_path, capsys):
    recipe = changed(recipe, n_steps=3, decay_steps=0)
    folder = tmp_path / "fla-seed0"
    folder.mkdir()
    (folder / "curve.csv").write_text("step,left\n2,by a run that was killed before its first checkpoint\n")
    study.train_run(recipe, folder, tmp_path / "cache")
    rows = study.read_csv(folder / "curve.csv")
    assert [row["step"] for row in rows] == ["2", "3"]
    study.train_run(recipe, folder, tmp_path / "cache")
    assert study.read_csv(folder / "curve.csv") == rows
    assert "fla-seed0: trained already" in capsys.readouterr().out
    study.train_run(changed(recipe, n_steps=6), folder, tmp_path / "cache")
    assert [row["step"] for row in study.read_csv(folder / "curve.csv")] == ["2", "3", "4", "6"]
    assert "fla-seed0: goes on" in capsys.readouterr().out
    assert study.trained_runs(tmp_path.parent) == []
    shutil.move(folder, tmp_path / "runs" / "fla-seed0")
    assert study.trained_runs(tmp_path) == [tmp_path / "runs" / "fla-seed0"]


SCORES = {  # SI-SNRi of three mixtures in dB, by run
    "fla-seed0": (1.0, 2.0, 3.0),
    "fla-seed1": (2.0, 2.0, 2.0),
    "sepreformer-seed0": (2.0, 2.0, 5.0),  # 1, 0 and 2 dB more
    "sepreformer-seed1": (2.0, 5.0, 2.0),  # 0, 3 and 0 dB more
    "linear-seed0": (0.0, 1.0, 2.0),  # 1 dB less on each
}


def scored(values):
    return [
        EvaluationRow(name=f"mixture-{k}", seconds=1.0, compute_seconds=0.1,
                      scores={"si_snr": (value, value), "si_snr_improvement": (value - 1, value + 1)})
        for k, value in enumerate(values)
    ]  # fmt: skip


def test_differences_are_paired_and_averaged_over_the_shared_seeds():
    rows = {row["variant"]: row for row in study.accuracy_rows({k: scored(v) for k, v in SCORES.items()})}
    assert list(rows) == ["sepreformer", "fla", "linear"]
    assert rows["sepreformer"]["si_snr_improvement"] == {0: 3.0, 1: 3.0}
    assert rows["sepreformer"]["difference"] == pytest.approx(1.0)  # mean of 0.5, 1.5 and 1
    assert rows["sepreformer"]["n_shared_seeds"] == 2
    assert rows["sepreformer"]["share_better"] == 1.0
    low, high = rows["sepreformer"]["difference_interval"]
    assert 0.5 <= low < 1.0 < high <= 1.5
    assert rows["linear"]["difference"] == pytest.approx(-1.0)
    assert rows["linear"]["difference_interval"] == pytest.approx((-1.0, -1.0))
    assert "difference" not in rows["fla"]


def test_runs_scored_on_different_mixtures_are_refused():
    scores = {"fla-seed0": scored((1.0, 2.0)), "linear-seed0": scored((1.0, 2.0, 3.0))}
    with pytest.raises(ValueError, match="score them all on the same list"):
        study.accuracy_rows(scores)


def cost_row(variant, seconds, ratio, memory):
    return {
        "variant": variant, "parameters": 1_234_567, "seconds": seconds, "giga_multiply_adds": 0.1 * seconds,
        "cpu_seconds": 0.01 * ratio * seconds, "time_ratio": ratio, "peak_memory_mb": memory,
    }  # fmt: skip


@pytest.fixture
def docs(tmp_path):
    """Return a folder as `collect` leaves it."""
    for folder in ("scores", "curves"):
        (tmp_path / folder).mkdir()
    for name, values in SCORES.items():
        write_scores(tmp_path / "scores" / f"{name}.csv", scored(values))
        study.write_csv(
            tmp_path / "curves" / f"{name}.csv",
            [
                {"hours_heard": hours, "valid_si_snr_improvement_db": score}
                for hours, score in ((0.1, ""), (0.2, 1), (0.4, 2))
            ],
        )
    rows = [
        cost_row(variant, seconds, ratio, 2 * seconds)
        for variant, ratio in (("sepreformer", 1.5), ("fla", 1.0), ("linear", 0.75))
        for seconds in (4.0, 60.0)
    ]
    study.write_csv(tmp_path / "cost.csv", rows)
    (tmp_path / "README.md").write_text(
        f"Above.\n\n{study.TABLES_BEGIN}\nold\n{study.TABLES_END}\n\nBelow.\n"
    )
    return tmp_path


def test_tables_are_made_of_the_result_files(docs):
    study.write_tables(docs)
    readme = (docs / "README.md").read_text()
    assert readme.startswith(f"Above.\n\n{study.TABLES_BEGIN}\n\n| model |")
    assert readme.endswith(f"|\n\n{study.TABLES_END}\n\nBelow.\n")
    assert "old" not in readme
    lines = readme.splitlines()
    linear = "| without the focusing function | 1,234,567 | 1.00 (0.00 to 2.00) |  | -1.00 (-1.00 to -1.00) "
    assert f"{linear}| 1 | 0% |" in lines
    softmax = next(line for line in lines if line.startswith("| softmax SepReformer | 1,234,567"))
    assert re.search(r"\| \+1\.00 \(\+0\.\d+ to \+1\.\d+\) \| 2 \| 100% \|$", softmax)
    assert "| softmax SepReformer | 0.100 G at 4 s, 0.100 G at 60 s | 1.50 | 1.50 | 8 MB | 120 MB |" in lines
    study.write_tables(docs)
    assert (docs / "README.md").read_text() == readme


def test_a_readme_without_the_marks_is_refused_and_stays(docs):
    (docs / "README.md").write_text("nothing to fill in")
    with pytest.raises(ValueError, match="lacks the lines"):
        study.write_tables(docs)
    assert (docs / "README.md").read_text() == "nothing to fill in"


def test_pictures_show_every_variant(docs):
    pytest.importorskip("matplotlib")
    study.draw_accuracy(docs, docs / "accuracy.svg")
    study.draw_curves(docs, docs / "curves.svg")
    for picture in ("accuracy.svg", "curves.svg"):
        drawn = (docs / picture).read_text()
        for variant in ("sepreformer", "fla", "linear"):
            assert study.colour(variant) in drawn
        assert study.colour("fla-no-conv") not in drawn


class Repeated(torch.nn.Module):
    """Do what another network does, several times."""

    def __init__(self, network, n_times):
        super().__init__()
        self.network, self.n_times, self.sample_rate = network, n_times, network.sample_rate

    def forward(self, mixture):
        return [self.network(mixture) for _ in range(self.n_times)]


def test_time_is_measured_in_turns_and_as_work_done():
    torch.manual_seed(0)
    network = SepReformer(SEPREFORMER).eval()
    models = {"once": network, "four times": Repeated(network, 4)}
    taken = study.time_in_turns(models, seconds=1.0, n_rounds=5)
    assert [len(times) for times in taken.values()] == [5, 5]
    assert 2.5 < sum(taken["four times"]) / sum(taken["once"]) < 6


@pytest.mark.slow  # a process of its own for every network
def test_costs_are_against_the_reference(tmp_path):
    for name, n_stages in (("fla", 1), ("linear", 3)):
        torch.manual_seed(0)
        save_model(SepReformer(dataclasses.replace(SEPREFORMER, n_stages=n_stages)), tmp_path / name)
    folders = {name: tmp_path / name for name in ("fla", "linear")}
    rows = study.measure_costs(folders, {1.0: 3})
    fla, linear = rows
    assert (fla["variant"], fla["time_ratio"], fla["seconds"], fla["rounds"]) == ("fla", 1.0, 1.0, 3)
    assert linear["parameters"] > fla["parameters"]
    assert linear["giga_multiply_adds"] > fla["giga_multiply_adds"] > 0
    assert linear["time_ratio_low"] <= linear["time_ratio"] <= linear["time_ratio_high"]
    assert min(fla["peak_memory_mb"], linear["peak_memory_mb"]) > 0.1
    study.write_csv(tmp_path / "cost.csv", rows)
    assert "1.00" in study.cost_table(study.read_csv(tmp_path / "cost.csv"))


@pytest.mark.skipif(not (study.DOCS / "cost.csv").exists(), reason="the study has no results yet")
def test_the_published_tables_are_those_of_the_published_files():
    assert f"\n\n{study.tables(study.DOCS)}\n\n" in (study.DOCS / "README.md").read_text(encoding="utf-8")


def test_published_recipes_are_those_that_the_study_would_train():
    for path in (study.DOCS / "recipes").glob("*.yaml"):
        assert load_recipe(path) == recipe_of(path.stem)
