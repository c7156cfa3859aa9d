"""The Ray cluster that a command works on: the one that is running, or a local one for as long as the command runs."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

from ragstone.errors import InputError

AUTO = "auto"
"""The address that means: the cluster that runs on this machine, or a new one."""


def refuse_without_ray(flag: str) -> None:
    """Check that Ray is installed; `flag` is what asks for it.

    Raises:
        InputError: it is not.
    """
    if find_spec("ray") is None:
        raise InputError(f"{flag} needs Ray: pip install 'ragstone[ray]'.")


class RayCluster:
    """A connection to a cluster. `close` ends the connection, and the cluster only if this started it."""

    def __init__(self, address: str = AUTO) -> None:
        """Connect.

        Args:
            address: host:port of a cluster's head; "auto" for the one that runs on this machine (`ray start`, or the
                environment variable RAY_ADDRESS), or, where there is none, a local one that is started here.

        Raises:
            InputError: no cluster answers at `address`.
        """
        import ray

        self.started = False
        self._was_connected = ray.is_initialized()
        if self._was_connected:
            return
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address != AUTO or "RAY_ADDRESS" in os.environ:
                named = os.environ.get("RAY_ADDRESS", address) if address == AUTO else address
                raise InputError(
                    f"No Ray cluster answers at {named} ({_first_line(error)}); start one there with ray start --head, "
                    "or leave --ray_address out."
                ) from error
            ray.init(address="local", include_dashboard=False, **quiet)
            self.started = True
            print(f"No Ray cluster is running here; a local one was started ({self.address}).", file=sys.stderr)

    @property
    def address(self) -> str:
        """host:port at which other processes connect to it."""
        import ray

        return str(ray.get_runtime_context().gcs_address)

    def close(self) -> None:
        """Disconnect; a cluster that was started here ends. Whoever was connected before stays so."""
        import ray

        if not self._was_connected:
            ray.shutdown()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
