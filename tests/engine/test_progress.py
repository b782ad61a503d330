"""Long calls in spans: between two of them Ctrl-C is heard, on a terminal or not."""

from jaxviz.engine import progress


def test_spans_are_longer_where_steps_are_fast_and_shorter_where_they_are_slow(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])

    def lengths(seconds):
        found = []
        for start, stop in progress.spans(100, 4, 8, "climb"):
            found.append(stop - start)
            clock[0] += seconds * (stop - start)
        assert sum(found) == 96
        return found

    assert lengths(0.001) == [8, 16, 32, 40]
    assert lengths(0.01) == [8, 16, 32, 32, 8]  # 32 take a third of a second
    assert lengths(0.08) == [8, *[4] * 22]  # 8 take more than half a second
    assert lengths(1.0) == [8, 4, 2, *[1] * 82]
