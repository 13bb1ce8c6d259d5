"""What the code says of a view, where it still says something."""

from ..definition import ViewDefinition, ViewOptions
from ..phases import Phase
from ..registry import registry

__all__ = ["definition_of", "options_of", "phases_of"]


def definition_of(label: str) -> ViewDefinition | None:
    """The view of exactly this label, None if the code no longer defines it."""
    return registry.find(label) if label in registry else None


def options_of(label: str) -> ViewOptions:
    """The options of a view; the defaults, if the code no longer defines it."""
    definition = definition_of(label)
    return definition.options if definition else ViewOptions()


def phases_of(label: str) -> tuple[Phase, ...]:
    """The phases that a view has; all there are, if the code no longer defines it."""
    return options_of(label).phases
