"""Score a checkpoint: ``python evaluate.py ckpt=PATH [split=val] [data.root=...]``; see ``--help``."""

from cityseg.commands import evaluate

if __name__ == "__main__":
    evaluate()
