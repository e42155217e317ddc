"""One registry of policies by name; choices, config checks and metric labels come from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from hexgen_sglang.core.errors import ConfigError

P = TypeVar("P")
F = TypeVar("F", bound=Callable[..., object])


class PolicyRegistry(Generic[P]):
    """Names to policy factories of one kind ("ordering", "dispatch").

    A factory takes the policy's settings as keyword arguments, each with a default.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[..., P]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Class decorator: make the policy available under `name`.

        Raises:
            ConfigError: the name is taken.
        """

        def add(factory: F) -> F:
            if name in self._factories:
                raise ConfigError(f"{self.kind} policy {name!r} is registered twice")
            self._factories[name] = factory  # type: ignore[assignment]
            return factory

        return add

    def create(self, name: str, **settings: object) -> P:
        """Build the policy called `name`.

        Raises:
            ConfigError: unknown name, or a setting that the policy does not have or rejects.
        """
        factory = self._known(name)
        try:
            return factory(**settings)
        except TypeError as error:
            raise ConfigError(f"{self.kind} policy {name!r}: {error}") from error

    def defaults(self, name: str) -> dict[str, float]:
        """The settings of the policy called `name` with their defaults.

        Raises:
            ConfigError: unknown name.
        """
        factory = self._known(name)
        return {
            setting.name: setting.default
            for setting in inspect.signature(factory).parameters.values()
            if setting.default is not inspect.Parameter.empty
        }

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._factories))

    def _known(self, name: str) -> Callable[..., P]:
        factory = self._factories.get(name)
        if factory is None:
            known = ", ".join(self)
            raise ConfigError(f"{self.kind} policy {name!r} is unknown; known: {known}")
        return factory

    def __contains__(self, name: object) -> bool:
        return name in self._factories
