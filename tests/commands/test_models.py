import json

from typer.testing import CliRunner

from flasepformer.cli import app
from flasepformer.models import list_models


def test_models_are_listed_with_their_sizes():
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    *_, networks = result.stdout.split("\n\n")  # after what to take for what, and the aliases
    header, *rows = networks.splitlines()
    assert header.split() == [
        *("NAME", "FAMILY", "RATE", "TALKERS", "PARAMETERS", "GMAC/S", "WEIGHTS", "LICENCE", "DESCRIPTION")
    ]
    assert len(rows) == len(list_models())
    row = next(row for row in rows if row.startswith("fla-sepreformer-b "))
    assert row.split()[:8] == [
        *("fla-sepreformer-b", "sepreformer", "8000", "Hz", "2", "14,085,952", "21.31", "random")
    ]
    assert rows[0].split()[7] == "trained"


def test_models_as_json_say_the_same():
    result = CliRunner().invoke(app, ["models", "--json"])
    infos = {info["name"]: info for info in json.loads(result.stdout)}
    assert infos["fla-sepreformer-t"]["n_parameters"] == 3_680_544
    assert list(infos) == [info.name for info in list_models()]


def test_our_own_models_are_offered_beside_the_published_ones():  # issue 15
    result = CliRunner().invoke(app, ["models"])
    offers = {line.split()[0]: line for line in result.stdout.split("\n\n")[0].splitlines()[1:]}
    assert "10.7" in offers["default"].split()
    assert "8.1" in offers["default-fast"].split()
    assert " 8 MB " in offers["default"]
    assert "while people talk, 80 ms late" in offers["default-live"]
    assert all("?" not in line for line in offers.values())
