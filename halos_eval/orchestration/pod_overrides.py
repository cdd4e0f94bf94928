"""What a lab adds to the pods of a profile (``podOverrides``), in Kubernetes' own form, and what it must not change."""

from __future__ import annotations

from typing import Any

from halos_eval.errors import BadInput

KEYS = ("mountPath", "name")
"""Keys by which items of a list are the same: volume mounts by path, all others by name."""
HARDENED_POD = {"automountServiceAccountToken": False, "restartPolicy": "Never"}
HARDENED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
HOST = ("hostNetwork", "hostPID", "hostIPC")


def overridden(pod: dict[str, Any], overrides: dict[str, Any], code: bool) -> dict[str, Any]:
    """Return ``pod`` with ``overrides`` merged into it. Raise BadInput if that weakens its protection.

    Mappings are merged by key, lists of named items by name; other values replace what was there, and None removes it.
    :param code: whether the pod executes a model's code.
    """
    merged: dict[str, Any] = _merged(pod, _for_each_container(pod, overrides))
    for problem in _problems(merged, pod, code):
        raise BadInput(
            f"podOverrides change {problem}, which protects the cluster from what a pod runs. Remove that from the "
            "profile in the cluster file, or use another profile for these stages"
        )
    return merged


def _for_each_container(pod: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return ``overrides`` with those of the first container for the others, which need the same proxy or volumes."""
    first, *others = [one["name"] for one in pod["spec"]["containers"]]
    given = (overrides.get("spec") or {}).get("containers") or []
    named = {one.get("name") for one in given if isinstance(one, dict)}
    copies = [
        {**one, "name": name}
        for one in given
        if isinstance(one, dict) and one.get("name") == first
        for name in others
        if name not in named
    ]
    return {**overrides, "spec": {**overrides["spec"], "containers": [*given, *copies]}} if copies else overrides


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        both = old | {key: _merged(old[key], value) if key in old else value for key, value in new.items()}
        return {key: value for key, value in both.items() if value is not None}
    if isinstance(old, list) and isinstance(new, list) and (key := _key(old + new)):
        items = {item[key]: item for item in old}
        for item in new:
            items[item[key]] = _merged(items.get(item[key], {}), item)
        return list(items.values())
    return new


def _key(items: list[Any]) -> str | None:
    """Return the key that names all of these items."""
    return next((key for key in KEYS if all(isinstance(item, dict) and key in item for item in items)), None)


def _confined(profile: dict[str, Any]) -> bool:
    return profile.get("type") in {"RuntimeDefault", "Localhost"}


def _problems(pod: dict[str, Any], before: dict[str, Any], code: bool) -> list[str]:
    """Return the protected fields that differ."""
    spec, ours = pod["spec"], before["spec"]["containers"]
    found = [name for name, value in HARDENED_POD.items() if spec.get(name) != value]
    found += [name for name in HOST if spec.get(name)]
    labels = pod["metadata"]["labels"]
    found += [f"the label {name}" for name, value in before["metadata"]["labels"].items() if labels.get(name) != value]
    security = spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
        found.append("securityContext.runAsNonRoot")
    if not _confined(security.get("seccompProfile", {})):
        found.append("securityContext.seccompProfile")
    if [one["name"] for one in spec["containers"]] != [one["name"] for one in ours] or spec.get("initContainers"):
        return [*found, "the list of containers"]
    for container, our in zip(spec["containers"], ours, strict=True):
        found += _problems_of(container, our, code)
    if code:
        found += [
            f"{name} of a model's code"
            for name in ("serviceAccountName", "volumes")
            if spec.get(name) != before["spec"].get(name)
        ]
    return found


def _problems_of(container: dict[str, Any], ours: dict[str, Any], code: bool) -> list[str]:
    """Return the protected fields of a container that differ."""
    found = []
    context = container.get("securityContext", {})
    found += [f"securityContext.{name}" for name, value in HARDENED_CONTAINER.items() if context.get(name) != value]
    if not _confined(context.get("seccompProfile", {"type": "RuntimeDefault"})):
        found.append("securityContext.seccompProfile of the container")
    if context.get("privileged") or context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        found.append("securityContext.privileged")
    found += [name for name in ("args", "command") if container.get(name) != ours.get(name)]
    if code:  # it sees no more than we give it
        found += [
            f"{name} of a model's code"
            for name in ("env", "envFrom", "volumeMounts")
            if container.get(name) != ours.get(name)
        ]
    return found
