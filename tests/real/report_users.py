"""Make users of FAB for the tests, each with one role; runs in Airflow's environment. NAME:ROLE[+plugins] ..."""

from __future__ import annotations

import sys

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder


def main(words: list[str]) -> None:
    """Make the roles and the users; each name is its own password."""
    with get_application_builder() as builder:
        manager = builder.sm
        for word in words:
            name, _, base = word.partition(":")
            base, _, plugins = base.partition("+")
            role = manager.find_role(base) or manager.add_role(base)
            if plugins:
                # As `airflow roles add-perms` does.
                role = manager.add_role(f"{base}-with-plugins")
                for permission in manager.find_role(base).permissions:
                    manager.add_permission_to_role(role, permission)
                manager.add_permission_to_role(role, manager.create_permission("can_read", "Plugins"))
            manager.add_user(name, name, name, f"{name}@example.org", role, password=name)


main(sys.argv[1:])
