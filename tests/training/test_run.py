import ctypes

from gr_jax.training.run import keep_freed_memory


def test_a_system_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()


def test_the_three_settings_reach_malloc(monkeypatch):
    class Library:
        calls = []

        def mallopt(self, setting, value):
            self.calls.append((setting, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    keep_freed_memory()
    assert dict(Library.calls) == {-8: 1, -3: 2**30, -1: 2**31 - 1}
