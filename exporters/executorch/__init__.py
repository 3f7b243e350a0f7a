"""The ExecuTorch target: .pte programs for apps that take their models from PyTorch."""
