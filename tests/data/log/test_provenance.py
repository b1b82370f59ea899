"""Origin of a dataset: only what decides its content, so that old datasets are found again."""

import json

import pytest

from gr_jax.config import ConfigError, DataConfig
from gr_jax.data.log.provenance import check_same, fingerprint, made_from

# Of the first datasets of this layout, with the settings that there were then.
BEFORE = {
    DataConfig(source="csv"): "46d9b04ea39f",
    DataConfig(source="ml-1m"): "c9f17f923055",
    DataConfig(source="kuairand", filter="k_core"): "9690b80f9b87",
    DataConfig(source="synthetic"): "d9fd5f6aa899",
}


@pytest.mark.parametrize("config", BEFORE, ids=lambda config: config.source)
def test_settings_that_came_later_do_not_change_a_fingerprint_at_their_defaults(config):
    assert fingerprint(made_from(config, [])) == BEFORE[config]


def test_what_is_on_disk_changes_the_fingerprint_and_how_batches_are_made_does_not():
    def of(**fields):
        return fingerprint(made_from(DataConfig(source="csv", **fields), []))

    without_effect = (
        dict(max_length=10, row_length=20, max_series=2, path="elsewhere"),
        dict(stochastic_length_alpha=1.6, stochastic_length_selection="greedy"),
        dict(user_file="users.csv"),
    )
    assert {of(**fields) for fields in without_effect} == {of()}
    with_effect = (
        dict(actions=("a=1",)),
        dict(user_features=("age",)),
        dict(user_features=("age",), user_file="users.csv"),
        dict(item_features=("age",)),
        dict(item_file="items.csv"),
        dict(series=("age=age.csv",)),
    )
    assert len({of(), *(of(**fields) for fields in with_effect)}) == 1 + len(with_effect)


def test_the_setting_that_differs_is_named_after_a_round_trip_through_json(tmp_path):
    before = made_from(DataConfig(source="csv", actions=("a=1",), user_features=("age",)), [])
    meta = json.loads(json.dumps({"made_from": before, "fingerprint": fingerprint(before)}))
    check_same(tmp_path, meta, before)
    now = made_from(DataConfig(source="csv", actions=("b=1",), user_features=("age",)), [])
    with pytest.raises(
        ConfigError, match=r": prepared otherwise: actions=\['b=1'\] \(was \['a=1'\]\); delete it"
    ):
        check_same(tmp_path, meta, now)
