"""What holds for all tests."""

from hypothesis import settings

from mapper.ops import logs

# How long an example takes says more about the machine than about the code.
settings.register_profile("mapper", deadline=None)
settings.load_profile("mapper")


def pytest_runtest_teardown() -> None:
    """A test in which this process has served leaves its log lines to nobody: the next one reads them from pytest."""
    logs._writer = None
