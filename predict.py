"""Predict pictures and videos: ``python predict.py ckpt=PATH input=PATH output=DIR``; see ``--help``."""

from cityseg.commands import predict

if __name__ == "__main__":
    predict()
