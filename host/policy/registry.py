"""Policies by name: those of this folder, and a user's own as ``module:Class``."""

import dataclasses
import math
import pkgutil
from collections.abc import Mapping
from typing import Any, Final

from host.policy.chromeos import Chromeos, ChromeosParameters
from host.policy.esx import Esx, EsxParameters
from host.policy.hyperv import Hyperv, HypervParameters
from host.policy.mom import Mom, MomParameters
from host.policy.parameters import INTERVAL_LEAST, INTERVAL_MOST, Value, describe, make_parameters, nearest
from host.policy.policy import Policy
from host.policy.proxmox import Proxmox, ProxmoxParameters
from host.policy.reclaim_on_pressure import ReclaimOnPressure, ReclaimOnPressureParameters
from host.policy.reporting import Reporting, ReportingParameters
from host.policy.squeezed import Squeezed, SqueezedParameters
from host.policy.steady import Steady, SteadyParameters
from host.policy.wsl import Wsl, WslParameters
from protocol.errors import UsageError

POLICIES: Final[Mapping[str, tuple[type[Any], type[Any], str]]] = {
    "steady": (Steady, SteadyParameters, "ours: from idle guests, and from all under pressure; backs off on refaults"),
    "reporting": (Reporting, ReportingParameters, "free page reporting alone: asks for nothing"),
    "reclaim-on-pressure": (ReclaimOnPressure, ReclaimOnPressureParameters, "reporting, and `reclaim` under pressure"),
    "mom": (Mom, MomParameters, "oVirt's MOM: all guests shrink and grow by 5 % with the host's free memory"),
    "proxmox": (Proxmox, ProxmoxParameters, "Proxmox VE: the host is kept at 80 % by shares"),
    "squeezed": (Squeezed, SqueezedParameters, "Xen: all domains have one proportion of their range"),
    "chromeos": (Chromeos, ChromeosParameters, "ChromeOS: balances guest and host above critical levels"),
    "hyperv": (Hyperv, HypervParameters, "Hyper-V: demand and a buffer, by weight in a shortage"),
    "esx": (Esx, EsxParameters, "VMware ESX: shares, with a tax on idle memory"),
    "wsl": (Wsl, WslParameters, "WSL: page cache of idle guests, step by step"),
}
"""Name: the class, its parameters, and what it does in a line. The first is our own."""


def make_policy(name: str, parameters: Mapping[str, Value] | None = None) -> Policy:
    """Return a new policy ``name`` with these parameters; the others have their defaults.

    Raises:
        UsageError: an unknown name, parameter or value; the line says what there is. A user's own policy that cannot be
            imported or made.
    """
    values = {} if parameters is None else parameters
    if ":" in name:
        return _own_policy(name, values)
    if name not in POLICIES:
        known = ", ".join(POLICIES)
        raise UsageError(f"no policy is called {name!r}{nearest(name, POLICIES)} (there are {known}, and module:Class)")
    kind, parameters_kind, _ = POLICIES[name]
    policy: Policy = kind(make_parameters(parameters_kind, values, name))
    return policy


def describe_policies(name: str | None = None) -> list[str]:
    """Return lines for people: all policies, or one policy with its parameters. Raises :class:`UsageError`."""
    if name is None:
        width = max(map(len, POLICIES))
        return [f"{known:{width}}  {does}" for known, (_, _, does) in POLICIES.items()]
    if name not in POLICIES:
        raise UsageError(f"no policy is called {name!r}{nearest(name, POLICIES)}")
    _, parameters_kind, does = POLICIES[name]
    fields = dataclasses.fields(parameters_kind)
    width = max(len(field.name) for field in fields)
    return [f"{name}: {does}", *(f"  {field.name:{width}}  {describe(field)}" for field in fields)]


def _own_policy(name: str, values: Mapping[str, Value]) -> Policy:
    module, _, attribute = name.partition(":")
    try:
        kind = pkgutil.resolve_name(name)
    except (ImportError, ValueError) as error:
        raise UsageError(f"policy {name}: {error} (modules are found on PYTHONPATH)") from error
    except AttributeError:
        raise UsageError(f"policy {name}: the module {module} has no {attribute}") from None
    except (Exception, SystemExit) as error:
        raise UsageError(f"policy {name}: {module} cannot be imported: {_line(error)}") from error
    try:
        made = kind(**{parameter.replace("-", "_"): value for parameter, value in values.items()})
    except (Exception, SystemExit) as error:
        raise UsageError(f"policy {name} cannot be made: {_line(error)}") from error
    return _checked(made, name)


def _checked(made: Any, name: str) -> Policy:
    # A user's class: what it lacks is said before it is used.
    if not callable(getattr(made, "decide", None)):
        raise UsageError(f"policy {name} has no method decide(seen)")
    interval: Any = getattr(made, "interval", None)
    is_number = isinstance(interval, int | float) and not isinstance(interval, bool) and math.isfinite(interval)
    if not is_number or not INTERVAL_LEAST <= interval <= INTERVAL_MOST:
        raise UsageError(
            f"policy {name}: interval is {interval!r}, not seconds from {INTERVAL_LEAST} to {INTERVAL_MOST:g}"
        )
    if not isinstance(getattr(made, "name", None), str):
        raise UsageError(f"policy {name} has no name, which is a string")
    policy: Policy = made
    return policy


def _line(error: Exception | SystemExit) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
