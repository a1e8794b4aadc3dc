"""Modules that compute in another way and stay what they are: names, weights, settings and what is said of their class."""

from __future__ import annotations

from typing import Any

from torch import nn


class Retyped(nn.Module):
    """A base of classes whose ``forward`` replaces another class's. Such a module is pickled as its two classes and its state, since no file
    names the class that is made of them."""

    def __reduce__(self) -> tuple[Any, ...]:
        kind, replaced = type(self).__bases__
        return _unpickled, (kind, replaced), self.__dict__


def retype(module: nn.Module, kind: type[Retyped]) -> None:
    """Let a module be an instance of a subclass of its own class, with the methods of ``kind``."""
    module.__class__ = _class_of(kind, type(module))


def _class_of(kind: type[Retyped], replaced: type[nn.Module]) -> type[nn.Module]:
    return type(f"{kind.__name__.lstrip('_')}{replaced.__name__}", (kind, replaced), {})


def _unpickled(kind: type[Retyped], replaced: type[nn.Module]) -> nn.Module:
    return nn.Module.__new__(_class_of(kind, replaced))
