"""Settings and hooks of all tests."""

from hypothesis import settings

from mapper.ops import logs

# The time of an example depends more on the machine than on the code.
settings.register_profile("mapper", deadline=None)
settings.load_profile("mapper")


def pytest_runtest_teardown() -> None:
    """Remove the log writer of a test that has served in this process, so that the next test logs to pytest."""
    logs._json_file = None
