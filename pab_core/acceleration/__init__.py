"""Faster execution of the models on a GPU, attached from outside: compiled blocks and kernels of our own."""
