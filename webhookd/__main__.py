"""Where `webhookd` and `python -m webhookd` begin."""

import sys


def main() -> None:
    """Run the command line and exit; Ctrl-C prints no traceback, also while the rest is being imported."""
    try:
        from webhookd.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it


if __name__ == "__main__":
    main()
