"""Train a network: ``python train.py [group=choice] [key=value]``; see ``python train.py --help``."""

from cityseg.commands import train

if __name__ == "__main__":
    train()
