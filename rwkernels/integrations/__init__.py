"""Region-wise maps and losses where people train: MONAI, TorchIO, Lightning and nnU-Net, one module each.

Importing this package imports none of them.
"""
