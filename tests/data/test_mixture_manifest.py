"""Manifests that a person has edited, or that are not whole."""

import pytest

from flasepformer.data import MixtureFiles, read_mixture_manifest, write_mixture_manifest


@pytest.fixture
def manifest(tmp_path):
    """A manifest of two mixtures."""
    files = [
        MixtureFiles(
            name=name,
            mixture=tmp_path / f"mix/{name}.wav",
            sources=(tmp_path / f"s1/{name}.wav", tmp_path / f"s2/{name}.wav"),
            speakers=("x", "y"),
            utterances=("1", "2"),
            n_samples=8000,
            sample_rate=8000,
        )
        for name in ("a", "b, quoted")
    ]
    write_mixture_manifest(files, tmp_path / "test.csv")
    return tmp_path / "test.csv"


def edit(manifest, change):
    lines = manifest.read_text().splitlines()
    lines[2] = change(lines[2])
    manifest.write_text("\n".join(lines) + "\n")


def test_a_manifest_is_read_as_it_was_written(manifest):
    first, second = read_mixture_manifest(manifest)
    assert (first.name, second.name) == ("a", "b, quoted")
    assert second.sources[1].resolve() == (manifest.parent / "s2/b, quoted.wav").resolve()
    assert (second.n_samples, second.speakers, second.noise) == (8000, ("x", "y"), None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda line: "foo", "1 values for 15 columns"),
        (lambda line: line[: line.index("mix/")], "4 values for 15 columns"),
        (lambda line: line + ",more,and more", "17 values for 15 columns"),
        (lambda line: line.replace('"', ""), "19 values for 15 columns"),
        (lambda line: line.replace("8000,8000", "8000,many"), "invalid literal"),
        (lambda line: line.replace('"mix/b, quoted.wav"', ""), "mixture_path is empty"),
        (lambda line: line.replace('"s2/b, quoted.wav"', ""), "source_path_2 is empty"),
        (lambda line: line.replace('"b, quoted",8000', ",8000"), "name is empty"),
    ],
)
def test_a_row_that_is_not_whole_is_named(change, reason, manifest):
    edit(manifest, change)
    with pytest.raises(ValueError, match=rf"test\.csv, line 3: {reason}"):
        read_mixture_manifest(manifest)


def test_a_file_that_is_no_csv_is_named(manifest):
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b",x,", b",caf\xe9,"))
    with pytest.raises(ValueError, match=r"test\.csv is no manifest of mixtures: it is not text in UTF-8"):
        read_mixture_manifest(manifest)
    manifest.write_bytes(content.replace(b",x,", b"," + 200_000 * b"x" + b","))
    with pytest.raises(ValueError, match=r"test\.csv is no manifest of mixtures: field larger than"):
        read_mixture_manifest(manifest)
