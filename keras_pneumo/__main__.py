"""``python -m keras_pneumo`` is the command ``keras-pneumo``; worker processes import this module, so it is light."""


def main() -> None:
    """Run the command line."""
    from keras_pneumo.cli import main as run

    run()


if __name__ == "__main__":
    main()
