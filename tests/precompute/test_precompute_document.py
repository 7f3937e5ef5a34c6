"""The example of docs/precompute.md, on a folder like the one it speaks of."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from precompute_cases import blob, write_nifti

import rwkernels as rw
from rwkernels import cli

pytest.importorskip("zarr", reason="the extra `precompute` is not installed")
pytest.importorskip("nibabel", reason="the extra `precompute` is not installed")
pytest.importorskip("SimpleITK", reason="the extra `precompute` is not installed")

TEXT = (Path(__file__).parents[2] / "docs" / "precompute.md").read_text()


def test_what_the_document_shows_happens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        write_nifti(tmp_path / "labelsTr" / f"case_0{index}.nii.gz", blob((24, 20, 17), index, classes=3))
    (commands,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for command in commands.splitlines():
        name, *arguments = shlex.split(command, comments=True)
        assert name == "rwkernels"
        assert cli.main([*arguments, "--workers", "1"]) == 0
    assert "3 of 3 maps verified against SciPy" in capsys.readouterr().out
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "precompute.md", "exec"), names)
    assert torch.isfinite(names["loss"])
    labels = torch.from_numpy(blob((24, 20, 17), 0, classes=3))
    whole, box = names["whole"], names["box"]
    assert torch.equal(whole["label"], labels)
    truth = rw.rectified_map(labels[None], 3, spacing=whole["spacing"])[0]
    assert float((whole["map"].foreground - truth.foreground).abs().max()) < 1e-5
    assert torch.equal(box["map"].foreground, whole["map"].foreground[4:12, 4:12, 2:6])
