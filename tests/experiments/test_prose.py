"""The figures in the text of the pages are what experiments/results holds."""

import pytest

from experiments import prose


@pytest.fixture(scope="module")
def sentences():
    return prose.sentences()


@pytest.mark.parametrize("page", prose.pages(), ids=lambda page: page.name)
def test_every_figure_in_the_text_is_backed(page, sentences):
    name = str(page.relative_to(prose.ROOT))
    assert prose.wrong(prose.text_of(page), *sentences.get(name, ((), ()))) == []


def test_all_sentences_are_of_pages_that_are_looked_at(sentences):
    assert set(sentences) <= {str(page.relative_to(prose.ROOT)) for page in prose.pages()}


def test_a_figure_changed_by_hand_is_found():
    told = prose.wrong("It takes 0.5 GiB of memory.", ["takes 0.9 GiB of memory"], [])
    assert told[0] == "should say: takes 0.9 GiB of memory" and "0.5 GiB" in told[1]


@pytest.mark.parametrize(
    "figure", ["HR@10 is .3343", "9 times", "2e-6", "30 minutes", "117 /s", "8 ms", "5 %"]
)
def test_a_figure_without_a_result_is_found(figure):
    (told,) = prose.wrong(f"In all {figure}, `--k=10 s`.", [], [])
    assert "no result backs" in told and figure in told


def test_numbers_that_are_no_measurements_pass():
    assert (
        prose.wrong("4,000 users, N=1024, `rate=0.1 s`, 8x1 devices, HR@10, version 3.11", [], [])
        == []
    )
