"""Write the network of a checkpoint as one file: ``python export.py ckpt=PATH format=onnx``; see ``--help``."""

from cityseg.commands import export

if __name__ == "__main__":
    export()
