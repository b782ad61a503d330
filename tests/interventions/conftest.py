"""Counts the programs that are compiled."""

import jax
import pytest

_COMPILED: list[str] = []


def _hear(event, duration_secs, **_):
    if "backend_compile" in event:
        _COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(_hear)


@pytest.fixture
def compiled():
    """One entry a program compiled in this process; its length before and after is compared."""
    return _COMPILED
