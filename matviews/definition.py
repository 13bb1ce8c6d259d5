"""A view as its class defines it: its options, its hooks, and what is wrong with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from django.apps import apps
from django.core.checks import CheckMessage, Warning
from django.db import router
from django.db.models import Model

from . import near_misses
from .contract import ViewMarker
from .faults import ViewFault, fault_in
from .hooks import HookKind, Hooks, has_source, read_hooks
from .options import META, DependsOn, ViewOptions, read_options
from .phases import Phase

__all__ = [
    "DependsOn", "HookKind", "Hooks", "ViewDefinition", "ViewFault", "ViewOptions", "define",
    "unreadable",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewDefinition:
    """A view as its class defines it."""

    #: Its label, `app_label.ModelName`.
    label: str
    #: The class of the view.
    model: type[Model]
    #: Its `MatviewMeta`.
    options: ViewOptions = field(default_factory=ViewOptions)
    #: What the hooks of each usable phase declare.
    hooks: Mapping[Phase, Hooks] = field(default_factory=dict)
    #: Whether it has a `source()`, from which hooks are derived.
    has_source: bool = False
    #: What is wrong with it, as messages for Django's system checks. A view with a `ViewFault`
    #: among them cannot be refreshed.
    problems: tuple[CheckMessage, ...] = ()
    #: The phases whose batches are derived from `source()`.
    derived: frozenset[Phase] = field(init=False)
    #: The phases that can leave out a row that fails, and park its key.
    parking: frozenset[Phase] = field(init=False)

    def __post_init__(self) -> None:
        derived = frozenset(phase for phase, hooks in self.hooks.items() if hooks.do_derived)
        object.__setattr__(self, "derived", derived)
        parking = frozenset(phase for phase, hooks in self.hooks.items() if hooks.can_park)
        object.__setattr__(self, "parking", parking)

    @property
    def is_shard_aware(self) -> bool:
        """Whether the view can have more than one shard, as far as its class shows.

        Either every hook declares `shard`, or all are derived from `source()`.
        """
        return self.has_key_ranges or all(
            "shard" in hooks.needs & hooks.do for hooks in self.hooks.values()
        )

    @property
    def has_key_ranges(self) -> bool:
        """Whether each of its shards is a range of keys: all hooks are derived from `source()`."""
        hooks = self.hooks.values()
        return bool(hooks) and all(each.is_derived for each in hooks)

    @property
    def all_problems(self) -> tuple[CheckMessage, ...]:
        """`problems`, and what the database settings make wrong."""
        return (*self.problems, *_misplaced(self))

    @property
    def errors(self) -> tuple[CheckMessage, ...]:
        """The problems that forbid a refresh, even if SILENCED_SYSTEM_CHECKS lists them."""
        return tuple(problem for problem in self.all_problems if isinstance(problem, ViewFault))


def _misplaced(definition: ViewDefinition) -> Iterator[ViewFault]:
    ours = router.db_for_write(apps.get_app_config("matviews").get_model("ViewControl"))
    theirs = router.db_for_write(definition.model)
    if theirs != ours:
        sentence = (
            f" is in the database {theirs!r}, the bookkeeping of matviews in {ours!r}: a batch "
            f"could not commit to both at once."
        )
        hint = f"Route the view to {ours!r}, or the app matviews to {theirs!r}."
        yield fault_in(definition.model, "W108", sentence, hint)


def unreadable(model: type[Model], error: Exception) -> ViewDefinition:
    """The definition of a view whose class raised an error while it was read."""
    sentence = f": its hooks and options cannot be read: {type(error).__name__}: {error}"
    hint = f"Check its {META} and the class methods that matviews calls."
    fault = fault_in(model, "W121", sentence, hint)
    return ViewDefinition(label=model._meta.label, model=model, problems=(fault,))


def define(model: type[Model]) -> ViewDefinition:
    """Read a view's class once: its options, its hooks, and every problem that they show."""
    problems: list[CheckMessage] = list(_base_problems(model))
    options = read_options(model, problems)
    from_source = has_source(model, options, problems)
    hooks = read_hooks(model, options, from_source, problems)
    return ViewDefinition(
        label=model._meta.label,
        model=model,
        options=options,
        hooks=hooks,
        has_source=from_source,
        problems=tuple(problems),
    )


def _base_problems(model: type[Model]) -> Iterator[CheckMessage]:
    label = model._meta.label
    for base, name in _lost_fields(model):
        yield fault_in(
            model,
            "W122",
            f" lacks the field {name} of {base.__name__}, because MaterializedView, which comes "
            f"first, has a method of that name.",
            f"Put {base.__name__} before MaterializedView, or define the field in {label}.",
        )
    if model._meta.proxy:
        concrete = model._meta.concrete_model
        yield fault_in(
            model,
            "W106",
            " is a proxy: it has no table of its own to keep up to date.",
            f"Mix MaterializedView into a model with a table, not into a proxy of "
            f"{concrete._meta.label if concrete else 'another model'}.",
        )
    for name in near_misses.unread_classes(model, META):
        yield Warning(
            f"{label}: its inner class {name} is ignored.",
            hint=f"Did you mean {META}?",
            obj=model,
            id="matviews.W004",
        )
    for parent in model._meta.parents:
        if issubclass(parent, ViewMarker) and not model._meta.proxy:
            yield Warning(
                f"{label} inherits from the view {parent._meta.label}: their rows share a table, "
                f"and the refreshes of both write to it.",
                hint=f"Make {parent._meta.label} abstract, or override every hook.",
                obj=model,
                id="matviews.W001",
            )


def _lost_fields(model: type[Model]) -> Iterator[tuple[type, str]]:
    """The fields that Django leaves out of a model, and the abstract models that have them.

    It does if a base that comes before has an attribute of that name.
    """
    own = {field.name for field in model._meta.fields}
    for base in model.__mro__:
        if issubclass(base, Model) and getattr(getattr(base, "_meta", None), "abstract", False):
            for field in base._meta.local_fields:
                held_by = next((each for each in model.__mro__ if field.name in vars(each)), object)
                ours = issubclass(held_by, ViewMarker) and not issubclass(held_by, Model)
                if field.name not in own and ours:
                    yield base, field.name
