"""The Ray cluster that a command works on: the one that is running, or a local one for as long as the command runs."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ragstone.errors import InputError, LostError, one_line
from ragstone.processes import ray_head
from ragstone.processes.launch import GO_ON, end_lost

AUTH_MODE = "RAY_AUTH_MODE"
"""The environment variable that says whether Ray's processes prove themselves by a token."""
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
"""The environment variable that says what Ray's core puts on standard error."""
Contact = tuple[str, str | None, bool]
"""Address of a cluster, its authentication mode, and whether it ends with the command."""
AUTO = "auto"
"""The address that means: the cluster that runs on this machine, or a new one."""
LOCAL = "local"
"""The address that means: a new cluster on this machine."""
SECONDS_TO_ANSWER = 5.0
"""A host that says nothing for so long is taken for one that is not there."""
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2, which Ray's head speaks, begins: the preface and an empty SETTINGS frame (RFC 9113, 3.4)."""
SETTINGS_FRAME = 4


def refuse_without_ray(flag: str) -> None:
    """Check that Ray is installed; `flag` is what asks for it.

    Raises:
        InputError: it is not.
    """
    if find_spec("ray") is None:
        raise InputError(f"{flag} needs Ray: pip install 'ragstone[ray]'.")


class RayCluster:
    """A connection to a cluster. `close` ends the connection, and the cluster only if this started it.

    Also a context manager.
    """

    def __init__(self, address: str = AUTO, contact: Contact | None = None, go_on: str = GO_ON) -> None:
        """Connect.

        Args:
            address: host:port of a cluster's head; "auto" for the one that runs on this machine (`ray start`, or the
                environment variable RAY_ADDRESS), or, where there is none, a local one that is started here.
            contact: how another process of the run is connected; instead of `address`.
            go_on: what a user does when the cluster's head is lost, once there is a cluster again.

        Raises:
            InputError: no cluster answers at `address`, or it does not let this process in.
        """
        of_the_run = False
        if contact is not None:
            address, mode, of_the_run = contact
            if mode is not None:
                # Given an address, Ray sends its token only where this is set, and reads it when it is imported.
                os.environ.setdefault(AUTH_MODE, mode)
        _show_token()
        import ray

        self.started = False
        self._ends_with_run = of_the_run
        self._was_connected = ray.is_initialized()
        self._watch: ray_head.HeadWatch | None = None
        if self._was_connected:
            return
        running = _running(address)
        named_auto = address == AUTO and "RAY_ADDRESS" not in os.environ
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        with _sigterm_as_it_was(), _quiet_core():
            if running is None:
                ray.init(address=LOCAL, include_dashboard=False, **quiet)
            else:
                try:
                    # Ray sends its token to the cluster that it finds itself, without being told to.
                    ray.init(address=AUTO if named_auto else running, **quiet)
                except Exception as error:  # each way of being turned away raises a class of its own
                    reason = one_line(error)
                    raise InputError(
                        f"The Ray cluster at {running} cannot be used ({reason}); run the command on one of its "
                        "hosts, with the versions of Ray and Python and the token that it was started with."
                    ) from error
        if running is None:
            self.started = self._ends_with_run = True
            none_there = "" if address == LOCAL else "No Ray cluster is running here; "
            started = "a local one was started" if none_there else "A local Ray cluster was started"
            print(f"{none_there}{started} ({self.address}).", file=sys.stderr)
        head, remedy = self.address, go_on if self._ends_with_run else f"start it again, and then {go_on}"
        self._watch = ray_head.HeadWatch(lambda: _silence(head), lambda why: _end(head, why, remedy), ray_head.PATIENCE)

    @property
    def address(self) -> str:
        """host:port of its head."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    @property
    def gpus(self) -> int:
        """Of all its hosts."""
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    @property
    def contact(self) -> Contact:
        """How other processes of the run connect to it."""
        return self.address, os.environ.get(AUTH_MODE), self._ends_with_run

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect, once; a cluster that was started here ends. Whoever was connected before stays so."""
        import ray

        if self._watch is not None:
            self._watch.close()
            self._watch = None
            ray.shutdown()


def _end(head: str, reason: str, remedy: str) -> None:
    """End this process, whose cluster is gone."""
    said = f"has said nothing for {ray_head.PATIENCE:g} s ({reason})"
    end_lost(LostError(f"The head of the Ray cluster at {head} {said}; {remedy}."))


def _show_token() -> None:
    """Let Ray prove itself by the user's token wherever it connects, if there is one; clusters without ask for none.

    Ray does so of itself where it finds the cluster, but not where it is given an address. It looks at the variable
    when it is imported; changed later, it would only divide this process from those that it starts.
    """
    if "ray" in sys.modules:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN") or path.is_file():
        os.environ.setdefault(AUTH_MODE, "token")


def _running(address: str) -> str | None:
    """host:port of the cluster that `address` means; None where a local one is to be started.

    Ray itself tries for minutes to reach a head that is not there, so whether one is there is seen before it tries.
    """
    named = os.environ.get("RAY_ADDRESS") or AUTO if address == AUTO else address
    if named == AUTO:
        found = _running_here()
        return found if found is not None and _silence(found) is None else None
    if named == LOCAL:
        return None
    reason = _silence(named)
    if reason is not None:
        other = "unset RAY_ADDRESS" if address == AUTO else "leave --ray_address out"
        raise InputError(
            f"No Ray cluster answers at {named} ({reason}); start one there with ray start --head, or {other}."
        )
    return named


def _running_here() -> str | None:
    """Where Ray believes that a cluster runs on this machine; it remembers those that were killed, too."""
    # Ray says where only to itself: ray.init would go on at once to connect there.
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address(AUTO)
    except ConnectionError:
        return None


def _silence(address: str) -> str | None:
    """Why no head of a cluster answers at `address`; None where one does."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return "an address is host:port"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER) as connection:
            if encrypts():
                # An encrypted one does not understand the greeting; that it listens must do.
                return None
            connection.sendall(GREETING)
            answer = connection.makefile("rb").read(4)
    except TimeoutError:
        return f"nothing within {SECONDS_TO_ANSWER:g} s"
    except UnicodeError:
        return "no host can be called so"
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    # The type of a frame stands behind its length of three bytes.
    return None if answer[3:] == bytes([SETTINGS_FRAME]) else "something else than Ray's head listens there"


def encrypts() -> bool:
    """Whether Ray encrypts its connections: as Ray reads its environment."""
    return os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true")


@contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """Undo what ray.init does to SIGTERM: with its own way of ending, a command would not tell that it was stopped."""
    if threading.current_thread() is not threading.main_thread():
        # Ray leaves signals alone there, as anybody must.
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None is a handler that no Python code has set, nor can set.
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Keep off standard error what Ray's core, which is not Python, says there; a user gets to know it by exceptions.

    The core reads the variable when it starts, and says that it did: hence nothing at all is let through meanwhile.
    """
    chosen = os.environ.get(LOG_LEVEL)
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.environ[LOG_LEVEL] = chosen or "fatal"
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        if chosen is None:
            del os.environ[LOG_LEVEL]
