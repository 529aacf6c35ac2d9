"""Rows of a comparison: names, each with the settings of a method or a strategy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybal.errors import ConfigError, did_you_mean
from raybal.registry import Registry


@dataclass(frozen=True)
class Rows:
    """One kind of rows of a comparison.

    Attributes:
        what: what the comparison is called in messages, e.g. "table".
        names: key of the settings that lists the names, e.g. "methods".
        settings: key of the settings that maps names to settings of their own, e.g. "balancing".
        choice: key of these that says what the row is, e.g. "method"; a row's name, without it.
        registry: of what it may be.
    """

    what: str
    names: str
    settings: str
    choice: str
    registry: Registry[Any]

    def complete(self, content: Mapping[str, Any], default: Sequence[str]) -> Mapping[str, Any]:
        """Returns the plain values of a comparison's settings with those of every row, filled in by `default` names
        where there are none.

        Raises:
            ConfigError: a name does not tell what the row is, or there are settings of what is no row. Those of a
                method or strategy that is not a row this time are left alone, as in a file for a larger comparison.
        """
        rows, given = content.get(self.names), content.get(self.settings) or {}
        rows = list(default) if rows is None else rows
        if not isinstance(given, Mapping) or not (isinstance(rows, list) and all(isinstance(n, str) for n in rows)):
            return content
        self.check(rows)
        if isinstance(given.get(self.choice), str):
            raise ConfigError(self._one_key(given[self.choice]))
        for name, own in given.items():
            if name not in rows and name not in self.registry.names():
                raise ConfigError(f"{self._unknown(name, rows)}{did_you_mean(name, rows)}")
            if own is not None and not isinstance(own, Mapping):
                raise ConfigError(
                    f"{self.settings}.{name}: {own!r} is not accepted; it must be a mapping of keys to values"
                )
            chosen = (own or {}).get(self.choice, name)
            if name in self.registry.names() and chosen != name:
                raise ConfigError(
                    f"{self.settings}.{name}.{self.choice}: {chosen!r} is not accepted in a row called {name}; "
                    "give the row another name"
                )
        for name in rows:
            if self.choice not in (given.get(name) or {}):
                self._check_registered(name)
        return {**content, self.settings: {n: {self.choice: n, **(given.get(n) or {})} for n in rows}}

    def _check_registered(self, name: str) -> None:
        try:
            self.registry.get(name)
        except ConfigError as error:
            raise ConfigError(
                f"{self.names}: {error}; a name of your own needs --{self.settings}.{name}.{self.choice}"
            ) from None

    def check(self, rows: Sequence[str]) -> None:
        """Checks the names.

        Raises:
            ConfigError: there is none, one is there twice, or is no name.
        """
        if not rows:
            raise ConfigError(f"{self.names}: there must be at least one")
        for name in rows:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ConfigError(f"{self.names}: {name!r} is not accepted; a row's name has letters, digits, _ and -")
            if rows.count(name) > 1:
                raise ConfigError(f"{self.names}: {name!r} is there twice")

    def settings_of(self, row: str, given: Mapping[str, Any]) -> Any:
        """Returns the settings of a row.

        Args:
            row: its name.
            given: settings by row; others are as by default.
        """
        return given.get(row) or self.registry.get(row).Settings(**{self.choice: row})

    def check_typed(self, given: Mapping[str, Any], rows: Sequence[str]) -> None:
        """Checks plain values that a command line gave.

        Raises:
            ConfigError: an option of what is no row.
        """
        for name in given.get(self.settings, {}):
            if name == self.choice:
                raise ConfigError(self._one_key(given[self.settings][name]))
            if name not in rows:
                raise ConfigError(self._unknown(name, rows))

    def _one_key(self, value: Any) -> str:
        return (
            f"{self.settings}.{self.choice}: a {self.what} has several rows, so it is not one key; give {self.names}, "
            f"e.g. --{self.names} {value}"
        )

    def _unknown(self, name: str, rows: Sequence[str]) -> str:
        return f"{self.settings}.{name}: the {self.what} has no such row; {self.names} are {', '.join(map(str, rows))}"
