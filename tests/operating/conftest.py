"""The worlds of `tests/e2e`, for the stories of operators and newcomers."""

from tests.e2e.conftest import make_shared_world, make_world, pytest_runtest_makereport

__all__ = ["make_shared_world", "make_world", "pytest_runtest_makereport"]
