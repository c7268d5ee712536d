"""A server that is not installed skips a test here and fails it under CI."""

from __future__ import annotations

import pytest
from tests.servers import require_server


def test_a_missing_server_skips_the_test_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-server is not installed"):
        require_server("no-such-server")


def test_under_ci_a_missing_server_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must not skip"):
        require_server("no-such-server")
