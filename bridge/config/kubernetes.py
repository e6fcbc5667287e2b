"""The variables that Kubernetes injects for a Service. These variables are not settings of the bridge.

For a Service `bridge-north`, each container of the namespace gets `BRIDGE_NORTH_SERVICE_HOST=10.0.0.1`,
`BRIDGE_NORTH_PORT=tcp://10.0.0.1:3000` and others (Kubernetes, "Discovering services"; `pkg/kubelet/envvars`).
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence

_PROTOCOL = "(?:tcp|udp|sctp)"


def service_variables(prefix: str, environment: Mapping[str, str]) -> Sequence[str]:
    """The names of the injected variables that begin with the prefix, in sorted order."""
    return sorted(
        name for name, value in environment.items() if name.startswith(prefix) and is_service_variable(name, value)
    )


def is_service_variable(name: str, value: str) -> bool:
    """Whether Kubernetes injects a variable with this name and value for a Service.

    The name alone is not enough: `BRIDGE_PORT` is a setting, but for a Service `bridge`, Kubernetes injects
    `BRIDGE_PORT=tcp://...`. Because the value is checked too, a misspelled setting still causes an error.
    """
    return any(form.fullmatch(name) and fits(value) for form, fits in _FORMS)


def _is_port(text: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65536


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_url(text: str) -> bool:
    form = re.fullmatch(rf"{_PROTOCOL}://(?:\[([^\]]*)\]|([^:]*)):([^:]*)", text)
    return form is not None and _is_address(form[1] or form[2]) and _is_port(form[3])


def _is_protocol(text: str) -> bool:
    return re.fullmatch(_PROTOCOL, text) is not None


_OF_PORT = rf"[A-Z0-9_]+_PORT_[0-9]{{1,5}}_{_PROTOCOL.upper()}"

_FORMS: Sequence[tuple[re.Pattern[str], Callable[[str], bool]]] = (
    (re.compile("[A-Z0-9_]+_SERVICE_HOST"), _is_address),
    (re.compile("[A-Z0-9_]+_SERVICE_PORT(?:_[A-Z0-9_]+)?"), _is_port),
    (re.compile("[A-Z0-9_]+_PORT"), _is_url),
    (re.compile(_OF_PORT), _is_url),
    (re.compile(f"{_OF_PORT}_PROTO"), _is_protocol),
    (re.compile(f"{_OF_PORT}_PORT"), _is_port),
    (re.compile(f"{_OF_PORT}_ADDR"), _is_address),
)
