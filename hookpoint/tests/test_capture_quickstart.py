"""The fear of a front page that does not work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from capture_layers import Layers, X
from capture_rig import Rig, make_rig

import sonde

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from make_rig(tmp_path_factory)


def test_the_quickstart_runs_as_it_is_written(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = re.findall(r"<!-- run: quickstart -->\n```python\n(.*?)```", README.read_text(), re.S)
    assert len(text.splitlines()) <= 12
    exec(compile(text, str(README), "exec"), {"SOCKET": rig.socket, "LAKE": str(rig.lake)})  # noqa: S102 (the text)
    assert capsys.readouterr().out == "(7, 64) [0 1 2 3 4 5 6]\n"


def test_waiting_for_a_dataset_ends_with_a_sentence(tmp_path: Path) -> None:
    model = Layers()
    with sonde.capture(model, ["a"], socket=None) as capture:
        with pytest.raises(sonde.CaptureError, match="detach it first"):
            capture.stored(tmp_path)
        model(X)
    with pytest.raises(sonde.CaptureError, match="after 0.1 s"):
        capture.stored(tmp_path, timeout=0.1)
