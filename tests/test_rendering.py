"""How figures leave Python."""

import threading
from types import SimpleNamespace

import kaleido
import pytest

from warp_lib.report import rendering


class Server:
    """Kaleido's, of which there is one."""

    _instance = None

    def __new__(cls) -> "Server":
        if cls._instance is None:
            cls._instance = super().__new__(cls)
            cls._instance._thread, cls._instance._initialized = threading.main_thread(), False
        return cls._instance

    def call_function(self, *_, **__) -> bytes:
        self.asked()
        return b"PNG"


@pytest.mark.parametrize("hanging", [0, 1, 2])
def test_a_browser_that_hangs_is_started_again(monkeypatch, hanging):
    """Guards: figures without images for a whole notebook, for one browser that hung; a late image
    of the first taken for the second's; a wait without end.
    """
    servers = []

    def start(**_) -> None:
        servers.append(kaleido._global_server)
        servers[-1]._initialized = True

    def asked(_) -> None:
        if len(servers) <= hanging:
            threading.Event().wait()

    monkeypatch.setattr(Server, "_instance", None)
    monkeypatch.setattr(Server, "asked", asked, raising=False)
    monkeypatch.setattr(kaleido, "_global_server", Server())
    monkeypatch.setattr(kaleido, "Kaleido", SimpleNamespace)
    monkeypatch.setattr(kaleido, "start_sync_server", start)
    monkeypatch.setattr(rendering, "PATIENCE", 0.2)
    assert rendering._draws.__wrapped__() == (hanging < 2)
    assert len(set(servers)) == len(servers) == min(hanging + 1, 2)
    assert [server._initialized for server in servers] == [
        hanging == k for k in range(len(servers))
    ]
    assert kaleido._global_server._initialized == (hanging < 2)
