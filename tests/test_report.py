"""The report of real small runs: finished, not finished, side by side, of both kinds."""

import re
from pathlib import Path

import pytest

from gr_jax import report, train
from gr_jax.config import ConfigError
from gr_jax.reporting import curves
from gr_jax.reporting.report import write_after_training

CONFIG = """
from gr_jax.config import *

def get_config(variant="retrieval"):
    ranks = variant == "ranking"
    return Config(
        data=DataConfig(
            source="synthetic", prepared={prepared!r} + variant, max_length=8, row_length=32,
            synthetic=SyntheticConfig(num_users=120, num_items=200, mean_length=8.0, actions=ranks),
            actions=("click=click",) if ranks else (),
        ),
        model=ModelConfig(width=8, num_blocks=1, qk_width=4, v_width=4, head_width=8),
        ranking=RankingConfig(tasks=("click",) if ranks else ()),
        train=TrainConfig(
            mode="streaming" if ranks else "epochs", windows=2, epochs=2,
            batch_users=16, log_every=1,
        ),
        mesh=MeshConfig(data=1),
    )
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Runs of retrieval and of streaming ranking with their reports; one without a checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    config, runs = folder / "tiny.py", {}
    config.write_text(CONFIG.format(prepared=str(folder / "data-")))
    for variant in ("retrieval", "ranking"):
        runs[variant] = folder / variant
        assert train.main([f"--config={config}:{variant}", f"--workdir={runs[variant]}"]) == 0
    runs["started"] = folder / "started"
    runs["started"].mkdir()
    for name in ("config.json", "metrics.jsonl"):
        text = (runs["retrieval"] / name).read_text()
        (runs["started"] / name).write_text(
            text.replace('"width": 8', '"width": 9') if name == "config.json" else text[:-150]
        )
    return runs


def section(page: str, name: str) -> str:
    return page.split(f"<h2>{name}</h2>")[1].split("<h2>")[0]


def test_training_ends_with_a_page_that_needs_nothing_else(trained):
    page = (trained["retrieval"] / "report.html").read_text()
    assert (
        not re.findall(r'(?:src|href)="(?!#)', page)
        and "@import" not in page
        and "url(" not in page.replace("url(#", "")
    )
    results = section(page, "Results")
    for word in ("hr@10", "valid", "test", "popularity", "±", "coverage@10", "hr@10 head"):
        assert word in results
    headings = re.findall(r"<h3>(.*?)</h3>", section(page, "Curves"))
    assert [heading.split(",")[0] for heading in headings] == [
        "Loss",
        "By length of the history and by popularity",
        "Validation",
        "Speed of training",
        "Attention bias as learned",
    ]
    assert page.count("<svg") == 5
    files = {"loss", "history", "metrics", "speed", "bias"}
    assert {file.stem for file in (trained["retrieval"] / "report").glob("*.png")} == files
    assert section(page, "Speed").count("%") == 2, "fill and MFU"
    assert section(page, "Recommendations").count('class="user"') == 3
    assert "train.batch_users" in section(page, "Config, where it is not the default")


def test_streaming_ranking_shows_predicted_and_actual_actions(trained):
    page = (trained["ranking"] / "report.html").read_text()
    assert "ne/click" in section(page, "Results") and "constant rate" in section(page, "Results")
    assert "By length of the history, ranking of click" in page
    assert re.search(r"predicted click 0\.\d\d; happened: (click|none of the actions)", page)


def test_runs_side_by_side_with_one_that_has_no_checkpoint_yet(trained, tmp_path, capsys):
    out = tmp_path / "compared.html"
    workdirs = [str(trained[name]) for name in ("retrieval", "started")]
    assert report.main([f"--workdir={workdirs[0]}", *workdirs[1:], f"--out={out}"]) == 0
    assert str(out) in capsys.readouterr().out
    page = out.read_text()
    assert "not finished: step" in section(page, "Runs")
    assert re.search(r"valid at step \d+ \(not finished\)", section(page, "Results"))
    assert "started: " in section(page, "Recommendations") and "no validated checkpoint" in page
    assert "model.width" in section(page, "Differences between the configs")
    assert "model.num_blocks" not in section(page, "Differences between the configs")


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run \(no config.json\)") as caught:
        report.main([str(tmp_path)])
    assert "\n" not in str(caught.value)


def test_without_matplotlib_the_page_says_how_to_get_the_curves(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "can_draw", lambda: False)
    page = report.write([trained["started"]], tmp_path / "plain.html").read_text()
    assert "pip install 'gr-jax[plots]'" in page.replace("&#x27;", "'") and "<svg" not in page
    assert "hr@10" in section(page, "Results")


def test_a_report_that_cannot_be_written_is_one_line_and_a_failure(tmp_path, capsys):
    assert not write_after_training(tmp_path)
    shown = capsys.readouterr().err
    assert shown.startswith("error: no report (") and len(shown.splitlines()) == 1
