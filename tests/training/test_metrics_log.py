import json

from gr_jax.training import metrics_log


def test_each_line_is_a_json_object_with_step_epoch_split_and_time(tmp_path):
    log = metrics_log.MetricsLog(tmp_path)
    log.write(3, 1, "train", {"loss": 2.5})
    log.close()
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line.pop("time") > 1e9
    assert line == {"step": 3, "epoch": 1, "split": "train", "loss": 2.5}


def test_resuming_forgets_later_steps_and_a_line_cut_short(tmp_path):
    log = metrics_log.MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, 0, "train", {"loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "epo')
    metrics_log.MetricsLog(tmp_path, resume_step=2).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
