"""How figures leave Python."""

import threading
from types import SimpleNamespace

import kaleido
import pytest

from warp_lib.report import rendering


class Server:
    """Kaleido's, of which there is one."""

    _instance = None

    def __init__(self) -> None:
        self._thread, self._initialized = threading.main_thread(), False


@pytest.mark.parametrize("hanging", [0, 1, 2])
def test_a_browser_that_hangs_is_started_again(monkeypatch, hanging):
    """Guards: figures without images for a whole notebook, for one browser that hung; a late image
    of the first taken for the second's; a wait without end.
    """
    servers = []

    def start(**_) -> None:
        servers.append(kaleido._global_server)
        servers[-1]._initialized = True

    def image(*_, **__) -> bytes:
        if len(servers) <= hanging:
            threading.Event().wait()
        return b"PNG"

    monkeypatch.setattr(kaleido, "_global_server", Server())
    monkeypatch.setattr(kaleido, "Kaleido", SimpleNamespace)
    monkeypatch.setattr(kaleido, "start_sync_server", start)
    monkeypatch.setattr(rendering.pio, "to_image", image)
    monkeypatch.setattr(rendering, "PATIENCE", 0.2)
    assert rendering._draws.__wrapped__() == (hanging < 2)
    assert len(set(servers)) == len(servers) == min(hanging + 1, 2)
    assert [server._initialized for server in servers] == [
        hanging == k for k in range(len(servers))
    ]
    assert kaleido._global_server._initialized == (hanging < 2)
