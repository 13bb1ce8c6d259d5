"""`python -m tests.chaos --minutes 3 --database postgres --seed 7`."""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from .broken import KINDS
from .servers import DATABASES, absence
from .world import World

INTERRUPTED = 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="how long faults go on")
    parser.add_argument("--database", choices=list(DATABASES), default="postgres")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the plan")
    parser.add_argument(
        "--lease", type=float, default=5,
        help="seconds: MATVIEWS['LEASE'], and how often maintenance runs (60 in production)",
    )  # fmt: skip
    parser.add_argument(
        "--break", dest="broken", choices=list(KINDS), default="",
        help="break the engine of the workers, to see that it is found",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    if problem := absence(arguments.database):
        print(problem, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="matviews-chaos-"))
    folder.chmod(0o755)  # the database server may run as another user
    keep = arguments.keep
    try:
        wrong = _run(folder, arguments)
        keep = keep or bool(wrong)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BaseException:
        keep = True
        raise
    finally:
        if keep:
            print(f"\nThe logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    _print_verdict(wrong, arguments)
    return int(bool(wrong))


def _run(folder: Path, arguments: argparse.Namespace) -> list[str]:
    started = time.monotonic()
    world = World(folder, arguments.database, arguments.lease, arguments.broken)
    try:
        world.use_environment()
        world.database_server.start()
        world.broker.start()
        import django

        django.setup()
        from .run import run

        return run(
            world, seed=arguments.seed, seconds=60 * arguments.minutes, lease=arguments.lease
        )
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        world.end()
        print(f"All processes are gone after {time.monotonic() - started:.0f} s.")


def _print_verdict(wrong: list[str], arguments: argparse.Namespace) -> None:
    print()
    for line in wrong:
        print(f"WRONG  {line}")
    what = f"{arguments.database}, {arguments.minutes:g} minutes, seed {arguments.seed}"
    print(f"{'FAILED' if wrong else 'Every row is right, nothing was done twice'}: {what}")


if __name__ == "__main__":
    sys.exit(main())
