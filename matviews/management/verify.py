"""`--verify`: whether views equal their source, and repairing them."""

from django.core.management.base import CommandError
from django.db import DatabaseError

from matviews import api
from matviews.exceptions import MatviewsError

from . import formatting
from .failures import report_failure
from .targets import Targets

__all__ = ["verify"]


def verify(targets: Targets) -> None:
    """Compare views with what their sources return now; repair them if that was asked.

    Raises:
        CommandError: one differs, or could not be compared.
    """
    if targets.options.repair:
        targets.refuse_in_transaction()
    labels = targets.labels_with_source()
    differing = [label for label in labels if _verify_view(label, targets)]
    sentences = list(filter(None, [targets.failure(labels)]))
    if differing:
        sentences.append(
            f"{len(differing)} of {len(labels)} views differ from their source: "
            f"{', '.join(differing)}. Run --verify --repair to fix them."
        )
    if sentences:
        raise CommandError(" ".join(sentences))


def _verify_view(label: str, targets: Targets) -> bool:
    """Compare or repair one view, and report the outcome; return whether it still differs."""
    options, output = targets.options, targets.output
    try:
        found = api.verify(
            label,
            repair=options.repair,
            sample=options.sample,
            leave_out_pending=not options.repair,
        )
    except (MatviewsError, DatabaseError) as error:
        text = report_failure(label, error, targets)
        output.entries.append({"view": label, "equal": None, "error": text})
        return False
    output.entries.append(formatting.verification_as_dict(found))
    for line in formatting.verification_in_lines(found):
        output.say(line)
    if found.error:
        targets.fail(label, found.error)
    return bool(found.differences or found.sums) and found.repaired is None
