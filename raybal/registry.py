"""Finding balancing methods, query strategies and layouts by name.

A method of raybal's own is a module of its package; a user's own is an entry point:

    [project.entry-points."raybal.balancing"]
    my_method = "my_package.my_module:MyMethod"
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from raybal.errors import ConfigError, did_you_mean

T = TypeVar("T")
S = TypeVar("S")


class Registry(Generic[T]):
    """All concrete classes of one kind: those in a package (one a file) and those of entry points.

    Args:
        what: what one entry is called in messages, e.g. "balancing method".
        package: the package whose modules are searched, and the entry point group's name.
        base: the class that entries derive from; each names itself in its class attribute `name`.
    """

    def __init__(self, what: str, package: str, base: type[T]) -> None:
        self.what = what
        self.package = package
        self.base = base

    @cached_property
    def _classes(self) -> dict[str, type[T]]:
        found: dict[str, type[T]] = {}
        package = importlib.import_module(self.package)
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{self.package}.{info.name}")
            for _, cls in inspect.getmembers(module, inspect.isclass):
                if cls.__module__ == module.__name__ and issubclass(cls, self.base) and "name" in vars(cls):
                    found[cls.name] = cls  # type: ignore[attr-defined]
        for point in entry_points(group=self.package):
            cls = point.load()
            if not (inspect.isclass(cls) and issubclass(cls, self.base)):
                raise ConfigError(f"entry point {point.name!r} of {self.package} is not a {self.base.__name__}")
            if point.name in found:
                raise ConfigError(f"entry point {point.name!r} of {self.package} hides raybal's own {self.what}")
            found[point.name] = cls
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        return list(self._classes)

    def get(self, name: str) -> type[T]:
        """Returns the class registered under a name.

        Raises:
            ConfigError: no such name; the message lists the names there are.
        """
        if not isinstance(name, str) or name not in self._classes:
            known = ", ".join(self.names())
            raise ConfigError(f"{name!r} is not a {self.what}; choose one of {known}{did_you_mean(name, self.names())}")
        return self._classes[name]

    def settings(self, content: Mapping[str, Any], key: str, default: type[S]) -> type[S]:
        """Returns the `Settings` of the class that content[key] names, or the default if it names none.

        Raises:
            ConfigError: no such name; the message begins with the key.
        """
        if key not in content:
            return default
        try:
            return self.get(content[key]).Settings  # type: ignore[attr-defined]
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
