"""``python -m keras_pneumo`` is the command ``keras-pneumo``."""

from keras_pneumo.cli import main

if __name__ == "__main__":
    main()
