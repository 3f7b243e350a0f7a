"""What a mask is: the network in PyTorch, its weights, and the image code that all runtimes share."""
