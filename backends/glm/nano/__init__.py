"""glm-4.6v-nano: a tiny checkpoint of the GLM-4.6V-Flash architecture that ships in the package.

It exists so that somebody with no GPU and nothing downloaded gets a true answer about a picture
from the real model class. Importing this module is cheap; torch is only needed to train or run.

    draw.py      a picture and its true contents from a seed      (Pillow, numpy)
    talk.py      questions about such a picture, with answers      (plain Python)
    tokenizer.py byte-level BPE carrying GLM's special tokens      (tokenizers)
    build.py     configuration and the files of a checkpoint       (torch, transformers)
    train.py     python -m backends.glm.nano.train
    evaluate.py  python -m backends.glm.nano.evaluate
"""

from pathlib import Path

NAME = "glm-4.6v-nano"
CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Directory of the shipped checkpoint, loadable with AutoModelForImageTextToText."""
