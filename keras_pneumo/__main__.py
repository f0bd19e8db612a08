"""``python -m keras_pneumo`` is the command ``keras-pneumo``; worker processes import this module, so it is light."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from keras_pneumo.cli import main as run
    except (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, OSError) as error:
        # A damaged installation. Python alone would end with 1, which means something else.
        print(f"Failed. keras-pneumo is not installed as it should be: {error}. Install it again.", file=sys.stderr)
        sys.exit(70)
    run()


if __name__ == "__main__":
    main()
