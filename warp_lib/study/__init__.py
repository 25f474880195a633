"""The experiments as a list, their runner, and what they found. Reading what they found needs no
torch.
"""
